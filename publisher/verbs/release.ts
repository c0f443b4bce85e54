import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { humanBytes } from '../../base/bytes.ts'
import { cliErrors, type Invocation, requiredOption, stringOption, type Verb } from '../../base/cli.ts'
import type { GrubPlatform } from '../../bootloader/grub-image.ts'
import { UBOOT_ARCHES } from '../../bootloader/uboot-script.ts'
import { formatNumber } from '../../bundle/fields.ts'
import { MAX_DELTAS } from '../../bundle/freshness.ts'
import { MAX_ENVELOPE_BYTES } from '../../keys/dsse.ts'
import { readRequired } from '../../keys/files.ts'
import { trustAnchor } from '../../keys/root.ts'
import { signerOptions, signersFrom } from '../../keys/signers/options.ts'
import { type DiskBootloader, diskFromBundle } from '../disk/from-bundle.ts'
import type { DataFileSystem } from '../disk/plan.ts'
import { publisherErrors } from '../errors.ts'
import { packBundle } from '../pack.ts'
import { publish } from '../publish.ts'
import { readRoots } from '../roots.ts'
import { signFile, signPaths } from '../sign.ts'
import { numberOption, onePositional, sizeOption } from './options.ts'
import { trustedFrom, trustOptions } from './trust.ts'

/** The verbs behind build: sign, pack, publish, disk. */

export const signVerb: Verb = {
  name: 'sign',
  usage: 'sign BUILD_DIR|STATEMENT|ENVELOPE --key KEY…',
  summary: 'Sign a statement. Reads the statement and the keys, nothing else.',
  options: {
    ...signerOptions,
    output: { type: 'string', value: 'FILE', help: 'the envelope (BUILD_DIR/release.json)' },
  },
  run: async (call) => {
    const signers = await signersFrom(call)
    const paths = await signPaths(onePositional(call, 'PATH'), stringOption(call, 'output'))
    const envelope = await signFile(paths, signers)
    const keys = signers.map(({ publicKey }) => publicKey)
    const signatures = envelope.signatures.length
    if (call.json) call.terminal.out(JSON.stringify({ ok: true, output: paths.output, keys, signatures }))
    else call.terminal.out(`${paths.output}: ${signatures} signatures`)
    return 0
  },
}

export const packVerb: Verb = {
  name: 'pack',
  usage: 'pack BUILD_DIR --roots DIR --output FILE [--assignment FILE]',
  summary: 'Put a signed build and the root chain into a bundle, and verify it.',
  options: {
    roots: { type: 'string', value: 'DIR', help: 'folder of N.json root statements' },
    output: { type: 'string', value: 'FILE', help: 'the bundle' },
    assignment: { type: 'string', value: 'FILE', help: "for one device only: what 'bistable assign' wrote for it" },
  },
  run: async (call) => {
    const output = resolve(requiredOption(call, 'output'))
    const roots = await readRoots(requiredOption(call, 'roots'))
    const file = stringOption(call, 'assignment')
    const assignment = file === undefined ? undefined : await readRequired(file, MAX_ENVELOPE_BYTES)
    const head = await packBundle(onePositional(call, 'BUILD_DIR'), roots, output, {
      signal: call.signal,
      ...(assignment === undefined ? {} : { assignment }),
    })
    if (call.json) call.terminal.out(JSON.stringify({ ok: true, output, digest: head.digest, size: head.size }))
    else call.terminal.out(`${output}: ${humanBytes(head.size)}, release ${head.digest}`)
    return 0
  },
}

export const publishVerb: Verb = {
  name: 'publish',
  usage: 'publish BUNDLE… --to DIR --channel NAME --key KEY',
  summary: 'Verify bundles, copy them to a publish folder, and point a channel to the newest.',
  options: {
    ...signerOptions,
    to: { type: 'string', value: 'DIR', help: 'the publish folder' },
    channel: { type: 'string', value: 'NAME', help: 'the channel (stable)' },
    ...trustOptions,
    deltas: { type: 'string', value: 'K', help: 'patches from so many releases before it, 0 to 8 (2)' },
    days: { type: 'string', value: 'N', help: 'how long the channel file is fresh (30)' },
  },
  run: async (call) => {
    if (call.positionals.length === 0) throw cliErrors.USAGE('wanted at least one BUNDLE')
    const channel = stringOption(call, 'channel') ?? 'stable'
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(channel)) throw cliErrors.USAGE(`'${channel}' is no channel name`)
    const validSeconds = validDays(call) * 86_400
    const deltas = deltaCount(call)
    const trusted = await trustedFrom(call)
    const request = {
      bundles: call.positionals,
      to: requiredOption(call, 'to'),
      channel,
      signers: await signersFrom(call),
      now: Date.now(),
      ...{ validSeconds, deltas },
      ...(trusted === undefined ? {} : { trusted }),
    }
    const say = (line: string): void => (call.json ? undefined : call.terminal.out(line))
    const statement = await publish(request, { say, signal: call.signal })
    if (call.json) call.terminal.out(JSON.stringify({ ok: true, ...statement }))
    return 0
  },
}

/** A century is for ever; what is longer has no date. */
function validDays(call: Invocation): number {
  const days = numberOption(call, 'days', 1, 30)
  if (days > 36_525) throw cliErrors.USAGE(`--days is at most 36525, found ${days}`)
  return days
}

function deltaCount(call: Invocation): number {
  const count = numberOption(call, 'deltas', 0, 2)
  if (count > MAX_DELTAS) throw cliErrors.USAGE(`--deltas is at most ${MAX_DELTAS}, found ${count}`)
  return count
}

export const diskVerb: Verb = {
  name: 'disk',
  usage: 'disk BUNDLE --root root.json --output disk.img',
  summary: 'Make a flashable disk image with the release in slot a.',
  options: {
    root: { type: 'string', value: 'FILE', help: 'the root statement you trust (an envelope)' },
    output: { type: 'string', value: 'FILE', help: 'the disk image, a sparse file' },
    size: { type: 'string', value: 'SIZE', help: 'the whole disk; data takes what is left' },
    'slot-rootfs': { type: 'string', value: 'SIZE', help: 'each rootfs slot (twice what this release needs)' },
    'slot-boot': { type: 'string', value: 'SIZE', help: 'each boot slot (twice what this release needs)' },
    data: { type: 'string', value: 'SIZE', help: 'the data partition (512M)' },
    'data-fs': { type: 'string', value: 'NAME', help: 'ext4 or btrfs, which takes snapshots (ext4)' },
    bootloader: { type: 'string', value: 'NAME', help: 'grub or uboot (grub)' },
    arch: {
      type: 'string',
      value: 'NAME',
      help: 'grub: x86_64 or arm64 (x86_64); uboot: arm64, arm or x86_64 (arm64)',
    },
    firmware: { type: 'string', value: 'NAME', help: 'with grub: uefi, or bios for a PC without it (uefi)' },
    'grub-modules': { type: 'string', value: 'FOLDER', help: "GRUB's modules for that machine (/usr/lib/grub/…)" },
    'uboot-memory': { type: 'string', value: 'ADDRESS', help: "with uboot: free memory, the board's scriptaddr" },
    'menu-seconds': { type: 'string', value: 'N', help: 'boot menu that waits for a person, 1 to 60 (none)' },
    closed: { type: 'boolean', help: 'with grub: no boot menu, not even with Shift held' },
  },
  run: async (call) => {
    const output = resolve(requiredOption(call, 'output'))
    const bootloader = diskBootloader(call)
    if (existsSync(output)) throw publisherErrors.OUTPUT_EXISTS(`${output} exists already`)
    const trusted = trustAnchor(await readRequired(requiredOption(call, 'root'), MAX_ENVELOPE_BYTES))
    const sizes = definedOnly({
      disk: sizeOption(call, 'size'),
      boot: sizeOption(call, 'slot-boot'),
      rootfs: sizeOption(call, 'slot-rootfs'),
      data: sizeOption(call, 'data'),
    })
    const { plan, head } = await diskFromBundle(onePositional(call, 'BUNDLE'), trusted, sizes, output, {
      bootloader,
      dataFileSystem: dataFileSystem(call),
      signal: call.signal,
    })
    if (call.json) call.terminal.out(JSON.stringify({ ok: true, output, digest: head.digest, ...plan }))
    else {
      for (const { name, start, size } of plan.partitions)
        call.terminal.out(`${name.padEnd(10)} ${humanBytes(size).padStart(9)} at ${humanBytes(start)}`)
      const { product, number } = head.statement
      call.terminal.out(`${output}: ${humanBytes(plan.size)}, ${product} ${formatNumber(number)} in slot a`)
    }
    return 0
  },
}

function dataFileSystem(call: Invocation): DataFileSystem {
  const name = stringOption(call, 'data-fs') ?? 'ext4'
  if (name !== 'ext4' && name !== 'btrfs') throw cliErrors.USAGE(`--data-fs is ext4 or btrfs, found '${name}'`)
  return name
}

/** By --arch and --firmware. */
const GRUB_MACHINES: Readonly<Record<string, GrubPlatform>> = {
  'x86_64 uefi': 'x86_64-efi',
  'x86_64 bios': 'i386-pc',
  'arm64 uefi': 'arm64-efi',
}

function diskBootloader(call: Invocation): DiskBootloader {
  const kind = stringOption(call, 'bootloader') ?? 'grub'
  const menuSeconds = numberOption(call, 'menu-seconds', 0, 0)
  const arch = stringOption(call, 'arch')
  const memory = stringOption(call, 'uboot-memory')
  const closed = call.options['closed'] === true
  if (closed && (menuSeconds > 0 || kind !== 'grub'))
    throw cliErrors.USAGE('--closed goes with GRUB and without --menu-seconds')
  if (menuSeconds > 60) throw cliErrors.USAGE(`--menu-seconds is at most 60, found ${menuSeconds}`)
  const modules = stringOption(call, 'grub-modules')
  const firmware = stringOption(call, 'firmware')
  if (kind === 'grub') {
    if (memory !== undefined) throw cliErrors.USAGE('--uboot-memory goes with --bootloader uboot')
    const platform = GRUB_MACHINES[`${arch ?? 'x86_64'} ${firmware ?? 'uefi'}`]
    if (platform === undefined)
      throw cliErrors.USAGE(`GRUB is made for x86_64 (uefi, bios) and arm64 (uefi), found '${arch}' and '${firmware}'`)
    return { kind, menuSeconds, closed, platform, ...(modules === undefined ? {} : { modules: resolve(modules) }) }
  }
  if (firmware !== undefined || modules !== undefined)
    throw cliErrors.USAGE('--firmware and --grub-modules go with --bootloader grub')
  if (kind !== 'uboot') throw cliErrors.USAGE(`--bootloader is grub or uboot, found '${kind}'`)
  if (menuSeconds !== 0) throw cliErrors.USAGE("--menu-seconds goes with GRUB; U-Boot has 'bootdelay'")
  const found = UBOOT_ARCHES.find((known) => known === (arch ?? 'arm64'))
  if (found === undefined) throw cliErrors.USAGE(`--arch is ${UBOOT_ARCHES.join(', ')}, found '${arch}'`)
  if (memory === undefined) return { kind, arch: found }
  if (!/^0x[0-9a-f]{1,9}000$/i.test(memory))
    throw cliErrors.USAGE(`--uboot-memory wants a multiple of 0x1000, found '${memory}'`)
  return { kind, arch: found, memory: Number(memory) }
}

function definedOnly<K extends string>(values: Readonly<Record<K, number | undefined>>): Partial<Record<K, number>> {
  const out: Partial<Record<K, number>> = {}
  for (const key of Object.keys(values) as K[]) if (values[key] !== undefined) out[key] = values[key]
  return out
}
