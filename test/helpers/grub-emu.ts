import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { encodeBootCfg } from '../../bootloader/boot-cfg.ts'
import { SLOTS } from '../../bootloader/state.ts'
import { copyInto, type Disk, makeDisk } from './disk.ts'
import { run } from './run.ts'

/**
 * Runs the real grub.cfg under Debian's grub-emu on disk images: the script decides, writes and prints; it starts
 * nothing. Many disks go through one process, which takes milliseconds each.
 */

const GRUB_CFG = join(import.meta.dirname, '../../bootloader/grub.cfg')
/** GRUB prints this between two disks. */
const MARK = 'disk-done'

export interface GrubDecision {
  /** `key=value` words of the decision line, or undefined when no slot could be loaded. */
  readonly fields: Readonly<Record<string, string>> | undefined
  readonly paused: boolean
  readonly text: string
}

/** A disk for GRUB to decide about: release 0.1 in slot a and 0.2 in slot b, both loadable; no boot state yet. */
export function loadableDisk(dir: string): Disk {
  const sizes = { esp: 64, bootstate: 1024, 'boot-a': 128, 'rootfs-a': 64, 'boot-b': 128, 'rootfs-b': 64, data: 64 }
  const disk = makeDisk(join(dir, 'template.img'), sizes)
  for (const slot of SLOTS) {
    const image = join(dir, `boot-${slot}`)
    const names = ['vmlinuz', 'initrd.img', 'boot.cfg'].map((name) => join(dir, name))
    for (const name of names) writeFileSync(name, 'anything')
    const args = `bistable.root=${'ab'.repeat(32)} bistable.length=4096 console=ttyS0`
    writeFileSync(join(dir, 'boot.cfg'), encodeBootCfg({ release: slot === 'a' ? '0.1' : '0.2', args }))
    run('mkfs.fat', ['-C', image, '128'])
    run('mcopy', ['-i', image, ...names, '::'])
    copyInto(disk, `boot-${slot}`, image)
  }
  return disk
}

/** One decision per disk image, in order. `as`: run as this user (for disks that cannot be written). */
export function grubDecides(dir: string, disks: readonly string[], as?: { uid: number; gid: number }): GrubDecision[] {
  const config = join(dir, 'grub')
  mkdirSync(config, { recursive: true })
  const map = join(config, 'device.map')
  writeFileSync(map, disks.map((disk, n) => `(hd${n}) ${disk}\n`).join(''))
  const lines = disks.map((_, n) => `set root=hd${n},gpt1\nsource (host)${GRUB_CFG}\necho\necho ${MARK}`)
  writeFileSync(join(config, 'grub.cfg'), `${lines.join('\n')}\nexit\n`)
  const done = spawnSync('grub-emu', ['-m', map, '-d', config], {
    encoding: 'latin1',
    input: '',
    timeout: 120_000,
    maxBuffer: 64 * 1024 * 1024,
    env: { ...process.env, TERM: 'dumb', COLUMNS: '500' },
    ...as,
  })
  if (done.status !== 0)
    throw new Error(`grub-emu ended with ${done.status ?? done.signal}: ${done.stderr}${done.stdout.slice(-3000)}`)
  const parts = plain(done.stdout).split(MARK)
  if (parts.length !== disks.length + 1)
    throw new Error(`grub-emu spoke of ${parts.length - 1} of ${disks.length} disks`)
  return parts.slice(0, -1).map(decision)
}

/** Without escape sequences, progress lines and the line breaks that GRUB puts in after 80 columns. */
function plain(text: string): string {
  return text.replace(/\x1b\[[0-9;?]*[a-zA-Z]/g, '').replaceAll('\r', '')
}

function decision(text: string): GrubDecision {
  const line = /bistable: boot (slot=[\s\S]*?release=[0-9.]+)/.exec(text)?.[1]?.replaceAll('\n', '')
  const fields = line === undefined ? undefined : Object.fromEntries(line.split(' ').map((word) => word.split('=')))
  return { fields, paused: /bistable: waiting \d+ seconds/.test(text), text }
}
