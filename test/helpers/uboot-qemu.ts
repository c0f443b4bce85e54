import { spawnSync } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { COMMITTED_NOTE, encodeNote } from '../../bootloader/committed-note.ts'
import { FILES } from '../../bootloader/layout.ts'
import { BOOT_CMD, scriptImage, scriptSettings, type UbootArch } from '../../bootloader/uboot-script.ts'
import { copyInto, type Disk, makeDisk, readAt, writeAt } from './disk.ts'
import { run } from './run.ts'

/**
 * Runs the real boot.cmd under Debian's U-Boot in QEMU. One start of the emulator asks about many boot states: a script puts
 * each one's three sectors in place, runs boot.scr with a kernel command that only prints, and copies the sectors away
 * again.
 */

export interface UbootMachine {
  readonly arch: UbootArch
  readonly program: string
  readonly args: readonly string[]
  readonly firmware: string
}

export const UBOOT_MACHINES = {
  arm64: {
    arch: 'arm64',
    program: 'qemu-system-aarch64',
    args: ['-machine', 'virt', '-cpu', 'cortex-a53'],
    firmware: '/usr/lib/u-boot/qemu_arm64/u-boot.bin',
  },
  x86: {
    arch: 'x86_64',
    program: 'qemu-system-x86_64',
    args: ['-machine', 'pc', '-cpu', 'max'],
    firmware: '/usr/lib/u-boot/qemu-x86/u-boot.rom',
  },
} as const satisfies Readonly<Record<string, UbootMachine>>

/** Three sectors: two copies of the environment and the first half of the reason block. */
export interface UbootCase {
  readonly copies: readonly [Uint8Array, Uint8Array]
  readonly reason: Uint8Array
  /** Slots whose boot image is empty. */
  readonly lost: readonly ('a' | 'b')[]
  /** What the data partition notes as committed; without boot images lost. */
  readonly noted?: 'b'
}

export interface UbootDecision {
  /** `key=value` words of the decision line, or undefined when no slot could be loaded. */
  readonly fields: Readonly<Record<string, string>> | undefined
  readonly args: string
  readonly paused: boolean
  readonly text: string
  /** The same three sectors afterwards. */
  readonly after: { readonly copies: readonly [Uint8Array, Uint8Array]; readonly reason: Uint8Array }
}

const SECTOR = 512
/** Sectors that one case takes in the store: three before, three after. */
const STRIDE = 6
const LOSSES = ['', 'a', 'b', 'ab'] as const
/** The data partition starts with a file system as devices have it (publisher/disk/data.ts); the store stands behind. */
const DATA_MIB = 16
const FEATURES =
  'none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,' +
  'huge_file,dir_nlink,extra_isize,metadata_csum'

export interface UbootLab {
  readonly machine: UbootMachine
  readonly dir: string
  readonly disks: readonly Disk[]
  readonly script: Uint8Array
}

/** Five small disks: every slot there, slot a lost, slot b lost, both lost, and one whose data partition notes slot b. */
export async function ubootLab(machine: UbootMachine, dir: string, cfg: Uint8Array, cases: number): Promise<UbootLab> {
  const store = Math.ceil((cases * STRIDE * SECTOR) / 1024) + 64 + DATA_MIB * 1024
  const file = (name: string, bytes: Uint8Array): string => {
    writeFileSync(join(dir, name), bytes)
    return join(dir, name)
  }
  const boot = join(dir, 'boot.fat')
  const empty = join(dir, 'empty.fat')
  for (const [path, files] of [
    [boot, [file('vmlinuz', Buffer.alloc(700, 1)), file('initrd.img', Buffer.alloc(900, 2)), file('boot.cfg', cfg)]],
    [empty, []],
  ] as const) {
    writeFileSync(path, Buffer.alloc(256 * 1024))
    run('mkfs.fat', ['-F', '12', path])
    if (files.length > 0) run('mcopy', ['-i', path, ...files, '::/'])
  }
  const bytes = { boot: await readFile(boot), empty: await readFile(empty) }
  const note = join(dir, 'note')
  mkdirSync(join(note, 'bistable'), { recursive: true })
  writeFileSync(join(note, 'bistable', COMMITTED_NOTE), encodeNote('b'))
  const data = join(dir, 'data.ext4')
  run('mke2fs', ['-q', '-F', '-O', FEATURES, '-I', '256', '-b', '4096', '-d', note, data, `${DATA_MIB}M`])
  const disks = [...LOSSES, 'noted' as const].map((name) => {
    const lost = name === 'noted' ? '' : name
    const sizes = {
      esp: 64,
      bootstate: 1024,
      'boot-a': 256,
      'rootfs-a': 64,
      'boot-b': 256,
      'rootfs-b': 64,
      data: store,
    }
    const disk = makeDisk(join(dir, `disk-${name}.img`), sizes)
    writeAt(disk.path, disk.offsets['boot-a'], lost.includes('a') ? bytes.empty : bytes.boot)
    writeAt(disk.path, disk.offsets['boot-b'], lost.includes('b') ? bytes.empty : bytes.boot)
    if (name === 'noted') copyInto(disk, 'data', data)
    return disk
  })
  const at = disks[0]?.offsets.bootstate ?? 0
  const dry = [
    "setenv bs_boot 'echo dry ${bootargs}'",
    ...['wait10', 'wait30', 'reset'].map((name) => `setenv bs_${name} true`),
    '',
  ].join('\n')
  const settings = scriptSettings({ arch: machine.arch, bootstateStart: at })
  const text = Buffer.concat([Buffer.from(settings), Buffer.from(dry), await readFile(BOOT_CMD)])
  return { machine, dir, disks, script: scriptImage(text, 0, 0) }
}

/**
 * One decision per case, in order, from one start of the emulator. With `readonly` the disks refuse every write: for one
 * case, whose sectors afterwards are those from before.
 */
export function ubootDecides(lab: UbootLab, cases: readonly UbootCase[], readonly = false): UbootDecision[] {
  const { machine, dir, disks, script } = lab
  const diskOf = (each: UbootCase): number =>
    each.noted === 'b' ? LOSSES.length : LOSSES.indexOf(each.lost.join('') as (typeof LOSSES)[number])
  const disk = (each: UbootCase): Disk => disks[diskOf(each)] as Disk
  const storeAt = (each: UbootCase, n: number): number =>
    disk(each).offsets.data + DATA_MIB * 1024 * 1024 + n * STRIDE * SECTOR
  const hex = (bytes: number): string => (bytes / SECTOR).toString(16)
  let before: number | undefined
  const lines = ['setenv devtype virtio', 'setenv t_mem 0x3000']
  for (const [n, each] of cases.entries()) {
    const three = Buffer.concat([...each.copies.map((c) => c.subarray(0, SECTOR)), each.reason.subarray(0, SECTOR)])
    writeAt(disk(each).path, storeAt(each, n), three)
    const place = FILES.map(({ offset }) => hex(disk(each).offsets.bootstate + offset))
    const buffers = ['T000', 'T200', 'T400']
    if (readonly) {
      FILES.forEach(({ offset }, i) => {
        writeAt(disk(each).path, disk(each).offsets.bootstate + offset, three.subarray(i * SECTOR, (i + 1) * SECTOR))
      })
      writeAt(disk(each).path, storeAt(each, n) + 3 * SECTOR, three)
      lines.push(`echo; echo case-${n}`, `setenv devnum ${diskOf(each)}`, 'source S000')
      continue
    }
    lines.push(
      `echo; echo case-${n}`,
      ...(before === diskOf(each) ? [] : [`setenv devnum ${diskOf(each)}; virtio dev ${diskOf(each)}`]),
      `virtio read T000 ${hex(storeAt(each, n))} 3`,
      ...place.map((sector, i) => `virtio write ${buffers[i]} ${sector} 1`),
      // It leaves its own disk as the current one.
      'source S000',
      ...place.map((sector, i) => `virtio read ${buffers[i]} ${sector} 1`),
      `virtio write T000 ${hex(storeAt(each, n) + 3 * SECTOR)} 3`,
    )
    before = diskOf(each)
  }
  // With -no-reboot a reset ends the emulator.
  lines.push('echo; echo cases-done; reset')
  // Scratch memory of this script and the place of boot.scr, away from what boot.cmd uses.
  const memory = machine.arch === 'arm64' ? { T: '0x46000', S: '0x46100' } : { T: '0x12000', S: '0x12100' }
  const place = (text: string): string =>
    text.replace(/\bT(?=[0-9a-f]{3}\b)/g, memory.T).replace('S000', `${memory.S}000`)
  const driver = join(dir, 'driver.bin')
  writeFileSync(driver, scriptImage(Buffer.from(`${lines.map(place).join('\n')}\n`), 0, 0))
  const scr = join(dir, 'boot.scr')
  writeFileSync(scr, script)
  const driverMemory = machine.arch === 'arm64' ? 0x4700_0000 : 0x1300_0000
  const load = (path: string, address: number): string[] => [
    '-device',
    `loader,file=${path},addr=${address},force-raw=on`,
  ]
  // Into a file: the emulator writes byte by byte, and a reader would be woken for each.
  const serial = join(dir, 'serial')
  const out = openSync(serial, 'w')
  const child = spawnSync(
    machine.program,
    [
      ...machine.args,
      ...['-m', '1024', '-nodefaults', '-display', 'none', '-no-reboot', '-serial', 'stdio', '-bios', machine.firmware],
      ...disks.flatMap(({ path }, i) => [
        ...['-drive', `if=none,id=d${i},format=raw,cache=unsafe${readonly ? ',readonly=on' : ''},file=${path}`],
        ...['-device', `virtio-blk-pci,drive=d${i}`],
      ]),
      ...load(scr, Number(memory.S) * 0x1000),
      ...load(driver, driverMemory),
    ],
    {
      input: `\n\n\nvirtio scan\nsource 0x${driverMemory.toString(16)}\n`,
      encoding: 'latin1',
      stdio: ['pipe', out, 'pipe'],
      timeout: 300_000,
    },
  )
  closeSync(out)
  if (child.error !== undefined) throw child.error
  const text = readFileSync(serial, 'latin1').replaceAll('\r', '')
  const parts = text.split(/^case-\d+$/m).slice(1)
  if (parts.length !== cases.length || !text.includes('\ncases-done'))
    throw new Error(`U-Boot spoke of ${parts.length} of ${cases.length} cases: ${child.stderr}${text.slice(-3000)}`)
  return cases.map((each, n) => {
    const back = readAt(disk(each).path, storeAt(each, n) + 3 * SECTOR, 3 * SECTOR)
    const [first, second, reason] = [0, 1, 2].map((i) => back.slice(i * SECTOR, (i + 1) * SECTOR))
    return { ...decision(parts[n] ?? ''), after: { copies: [first, second], reason } } as UbootDecision
  })
}

function decision(text: string): Omit<UbootDecision, 'after'> {
  const line = /^bistable: boot (.*)$/m.exec(text)?.[1]
  const fields = line === undefined ? undefined : Object.fromEntries(line.split(' ').map((word) => word.split('=')))
  return {
    fields,
    args: /^dry (.*)$/m.exec(text)?.[1] ?? '',
    paused: /^bistable: waiting \d+ seconds/m.test(text),
    text,
  }
}
