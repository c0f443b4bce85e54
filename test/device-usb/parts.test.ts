import { linkSync, lstatSync, mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { ProcessResult } from '../../device/agent/ports.ts'
import { nodeSys } from '../../device/slots/sys.ts'
import { fileSystemOf, mountOptions } from '../../device/usb/file-system.ts'
import { findSticks, namedStick } from '../../device/usb/find.ts'
import { StickHook } from '../../device/usb/hook.ts'
import { encodeResult, resultName, writeResult } from '../../device/usb/result.ts'
import { findOnStick } from '../../device/usb/scan.ts'
import { kernelSticks } from '../../device/usb/sticks.ts'
import { haveTool, noise, run, scratch } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'

describe('the file system of a stick', () => {
  it.skipIf(!haveTool('mkfs.vfat') || !haveTool('mkfs.exfat') || !haveTool('mkfs.ext4'))(
    'is told by what the real tools make',
    () => {
      const path = join(scratch(), 'stick.img')
      const made = (size: number, ...command: [string, ...string[]]) => {
        writeFileSync(path, '')
        truncateSync(path, size)
        run(...command, path)
        return fileSystemOf(readFileSync(path).subarray(0, 2048))
      }
      const MiB = 1 << 20
      expect(made(2 * MiB, 'mkfs.vfat', '-F', '12')).toBe('vfat')
      expect(made(16 * MiB, 'mkfs.vfat', '-F', '16')).toBe('vfat')
      expect(made(64 * MiB, 'mkfs.vfat', '-F', '32', '-S', '4096')).toBe('vfat')
      expect(made(64 * MiB, 'mkfs.vfat', '-F', '32')).toBe('vfat')
      expect(made(16 * MiB, 'mkfs.exfat')).toBe('exfat')
      for (const type of ['ext2', 'ext3', 'ext4']) expect(made(8 * MiB, 'mkfs.ext4', '-q', '-t', type)).toBe('ext4')
      expect(made(8 * MiB, 'mkswap')).toBeUndefined()
    },
  )

  it('is unknown for partition tables, noise and short reads, and never an error', () => {
    const table = Buffer.alloc(2048)
    table.writeUInt16LE(0xaa55, 510)
    expect(fileSystemOf(table)).toBeUndefined()
    for (let n = 0; n < 300; n++) expect(() => fileSystemOf(noise(n * 7, `${n}`))).not.toThrow()
    expect(fileSystemOf(new Uint8Array(0))).toBeUndefined()
  })

  it('is mounted so that nothing on it runs, is a device, or is written', () => {
    for (const type of ['vfat', 'exfat', 'ext4'] as const) {
      expect(mountOptions(type, 'ro').split(',')).toEqual(expect.arrayContaining(['ro', 'nosuid', 'nodev', 'noexec']))
      expect(mountOptions(type, 'rw').split(',')).toEqual(['rw', 'nosuid', 'nodev', 'noexec'])
    }
    // Mounting ext4 read-only replays its journal unless told not to.
    expect(mountOptions('ext4', 'ro')).toContain('noload')
  })
})

interface MadeDisk {
  readonly name: string
  readonly bus: string
  readonly removable?: boolean
  readonly partitions?: number
  readonly sequence?: number
}

/** A made-up /sys; the system runs from mmcblk0. */
function kernel(disks: readonly MadeDisk[]): string {
  const root = scratch()
  const write = (path: string, text: string) => {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }
  for (const [i, disk] of disks.entries()) {
    const at = `sys/devices/${disk.bus}/block/${disk.name}`
    write(`${at}/removable`, disk.removable === true ? '1\n' : '0\n')
    if (disk.sequence !== undefined) write(`${at}/diskseq`, `${disk.sequence}\n`)
    const names = [disk.name]
    for (let n = 1; n <= (disk.partitions ?? 0); n++) {
      write(`${at}/${disk.name}${n}/partition`, `${n}\n`)
      names.push(`${disk.name}${n}`)
    }
    for (const [n, name] of names.entries()) {
      const place = name === disk.name ? at : `${at}/${name}`
      write(`${place}/size`, '2048\n')
      for (const link of [`sys/class/block/${name}`, `sys/dev/block/${i + 1}:${n}`]) {
        mkdirSync(dirname(join(root, link)), { recursive: true })
        symlinkSync(join(root, place), join(root, link))
      }
    }
  }
  write('proc/self/mountinfo', '20 1 1:0 / / rw - ext4 /dev/mmcblk0 rw\n')
  return root
}

const BOARD: MadeDisk = { name: 'mmcblk0', bus: 'platform/mmc', removable: true }
const USB = 'pci/0000:00:14.0/usb1/1-2/1-2:1.0/host2/target2:0:0/2:0:0:0'

describe('which disks are sticks', () => {
  it('removable ones and those on USB; never the disk that the system runs from', async () => {
    const sys = nodeSys(
      kernel([
        BOARD,
        { name: 'nvme0n1', bus: 'pci/nvme', partitions: 2 },
        { name: 'sda', bus: USB, partitions: 2, sequence: 9 },
        { name: 'sdb', bus: 'pci/ata2/host3', removable: true },
        { name: 'sr0', bus: 'pci/ata3' },
      ]),
    )
    expect(await findSticks(sys)).toEqual([
      { name: 'sda1', identity: 'sda1 9 2048' },
      { name: 'sda2', identity: 'sda2 9 2048' },
      { name: 'sdb', identity: 'sdb old 2048' },
    ])
    const booted = nodeSys(kernel([{ ...BOARD, bus: USB, name: 'mmcblk0' }]))
    expect(await findSticks(booted)).toEqual([])
  })

  it('a stick plugged in again is another one, also under the same name', async () => {
    const first = await findSticks(nodeSys(kernel([BOARD, { name: 'sda', bus: USB, sequence: 9 }])))
    const second = await findSticks(nodeSys(kernel([BOARD, { name: 'sda', bus: USB, sequence: 10 }])))
    expect(first[0]?.identity).not.toBe(second[0]?.identity)
  })

  it('a table of hundreds of partitions is cut off', async () => {
    const sys = nodeSys(kernel([BOARD, { name: 'sda', bus: USB, partitions: 200 }]))
    expect(await findSticks(sys)).toHaveLength(16)
  })

  it('a person may name any other disk', async () => {
    const root = kernel([BOARD, { name: 'vdb', bus: 'pci/virtio3', sequence: 4 }])
    const sys = nodeSys(root)
    expect(await findSticks(sys)).toEqual([])
    expect(await namedStick(sys, '/dev/vdb')).toEqual({ name: 'vdb', identity: 'vdb 4 2048' })
    const sticks = kernelSticks(sys, { run: async () => ok, glob: async () => [] }, root)
    for (const wrong of [
      '/dev/mmcblk0',
      '/dev/none',
      '/etc/passwd',
      '../../etc/passwd',
      '/dev/../etc/passwd',
      '',
      '-a',
    ])
      expect(await codeOfAsync(() => sticks.named(wrong)), wrong).toBe('USB_NOT_A_STICK')
  })
})

const ok: ProcessResult = { exit: 0, timedOut: false, said: '' }

describe('the bundles on a stick', () => {
  it('C3 junk names, links, pipes and folders are no bundles', async () => {
    const stick = scratch()
    const names = [
      'a.bundle',
      'B.BUNDLE',
      '$(reboot).bundle',
      '-rf.bundle',
      'x\ny.bundle',
      '\u202e.bundle',
      `${'n'.repeat(240)}.bundle`,
    ]
    for (const name of [...names, '._a.bundle', '.bundle', 'a.bundle.part', 'README', 'bundle'])
      writeFileSync(join(stick, name), 'x')
    mkdirSync(join(stick, 'folder.bundle'))
    symlinkSync('/etc/passwd', join(stick, 'link.bundle'))
    symlinkSync('loop.bundle', join(stick, 'loop.bundle'))
    run('mkfifo', join(stick, 'fifo.bundle'))
    mkdirSync(join(stick, 'bistable'))
    writeFileSync(join(stick, 'bistable/inner.bundle'), 'x')
    mkdirSync(join(stick, 'deep'))
    writeFileSync(join(stick, 'deep/no.bundle'), 'x')
    const found = await findOnStick(stick)
    expect(found.bundles.map((path) => path.slice(stick.length + 1)).sort()).toEqual(
      [...names, 'bistable/inner.bundle'].sort(),
    )
    expect(found.notes).toHaveLength(4)
    expect(found.notes.join()).not.toContain('\n')
  })

  it('C3 a folder that is a link leads nowhere', async () => {
    const stick = scratch()
    const outside = scratch()
    writeFileSync(join(outside, 'x.bundle'), 'x')
    symlinkSync(outside, join(stick, 'bistable'))
    expect((await findOnStick(stick)).bundles).toEqual([])
  })

  it('C3 10,000 files: 64 bundles at most, and it says so', async () => {
    const stick = scratch()
    for (let n = 0; n < 9900; n++) writeFileSync(join(stick, `junk-${n}`), '')
    for (let n = 100; n < 200; n++) writeFileSync(join(stick, `r${n}.bundle`), 'x')
    const { bundles, notes } = await findOnStick(stick)
    expect(bundles).toHaveLength(64)
    expect(notes).toEqual(['100 bundles; the first 64 by name are opened'])
    expect((await findOnStick(join(stick, 'none'))).notes[0]).toContain('ENOENT')
  })
})

describe('the result file', () => {
  const bytes = Buffer.from('{"ok":true}\n')

  it('replaces an old one, and is named after the device', async () => {
    const stick = scratch()
    const name = resultName('ab12')
    expect(name).toBe('bistable-ab12.json')
    expect(resultName('../../etc/x')).toBe('bistable-unnamed.json')
    expect(resultName(undefined)).toBe('bistable-unnamed.json')
    writeFileSync(join(stick, name), 'x'.repeat(5000))
    await writeResult(stick, name, bytes)
    expect(readFileSync(join(stick, name))).toEqual(bytes)
  })

  it('C3 is never written through what somebody put at its name', async () => {
    const stick = scratch()
    const outside = join(scratch(), 'victim')
    writeFileSync(outside, 'precious')
    symlinkSync(outside, join(stick, 'link.json'))
    linkSync(outside, join(stick, 'hard.json'))
    mkdirSync(join(stick, 'folder.json'))
    run('mkfifo', join(stick, 'fifo.json'))
    for (const name of ['link.json', 'hard.json', 'folder.json', 'fifo.json', 'none/x.json'])
      expect(await codeOfAsync(() => writeResult(stick, name, bytes)), name).toBe('USB_RESULT')
    expect(readFileSync(outside, 'utf8')).toBe('precious')
    expect(lstatSync(join(stick, 'link.json')).isSymbolicLink()).toBe(true)
  })

  it('stays small whatever the install had to say', () => {
    const journal = Array.from({ length: 100_000 }, (_, n) => `rootfs fetch ${n}`)
    const result = {
      device: 'd',
      product: 'p',
      at: '1970-01-01T00:00:00.000Z',
      clock: 'not-set',
      ok: true,
      code: 'OK',
      exit: 0,
      message: '',
      next: null,
      running: '0.1',
      armed: null,
      files: [],
      journal,
    } as const
    const made = encodeResult(result)
    expect(made.length).toBeLessThan(64 * 1024)
    expect(JSON.parse(Buffer.from(made).toString()).journal.at(-1)).toBe('rootfs fetch 99999')
  })
})

describe('the hook', () => {
  it('is told one thing at a time, never something old last, and its end is waited for', async () => {
    const calls: string[] = []
    const open: (() => void)[] = []
    const processes = {
      glob: async () => [],
      run: async ([, ...words]: readonly [string, ...string[]], ms: number) => {
        expect(ms).toBe(10_000)
        calls.push(words.join(' '))
        await new Promise<void>((resolve) => void open.push(resolve))
        return ok
      },
    }
    const hook = new StickHook(processes, '/usr/bin/led')
    hook.tell('found')
    for (let percent = 0; percent <= 100; percent += 10) hook.tell('installing', percent)
    hook.tell('installing', 100)
    hook.tell('armed', 100)
    expect(calls).toEqual(['found 0 OK'])
    let settled = false
    const end = hook.settled().then(() => {
      settled = true
    })
    open.shift()?.()
    await new Promise((resolve) => setImmediate(resolve))
    expect(calls).toEqual(['found 0 OK', 'armed 100 OK'])
    expect(settled).toBe(false)
    open.shift()?.()
    await end
    hook.tell('refused', 250, 'USB_MOUNT')
    expect(calls.at(-1)).toBe('refused 100 USB_MOUNT')
    open.shift()?.()
    await hook.settled()
    const none = new StickHook(processes, undefined)
    none.tell('found')
    await none.settled()
    expect(calls).toHaveLength(3)
  })
})

describe('mount and unmount', () => {
  it('call the tools with the options, name what they say, and let go of a stick that is gone', async () => {
    const ran: string[] = []
    let answer: ProcessResult = ok
    const processes = {
      glob: async () => [],
      run: async (command: readonly string[]) => {
        ran.push(command.join(' '))
        return answer
      },
    }
    const run = scratch()
    const sticks = kernelSticks(nodeSys(kernel([BOARD])), processes, run)
    const stick = { name: 'sdz1', identity: '' }
    expect(await sticks.mount(stick, 'vfat', 'ro')).toBe(join(run, 'stick'))
    await sticks.unmount()
    answer = { exit: 32, timedOut: false, said: 'mount: unknown filesystem type\n' }
    await expect(sticks.mount(stick, 'exfat', 'ro')).rejects.toMatchObject({
      code: 'USB_MOUNT',
      message: '/dev/sdz1 (exfat) cannot be mounted: mount: unknown filesystem type',
    })
    await sticks.unmount()
    expect(ran).toEqual([
      `mount -t vfat -o ro,nosuid,nodev,noexec /dev/sdz1 ${run}/stick`,
      `umount ${run}/stick`,
      `mount -t exfat -o ro,nosuid,nodev,noexec /dev/sdz1 ${run}/stick`,
      `umount ${run}/stick`,
      `umount -l ${run}/stick`,
    ])
    expect(await codeOfAsync(() => sticks.fileSystem(stick))).toBe('USB_MOUNT')
    expect(await codeOfAsync(() => sticks.fileSystem({ name: 'null', identity: '' }))).toBe('USB_FILE_SYSTEM')
  })
})
