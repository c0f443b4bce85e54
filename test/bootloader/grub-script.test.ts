import { spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { COMMITTED_NOTE, decodeNote, encodeNote } from '../../bootloader/committed-note.ts'
import { readBlock } from '../../bootloader/grub-block.ts'
import { chooseCopy, decodeCopy, encodeCopy } from '../../bootloader/grub-env.ts'
import { FILES, layoutImage } from '../../bootloader/layout.ts'
import {
  arm,
  type BootWorld,
  freshState,
  GOOD_WORLD,
  NO_STARTS,
  onBoot,
  type Starts,
} from '../../bootloader/machine.ts'
import { decodeReason, encodeReason } from '../../bootloader/reason.ts'
import { type BootState, otherSlot, SLOTS, type Slot } from '../../bootloader/state.ts'
import { openBackend, openRepairer } from '../../device/agent/backends.ts'
import { makeData } from '../../publisher/disk/data.ts'
import { NO_EDGE } from '../helpers/backend-edge.ts'
import { copyInto, type Disk, makeDisk, readAt, writeAt } from '../helpers/disk.ts'
import { grubDecides, loadableDisk } from '../helpers/grub-emu.ts'
import { have, run } from '../helpers/run.ts'

/** grub.cfg under the real GRUB, disk by disk against the pure machine. */

const ready = have('grub-emu', 'sgdisk', 'mkfs.fat', 'mcopy')
// Hundreds of small disks: memory is kinder to them than a disk.
const scratch = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()
const dir = mkdtempSync(join(scratch, 'bistable-grub-test-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

let template: Disk

beforeAll(() => {
  if (!ready) return
  template = loadableDisk(dir)
})

interface Case {
  readonly name: string
  readonly copies: readonly [Uint8Array, Uint8Array]
  readonly starts: Starts
  /** Slots whose boot image is destroyed. */
  readonly lost: readonly Slot[]
}

const GARBAGE = Uint8Array.from({ length: 1024 }, (_, n) => (n * 37 + 11) % 256)

/** Writes a disk for each case, has GRUB decide about all of them, and compares each with the machine. */
function compare(cases: readonly Case[]): void {
  const disks = cases.map(({ copies, starts, lost }, n) => {
    const path = join(dir, `case-${n}.img`)
    copyFileSync(template.path, path)
    writeAt(path, template.offsets.bootstate, layoutImage([...copies, encodeReason({ starts, failure: undefined })]))
    for (const slot of lost) writeAt(path, template.offsets[`boot-${slot}`], new Uint8Array(64 * 1024))
    return path
  })
  const decisions = grubDecides(dir, disks)
  for (const [n, each] of cases.entries()) {
    const decoded = [decodeCopy(each.copies[0]), decodeCopy(each.copies[1])] as const
    const counting = chooseCopy(decoded)
    const copy = counting === undefined ? undefined : decoded[counting]
    const state = copy?.kind === 'valid' ? copy.state : undefined
    const world: BootWorld = {
      starts: each.starts,
      // GRUB refuses to write to a block without its header.
      writable: readBlock(each.copies[counting === 0 ? 1 : 0]) !== undefined,
      loadable: { a: !each.lost.includes('a'), b: !each.lost.includes('b') },
    }
    const wanted = onBoot(state, world)
    const got = decisions[n]
    const label = `${each.name}\n${got?.text}`
    expect(got?.paused, label).toBe(wanted.pause)
    if (wanted.slot === undefined) {
      expect(got?.fields, label).toBeUndefined()
      continue
    }
    const { slot, boot, why, left } = wanted
    const release = slot === 'a' ? '0.1' : '0.2'
    expect(got?.fields, label).toEqual({ slot, boot, why, left: String(left), release })
    checkDisk(disks[n] ?? '', each, wanted, label)
  }
  for (const disk of disks) rmSync(disk)
}

/** What GRUB wrote: the other copy when it counted down, one more start, and not a byte besides. */
function checkDisk(path: string, each: Case, wanted: ReturnType<typeof onBoot>, label: string): void {
  const decoded = [decodeCopy(each.copies[0]), decodeCopy(each.copies[1])] as const
  const copies = [...each.copies] as [Uint8Array, Uint8Array]
  if (wanted.newState !== undefined) copies[chooseCopy(decoded) === 0 ? 1 : 0] = encodeCopy(wanted.newState)
  const starts = { ...each.starts }
  if (wanted.slot !== undefined) starts[wanted.slot] = Math.min(9, starts[wanted.slot] + 1)
  const image = layoutImage([...copies, encodeReason({ starts, failure: undefined })])
  const found = readAt(path, template.offsets.bootstate, image.length)
  for (const { name, offset } of FILES) {
    const part = (bytes: Uint8Array): string => Buffer.from(bytes.subarray(offset, offset + 1024)).toString('latin1')
    if (!decodable(each, name)) continue
    expect(part(found), `${name} ${label}`).toBe(part(image))
  }
  expect(Buffer.compare(found.subarray(0, FILES[0].offset), image.subarray(0, FILES[0].offset)), label).toBe(0)
}

/** GRUB changes variables in place, so a damaged block that it writes to keeps the rest of its damage. */
function decodable(each: Case, name: string): boolean {
  if (name === 'state0.env') return decodeCopy(each.copies[0]).kind === 'valid'
  if (name === 'state1.env') return decodeCopy(each.copies[1]).kind === 'valid'
  return true
}

function orByte(path: string, at: number, bits: number): void {
  writeAt(path, at, Uint8Array.from([(readAt(path, at, 1)[0] ?? 0) | bits]))
}

function allStates(generation: number): BootState[] {
  const states: BootState[] = []
  for (const primary of SLOTS) {
    for (const spare of [false, true]) states.push({ generation, primary, trial: undefined, left: 0, spare })
    for (let left = 0; left <= 9; left++)
      states.push({ generation, primary, trial: otherSlot(primary), left, spare: false })
  }
  return states
}

describe.skipIf(!ready)('grub.cfg decides as the machine does', () => {
  const plain = { starts: NO_STARTS, lost: [] }

  test('C7 every state, in either copy, beside an older copy, a torn one and garbage', () => {
    const cases: Case[] = []
    for (const state of allStates(41)) {
      const good = encodeCopy(state)
      const older = encodeCopy({ generation: 40, primary: 'b', trial: undefined, left: 0, spare: true })
      const torn = Uint8Array.from(encodeCopy({ ...freshState('b'), generation: 42 }))
      torn.set(encodeCopy(freshState('a')).subarray(60, 512), 60)
      for (const [what, other] of [
        ['older', older],
        ['torn', torn],
        ['garbage', GARBAGE],
      ] as const) {
        cases.push({ ...plain, name: `${JSON.stringify(state)} first, ${what}`, copies: [good, other] })
        cases.push({ ...plain, name: `${JSON.stringify(state)} second, ${what}`, copies: [other, good] })
      }
    }
    expect(cases.length).toBe(144)
    compare(cases)
  })

  test('two copies of one generation: fewer tries left is newer', () => {
    const cases: Case[] = []
    for (let first = 0; first <= 9; first++)
      for (let second = 0; second <= 9; second++) {
        const copy = (left: number) =>
          encodeCopy({ generation: 9_999_999_999, primary: 'a', trial: 'b', left, spare: false })
        cases.push({ ...plain, name: `${first} and ${second}`, copies: [copy(first), copy(second)] })
      }
    compare(cases)
  })

  test('the arming write torn at every byte that it changes', () => {
    const before = freshState('a')
    const armed = arm({ ...before, generation: 98 }, 'b')
    const cases: Case[] = []
    for (let cut = 20; cut <= 84; cut++)
      for (const fill of [encodeCopy({ ...before, generation: 97 }), GARBAGE]) {
        const torn = Uint8Array.from(fill)
        torn.set(encodeCopy(armed).subarray(0, cut))
        cases.push({ ...plain, name: `cut at ${cut}`, copies: [torn, encodeCopy({ ...before, generation: 98 })] })
      }
    compare(cases)
  })

  test('C7 broken primaries, spares and nothing readable at all', () => {
    const cases: Case[] = []
    const states = [...allStates(5).filter((s) => s.left <= 1), undefined]
    const older = encodeCopy({ ...freshState('b'), generation: 4 })
    for (const state of states)
      for (const a of [0, 5, 6, 9])
        for (const b of [0, 6])
          for (const up of ['a', 'b', undefined] as const) {
            if (state !== undefined && up !== 'a') continue
            const copy = state === undefined ? GARBAGE : encodeCopy(state)
            const name = `${JSON.stringify(state)} starts ${a} ${b} up ${up}`
            cases.push({ name, copies: [copy, state === undefined ? GARBAGE : older], starts: { a, b, up }, lost: [] })
          }
    compare(cases)
  })

  test('boot images that are not there', () => {
    const cases: Case[] = []
    for (const state of [...allStates(5).filter((s) => s.left <= 1), undefined])
      for (const lost of [['a'], ['b'], ['a', 'b']] as const) {
        const copy = state === undefined ? GARBAGE : encodeCopy(state)
        cases.push({ name: `${JSON.stringify(state)} lost ${lost}`, copies: [copy, GARBAGE], starts: NO_STARTS, lost })
      }
    compare(cases)
  })

  test('no state at all: the note on the data partition is believed, also from a journal that was never replayed', async () => {
    const mounted = join(dir, 'noted.img')
    const sizes = { esp: 64, bootstate: 1024, 'boot-a': 256, 'rootfs-a': 64, 'boot-b': 256, 'rootfs-b': 64, data: 4096 }
    const noted = makeDisk(mounted, sizes)
    for (const slot of SLOTS) copyInto(noted, `boot-${slot}`, join(dir, `boot-${slot}`))
    const options = { offset: noted.offsets.data, size: 4 << 20, uuid: randomUUID(), time: 1_700_000_000, workDir: dir }
    const worlds: { disk: string; world: BootWorld }[] = []
    for (const content of ['a', 'b', 'c', undefined] as const) {
      const bytes = content === undefined ? Buffer.from('not a block') : encodeNote(content as Slot)
      await makeData(mounted, [{ path: `bistable/${COMMITTED_NOTE}`, bytes }], options)
      const noted = content === undefined ? undefined : decodeNote(bytes)
      for (const [a, b] of [
        [0, 0],
        [6, 0],
        [0, 6],
        [6, 6],
      ] as const)
        for (const up of ['a', 'b', undefined] as const)
          for (const dirty of [false, true]) {
            const disk = join(dir, `noted-${worlds.length}.img`)
            copyFileSync(mounted, disk)
            const starts = { a, b, up }
            const reason = encodeReason({ starts, failure: undefined })
            writeAt(disk, template.offsets.bootstate, layoutImage([GARBAGE, GARBAGE, reason]))
            // "Needs recovery", as after a power cut: s_feature_incompat of the superblock.
            if (dirty) orByte(disk, options.offset + 1024 + 0x60, 0x04)
            worlds.push({ disk, world: { ...GOOD_WORLD, starts, noted } })
          }
    }
    const decisions = grubDecides(
      dir,
      worlds.map(({ disk }) => disk),
    )
    for (const [n, { world }] of worlds.entries()) {
      const { slot, boot, why } = onBoot(undefined, world)
      expect(decisions[n]?.fields, `${JSON.stringify(world)}\n${decisions[n]?.text}`).toMatchObject({ slot, boot, why })
    }
    // The whole partition is gone: nothing is left but the note.
    const lost = worlds.find(({ world }) => world.noted === 'b')?.disk ?? ''
    writeAt(lost, template.offsets.bootstate, new Uint8Array(1 << 20))
    expect(grubDecides(dir, [lost])[0]?.fields).toMatchObject({ slot: 'b', boot: 'fallback', why: 'state-unreadable' })
    for (const { disk } of worlds) rmSync(disk)
  })

  test('a whole trial, boot after boot on one disk', () => {
    const path = join(dir, 'story.img')
    copyFileSync(template.path, path)
    const at = template.offsets.bootstate
    const state = arm(freshState('a'), 'b')
    writeAt(
      path,
      at,
      layoutImage([
        encodeCopy(freshState('a')),
        encodeCopy(state),
        encodeReason({ starts: NO_STARTS, failure: undefined }),
      ]),
    )
    const seen = Array.from({ length: 5 }, () => grubDecides(dir, [path])[0]?.fields)
    expect(seen.map((f) => `${f?.['slot']} ${f?.['boot']} ${f?.['left']} ${f?.['why']}`)).toEqual([
      ...['b try 2 ok', 'b try 1 ok', 'b try 0 ok', 'a fallback 0 tries-spent', 'a fallback 0 tries-spent'],
    ])
    expect(decodeReason(readAt(path, at + FILES[2].offset, 1024)).starts).toEqual({ a: 2, b: 3, up: undefined })
    rmSync(path)
  })

  test('a file system that is full: tries are counted all the same, the agent refuses it, repair keeps the state', async () => {
    const path = join(dir, 'full.img')
    copyFileSync(template.path, path)
    const at = template.offsets.bootstate
    const blocks = [encodeCopy(freshState('a')), encodeCopy(arm(freshState('a'), 'b'))] as const
    writeAt(path, at, layoutImage([...blocks, encodeReason({ starts: NO_STARTS, failure: undefined })]))
    const filler = join(dir, 'filler')
    writeFileSync(filler, Buffer.alloc(2028 * 512))
    run('mcopy', ['-i', `${path}@@${at}`, filler, '::junk'])
    expect(() => run('mcopy', ['-i', `${path}@@${at}`, filler, '::more'])).toThrow(/[Ff]ull/)
    const seen = Array.from({ length: 4 }, () => grubDecides(dir, [path])[0]?.fields)
    expect(seen.map((f) => `${f?.['slot']} ${f?.['boot']} ${f?.['left']}`)).toEqual([
      ...['b try 2', 'b try 1', 'b try 0', 'a fallback 0'],
    ])
    const partition = join(dir, 'full.part')
    writeFileSync(partition, readAt(path, at, 1 << 20))
    const given = { bootstate: partition }
    await expect(openBackend(given, NO_EDGE)).rejects.toMatchObject({ code: 'BOOT_STATE_LAYOUT' })
    const repairer = await openRepairer(given, NO_EDGE)
    const { state } = await repairer.survey()
    if (state === undefined) throw new Error('no state')
    expect(state).toEqual({ ...arm(freshState('a'), 'b'), left: 0 })
    expect(await repairer.restore(state, 'a')).toEqual(['wrote the file system around them'])
    await repairer.close()
    const backend = await openBackend(given, NO_EDGE)
    expect(await backend.read()).toMatchObject({ state, torn: false })
    await backend.close()
    rmSync(path)
  })

  test.skipIf(process.getuid?.() !== 0)('a boot state that cannot be written boots the primary', () => {
    const path = join(dir, 'readonly.img')
    copyFileSync(template.path, path)
    const state = arm(freshState('a'), 'b')
    writeAt(
      path,
      template.offsets.bootstate,
      layoutImage([
        encodeCopy(freshState('a')),
        encodeCopy(state),
        encodeReason({ starts: NO_STARTS, failure: undefined }),
      ]),
    )
    chmodSync(path, 0o444)
    chmodSync(dir, 0o755)
    const [got] = grubDecides(dir, [path], { uid: 65534, gid: 65534 })
    const { slot, boot, why, left } = onBoot(state, { ...GOOD_WORLD, writable: false })
    expect(got?.fields, got?.text).toEqual({ slot, boot, why, left: String(left), release: '0.1' })
    rmSync(path)
  })
})

test.skipIf(!ready)('C13 a closed image shows no menu, whatever key is held', () => {
  const text = readFileSync(new URL('../../bootloader/grub.cfg', import.meta.url), 'utf8')
  const found = /^function bs_ask_menu \{.*?^\}$/ms.exec(text)?.[0] ?? ''
  // Shift is held; grub-emu has no keyboard to ask.
  const held = found.replace('keystatus --shift', 'true').replace('"$grub_platform" != emu', '1 = 1')
  expect(held).not.toBe(found)
  const config = join(dir, 'menu')
  mkdirSync(config)
  const asks = ['0 0', '0 1', '5 0'].map((words) => {
    const [seconds, closed] = words.split(' ')
    return `set bs_menu_seconds=${seconds}\nset bs_closed=${closed}\nbs_ask_menu\necho "menu=$bs_menu;"\n`
  })
  writeFileSync(join(config, 'grub.cfg'), `${held}\n${asks.join('')}exit\n`)
  writeFileSync(join(config, 'device.map'), '')
  const done = spawnSync('grub-emu', ['-m', join(config, 'device.map'), '-d', config], {
    encoding: 'latin1',
    input: '',
    timeout: 60_000,
    env: { ...process.env, TERM: 'dumb', COLUMNS: '500' },
  })
  expect(done.stdout.match(/menu=\d+;/g)).toEqual(['menu=30;', 'menu=0;', 'menu=5;'])
})
