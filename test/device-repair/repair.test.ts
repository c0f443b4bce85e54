import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { encodeBootCfg } from '../../bootloader/boot-cfg.ts'
import { openWhole } from '../../bootloader/bootstate.ts'
import { COMMITTED_NOTE, encodeNote } from '../../bootloader/committed-note.ts'
import { encodeCopy } from '../../bootloader/grub-env.ts'
import { BOOTSTATE_BYTES, FILES, METADATA_BYTES } from '../../bootloader/layout.ts'
import { freshState } from '../../bootloader/machine.ts'
import { type BootState, SLOTS, type Slot } from '../../bootloader/state.ts'
import { encodeUbootCopy, isUbootPartition, ubootBootstateImage, ubootStateOn } from '../../bootloader/uboot.ts'
import { openRepairer } from '../../device/agent/backends.ts'
import { EMPTY_BODY, type RecordBody } from '../../device/records/record.ts'
import { RESERVE_BYTES } from '../../device/records/reserve.ts'
import { openRecords } from '../../device/records/store.ts'
import { makeBundle } from '../bundle/fixture.ts'
import { NO_EDGE } from '../helpers/backend-edge.ts'
import { deviceLab, TestDevice } from '../helpers/device.ts'
import { copyInto, type Disk, makeDisk, readAt, writeAt } from '../helpers/disk.ts'
import { grubDecides } from '../helpers/grub-emu.ts'
import { have, run } from '../helpers/run.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})

/** `bistable repair` on real boot state images; afterwards the real GRUB decides from what it made. */

const withGrub = have('grub-emu', 'sgdisk', 'mkfs.fat', 'mcopy')
const root = process.getuid?.() === 0
let lab: Awaited<ReturnType<typeof deviceLab>>
let template: Disk

beforeAll(async () => {
  lab = await deviceLab()
  if (!withGrub) return
  const at = (name: string) => join(lab.base, name)
  const sizes = { esp: 64, bootstate: 1024, 'boot-a': 256, 'rootfs-a': 64, 'boot-b': 256, 'rootfs-b': 64, data: 64 }
  template = makeDisk(at('grub.img'), sizes)
  for (const slot of SLOTS) {
    for (const name of ['vmlinuz', 'initrd.img']) writeFileSync(at(name), name)
    const args = `bistable.root=${'ab'.repeat(32)} bistable.length=4096`
    writeFileSync(at('boot.cfg'), encodeBootCfg({ release: slot === 'a' ? '0.1' : '0.2', args }))
    run('mkfs.fat', ['-C', at(`boot-${slot}`), '256'])
    run('mcopy', ['-i', at(`boot-${slot}`), at('vmlinuz'), at('initrd.img'), at('boot.cfg'), '::'])
    copyInto(template, `boot-${slot}`, at(`boot-${slot}`))
  }
})
afterAll(() => lab.remove())

const state = (change: Partial<BootState> = {}): BootState => ({ ...freshState('a'), generation: 7, ...change })
const facts = (digit: string, counter: number, committed = true) => ({
  ...{ digest: digit.repeat(64) as never, number: { epoch: 0, counter }, version: `1.${counter}`, committed },
})

/** A device whose boot state says `good`, running from `slot` as the bootloader's words say. */
async function device(good: BootState, words = 'slot=a boot=committed left=0 why=ok', body?: Partial<RecordBody>) {
  const made = await TestDevice.make(lab.base, lab.program)
  const line = words.split(' ').map((word) => `bistable.${word}`)
  writeFileSync(join(made.root, 'proc/cmdline'), `quiet bistable.floor=0.1 bistable.release=0.2 ${line.join(' ')}\n`)
  // A used partition: copies of two generations.
  put(made, FILES[0].offset, encodeCopy({ ...freshState('a'), generation: good.generation - 1 }))
  put(made, FILES[1].offset, encodeCopy(good))
  if (body !== undefined) {
    const store = await openRecords(join(made.root, 'data/bistable'), undefined, nodeFiles)
    await store.save({ ...EMPTY_BODY, ...body })
  }
  return made
}

const place = (made: TestDevice) => join(made.root, 'disk/bootstate')
const put = (made: TestDevice, offset: number, bytes: Uint8Array) => writeAt(place(made), offset, bytes)
const note = (made: TestDevice, slot: Slot) => {
  mkdirSync(join(made.root, 'data/bistable'), { recursive: true })
  writeFileSync(join(made.root, 'data/bistable', COMMITTED_NOTE), encodeNote(slot))
}
const GARBAGE = Uint8Array.from({ length: 1024 }, (_, n) => (n * 37 + 11) % 256)

/** What the real GRUB makes of the repaired partition. */
function grub(made: TestDevice) {
  const disk = join(lab.base, 'decide.img')
  copyFileSync(template.path, disk)
  writeAt(disk, template.offsets.bootstate, readFileSync(place(made)))
  const [decision] = grubDecides(lab.base, [disk])
  rmSync(disk)
  return decision?.fields
}

const damages: readonly (readonly [string, readonly string[], (made: TestDevice) => void])[] = [
  ['the copy that counts', ['state1.env'], (d) => put(d, FILES[1].offset, GARBAGE)],
  ['the older copy', ['state0.env'], (d) => put(d, FILES[0].offset, new Uint8Array(512))],
  ['half of a sector', ['state1.env'], (d) => put(d, FILES[1].offset + 40, GARBAGE.subarray(0, 60))],
  ['the boot sector', ['layout'], (d) => put(d, 0, new Uint8Array(512))],
  ['the file sizes in the directory', ['layout'], (d) => put(d, 13 * 512 + 28, Uint8Array.from([0, 2, 0, 0]))],
  ['the allocation tables', ['layout'], (d) => put(d, 512, GARBAGE)],
  ['reason.env', ['reason.env'], (d) => put(d, FILES[2].offset, GARBAGE)],
  [
    'layout and one copy',
    ['layout', 'state0.env'],
    (d) => {
      put(d, 0, GARBAGE)
      put(d, FILES[0].offset, GARBAGE)
    },
  ],
]

describe.skipIf(!withGrub)('what a good copy still says is restored', () => {
  for (const [name, parts, damage] of damages)
    it(name, async () => {
      const made = await device(state({ primary: 'b', spare: true }), 'slot=b boot=committed left=0 why=ok')
      // So that either copy says the same when the other is lost.
      put(made, FILES[0].offset, encodeCopy(state({ primary: 'b', spare: true, generation: 6 })))
      damage(made)
      const { exit, json, out } = await made.run(['repair', '--json'])
      expect({ exit, out }).toMatchObject({ exit: 0 })
      const found = json['found'] as { name: string; ok: boolean }[]
      expect(
        found
          .filter((part) => !part.ok)
          .map((part) => part.name)
          .sort(),
      ).toEqual([...parts].sort())
      expect(json).toMatchObject({
        ok: true,
        state: { primary: 'b', spare: true },
        because: 'a copy of the boot state is good',
      })
      expect(await made.bootState()).toMatchObject({ primary: 'b', trial: undefined, spare: true })
      expect(grub(made)).toMatchObject({ slot: 'b', boot: 'committed', why: 'ok' })
      // Once more: nothing is left to do, and not a byte is written.
      const before = made.digests()
      expect((await made.run(['repair', '--json'])).json).toMatchObject({ did: [], message: 'nothing was damaged' })
      expect(made.digests()).toEqual(before)
    })

  it('by any start of the agent too, where only what stands around a good copy is lost', async () => {
    const made = await device(state({ trial: 'b', left: 2 }))
    put(made, 0, GARBAGE)
    const { err } = await made.run(['health'])
    expect(err).toContain('the boot state partition was damaged: wrote the file system around them')
    expect(await made.bootState()).toMatchObject({ primary: 'a', trial: 'b', left: 2 })
    // Without a good copy nothing is made up.
    lose(made)
    const before = made.digests()
    await made.run(['health'])
    expect(made.digests()).toEqual(before)
  })

  it('a partition that is whole is not written', async () => {
    const made = await device(state({ trial: 'b', left: 2 }))
    const before = made.digests()
    const { out } = await made.run(['repair'])
    expect(out).toContain('nothing was damaged')
    expect(out).toMatch(/layout +ok/)
    expect(made.digests()).toEqual(before)
  })
})

const lose = (made: TestDevice) => {
  put(made, 0, new Uint8Array(BOOTSTATE_BYTES))
}

describe.skipIf(!withGrub)('a blank partition is made from what the device knows', () => {
  it('the note on the data partition names the slot that was committed last', async () => {
    const slots = { a: facts('a', 2), b: facts('b', 3) }
    const made = await device(state(), 'slot=b boot=fallback left=0 why=state-unreadable', { slots })
    note(made, 'b')
    lose(made)
    const lost = (await made.run(['status', '--json'])).json
    expect(lost).toMatchObject({
      boot: { problem: { code: 'BOOT_STATE_LAYOUT' } },
      running: { slot: 'b', why: 'state-unreadable' },
    })
    const { json } = await made.run(['repair', '--json'])
    expect(json).toMatchObject({ ok: true, state: { primary: 'b', spare: true } })
    expect((await made.run(['status', '--json'])).json).toMatchObject({
      boot: { problem: null },
      slots: { b: { role: 'primary' } },
    })
    expect((json['found'] as { name: string; detail: string }[])[0]).toMatchObject({ name: 'layout', detail: 'blank' })
    expect(grub(made)).toMatchObject({ slot: 'b', boot: 'committed', why: 'ok' })
  })

  it('a spare under the security floor is none', async () => {
    const slots = { a: facts('a', 2), b: facts('b', 3) }
    const securityFloor = { epoch: 0, counter: 3 }
    const made = await device(state(), 'slot=b boot=committed left=0 why=ok', { slots, securityFloor })
    lose(made)
    expect((await made.run(['repair', '--json'])).json).toMatchObject({ state: { primary: 'b', spare: false } })
  })

  it('a try that runs goes on as one', async () => {
    const made = await device(state(), 'slot=b boot=try left=1 why=ok', { slots: { b: facts('b', 2, false) } })
    note(made, 'a')
    lose(made)
    const { json } = await made.run(['repair', '--json'])
    expect(json).toMatchObject({ state: { primary: 'a', trial: 'b', left: 1 } })
    expect(grub(made)).toMatchObject({ slot: 'b', boot: 'try', left: '0' })
  })

  it('what nobody knows is asked, not guessed', async () => {
    const made = await device(state(), 'slot=a boot=fallback left=0 why=state-unreadable')
    lose(made)
    const before = made.digests()
    const refused = await made.run(['repair', '--json'])
    expect(refused.json).toMatchObject({
      ok: false,
      error: { code: 'REPAIR_UNDECIDED', next: expect.stringContaining('--slot') },
    })
    expect(made.digests()).toEqual(before)
    expect((await made.run(['repair'])).err).toContain('found state0.env damaged: no GRUB environment block')
    const told = await made.run(['repair', '--slot', 'b'])
    expect(told.out).toContain('slot b primary, the other slot can be returned to (a person said so)')
    expect(grub(made)).toMatchObject({ slot: 'b', boot: 'committed' })
    expect(await made.run(['repair', '--slot', 'c'])).toMatchObject({ exit: 2 })
  })

  it('a person cannot overrule a good copy', async () => {
    const made = await device(state())
    put(made, FILES[0].offset, GARBAGE)
    expect((await made.run(['repair', '--slot', 'b', '--json'])).json).toMatchObject({ error: { code: 'AGENT_STATE' } })
  })

  it('a partition that is too small is not one', async () => {
    const made = await device(state())
    truncateSync(place(made), BOOTSTATE_BYTES - 512)
    const { json } = await made.run(['repair', '--json'])
    expect(json).toMatchObject({ ok: false, error: { code: 'BOOT_STATE_SIZE' } })
  })

  it('every prefix of a repair leaves nothing readable or the right slot', async () => {
    const made = await device(state({ primary: 'b' }), 'slot=b boot=committed left=0 why=ok')
    lose(made)
    const before = readFileSync(place(made))
    expect(await made.run(['repair'])).toMatchObject({ exit: 0 })
    const after = readFileSync(place(made))
    // The order that repair writes in: copies, reason, then the file system, sector by sector.
    const order = [
      ...FILES.map(({ offset }) => offset),
      ...Array.from({ length: METADATA_BYTES / 512 }, (_, n) => n * 512),
    ]
    const seen = order.map((_, cut) => {
      writeFileSync(place(made), before)
      for (const offset of order.slice(0, cut + 1)) put(made, offset, after.subarray(offset, offset + 512))
      return grub(made)
    })
    // Without any state, note or reason GRUB can only start the first slot; it must never say that it was committed.
    for (const fields of seen)
      expect(fields?.['boot'] === 'committed' ? fields['slot'] : 'b', JSON.stringify(fields)).toBe('b')
    expect(seen.at(-1)).toMatchObject({ slot: 'b', boot: 'committed' })
  })
})

describe('records', () => {
  it('a slot whose content proves its kept statement is recorded again', async () => {
    const made = await TestDevice.make(lab.base, lab.program)
    const bundle = await makeBundle()
    expect(await made.run(['install', bundle.path])).toMatchObject({ exit: 0 })
    for (const name of ['0', '1']) rmSync(join(made.root, 'data/bistable/records', name))
    lose(made)
    const { json, out } = await made.run(['repair', '--json'])
    expect(json, out).toMatchObject({
      state: { primary: 'a', left: 0, spare: false },
      slots: [
        { slot: 'a', known: 'nothing' },
        { slot: 'b', detail: 'proved by its content' },
      ],
    })
    const status = (await made.run(['status', '--json'])).json
    expect(status['slots']).toMatchObject({ b: { release: '0.7', committed: false } })
    // One byte of it changed: it proves nothing any more.
    writeAt(join(made.root, 'disk/rootfs-b'), 4096, Uint8Array.from([1, 2, 3]))
    for (const name of ['0', '1']) rmSync(join(made.root, 'data/bistable/records', name), { force: true })
    const again = (await made.run(['repair', '--json'])).json
    expect((again['slots'] as { detail: string }[])[1]?.detail).toMatch(/^not proved: rootfs: /)
  })
})

/** The data folder on a small ext4 of its own, filled to the last block. */
async function onFullData(made: TestDevice, work: () => Promise<void>): Promise<void> {
  const image = join(made.root, 'data.img')
  writeFileSync(image, '')
  truncateSync(image, 4 << 20)
  run('mke2fs', ['-q', '-t', 'ext4', '-m', '0', image])
  const folder = join(made.root, 'data')
  run('mount', ['-o', 'loop', image, folder])
  try {
    await work()
  } finally {
    run('umount', [folder])
  }
}

function fill(folder: string): void {
  for (const [n, size] of [65536, 4096, 1].entries())
    for (let i = 0; i < 2000; i++)
      try {
        writeFileSync(join(folder, `fill-${n}-${i}`), Buffer.alloc(size, 1))
      } catch {
        break
      }
  expect(() => writeFileSync(join(folder, 'more'), Buffer.alloc(8192, 1))).toThrow(/ENOSPC/)
}

describe.skipIf(!root)('a full data partition', () => {
  const slots = { a: facts('a', 2), b: facts('b', 1) }

  it('lets a person roll back, cancel and repair, and the record keeps up', async () => {
    const made = await device(state({ spare: true }))
    await onFullData(made, async () => {
      const records = join(made.root, 'data/bistable')
      const store = await openRecords(records, undefined, nodeFiles)
      await store.save({ ...EMPTY_BODY, slots })
      expect(await made.run(['health'])).toMatchObject({ exit: 0 })
      expect(statSync(join(records, 'reserve')).size).toBe(RESERVE_BYTES)
      fill(join(made.root, 'data'))
      expect(await made.run(['rollback', '--json'])).toMatchObject({ exit: 0 })
      expect(await made.bootState()).toMatchObject({ trial: 'b', left: 3 })
      expect((await made.run(['status', '--json'])).json).toMatchObject({ state: 'armed', problems: [] })
      expect(await made.run(['cancel', '--json'])).toMatchObject({ exit: 0 })
      expect(await made.bootState()).toMatchObject({ trial: undefined })
      expect((await made.run(['status', '--json'])).json).toMatchObject({ state: 'idle', problems: [] })
      put(made, FILES[0].offset, GARBAGE)
      put(made, FILES[1].offset, GARBAGE)
      expect((await made.run(['repair', '--json'])).json).toMatchObject({ ok: true, state: { primary: 'a' } })
      expect((await made.run(['status', '--json'])).json).toMatchObject({ lastOutcome: { what: 'repair' } })
    })
  })

  it('even when somebody took the reserve, the boot state is what counts', async () => {
    const made = await device(state({ spare: true }))
    await onFullData(made, async () => {
      const store = await openRecords(join(made.root, 'data/bistable'), undefined, nodeFiles)
      await store.save({ ...EMPTY_BODY, slots })
      fill(join(made.root, 'data'))
      expect(existsSync(join(made.root, 'data/bistable/reserve'))).toBe(false)
      const rolled = await made.run(['rollback'])
      expect(rolled).toMatchObject({ exit: 0, err: expect.stringContaining('the record cannot be written') })
      expect(await made.bootState()).toMatchObject({ trial: 'b', left: 3 })
      expect(await made.run(['cancel'])).toMatchObject({ exit: 0 })
      expect(await made.bootState()).toMatchObject({ trial: undefined, primary: 'a' })
    })
  })
})

it('a boot state that another program keeps is not repaired from here', async () => {
  const elsewhere = { boot: { kind: 'elsewhere' } } as never
  await expect(openRepairer(elsewhere, NO_EDGE)).rejects.toMatchObject({
    code: 'REPAIR_UNSUPPORTED',
  })
})

/** Sectors of the boot state partition that cannot be read until they are written, as a medium loses them. */
async function loseSectors(made: TestDevice, lost: readonly number[]): Promise<void> {
  const handle = await open(place(made), 'r')
  const prototype: FileHandle = Object.getPrototypeOf(handle)
  await handle.close()
  const left = new Set(lost)
  const here = ({ fd }: FileHandle) => readlinkSync(`/proc/self/fd/${fd}`) === place(made)
  type Call = (...given: unknown[]) => Promise<never>
  const [read, write] = [prototype.read as Call, prototype.write as Call]
  vi.spyOn(prototype, 'read').mockImplementation(async function (this: FileHandle, ...given: unknown[]) {
    const [, , length, position] = given as [unknown, unknown, number, number]
    if (here(this) && [...left].some((n) => n * 512 < position + length && (n + 1) * 512 > position))
      throw Object.assign(new Error('EIO: i/o error, read'), { code: 'EIO' })
    return await read.apply(this, given)
  })
  vi.spyOn(prototype, 'write').mockImplementation(async function (this: FileHandle, ...given: unknown[]) {
    const [, , length, position] = given as [unknown, unknown, number, number]
    if (here(this)) for (const n of left) if (n * 512 >= position && (n + 1) * 512 <= position + length) left.delete(n)
    return await write.apply(this, given)
  })
}

describe('a medium that has lost sectors', () => {
  const armed = state({ trial: 'b', left: 2 })
  const cases: readonly (readonly [string, readonly number[]])[] = [
    ['the first', [0]],
    ['in the tables', [3]],
    ['in a copy', [FILES[0].offset / 512]],
    ['the last', [BOOTSTATE_BYTES / 512 - 1, 0]],
  ]
  for (const uboot of [false, true])
    for (const [what, lost] of cases)
      it(`${what}, ${uboot ? 'U-Boot' : 'GRUB'}: a good copy counts, and they are written anew`, async () => {
        const made = await device(armed)
        if (uboot) {
          writeFileSync(place(made), ubootBootstateImage(armed))
          put(made, FILES[1].offset, encodeUbootCopy({ ...armed, generation: 6 }, 0))
        }
        await loseSectors(made, lost)
        try {
          expect((await made.run(['repair', '--json'])).json).toMatchObject({
            ok: true,
            state: { trial: 'b', left: 2 },
          })
          expect((await made.run(['repair', '--json'])).json).toMatchObject({ did: [] })
          const { json } = await made.run(['status', '--json'])
          expect(json).toMatchObject({ boot: { problem: null }, slots: { b: { role: 'trial', triesLeft: 2 } } })
        } finally {
          vi.restoreAllMocks()
        }
      })

  it('by an agent that starts, which then takes back what is armed', async () => {
    const made = await device(armed)
    await loseSectors(made, [0])
    try {
      const { err } = await made.run(['health'])
      expect(err).toContain('the boot state partition was damaged: wrote the file system around them')
      expect(await made.run(['cancel'])).toMatchObject({ exit: 0 })
    } finally {
      vi.restoreAllMocks()
    }
    expect(await made.bootState()).toMatchObject({ primary: 'a', trial: undefined })
  })

  it('all of them: nothing can be known', async () => {
    const made = await device(armed)
    await loseSectors(
      made,
      Array.from({ length: BOOTSTATE_BYTES / 512 }, (_, n) => n),
    )
    try {
      expect((await made.run(['repair', '--json'])).json).toMatchObject({ error: { code: 'BOOT_STATE_READ' } })
    } finally {
      vi.restoreAllMocks()
    }
  })
})

it('what runs because the primary cannot be loaded is made primary by a person, spare or not', async () => {
  for (const other of [{ trial: 'b', left: 0 }, { spare: true }, {}] as const) {
    const made = await device(state(other), 'slot=b boot=fallback left=0 why=image-unreadable')
    if (!('spare' in other)) {
      // Nothing by itself: it may be what failed its health.
      await made.run(['health'])
      expect(await made.bootState()).toMatchObject({ primary: 'a', ...other })
    }
    expect(await made.run(['commit'])).toMatchObject({ exit: 0 })
    expect(await made.bootState()).toMatchObject({ primary: 'b', trial: undefined, left: 0, spare: false })
  }
})

it('reads of the partition fail by name when it is not there', async () => {
  const made = await TestDevice.make(lab.base, lab.program, { missing: 'bootstate' })
  expect((await made.run(['repair', '--json'])).json).toMatchObject({ error: { code: 'BOOT_STATE_READ' } })
  expect(readAt(join(made.root, 'disk/boot-a'), 0, 1)).toEqual(Uint8Array.from([1]))
})

describe('a partition that U-Boot reads', () => {
  const armed = state({ trial: 'b', left: 2 })
  const damages: readonly (readonly [string, (made: TestDevice) => void])[] = [
    ['one environment', (d) => put(d, FILES[0].offset, GARBAGE.subarray(0, 512))],
    ['the first sector', (d) => put(d, 0, GARBAGE.subarray(0, 512))],
    [
      'the first sector, one environment and the reason',
      (d) => {
        put(d, 0, new Uint8Array(512))
        for (const n of [1, 2] as const) put(d, FILES[n].offset, GARBAGE.subarray(0, 512))
      },
    ],
  ]
  for (const [what, damage] of damages)
    it(`${what} is restored, and never as GRUB's`, async () => {
      const made = await device(state())
      writeFileSync(place(made), ubootBootstateImage(armed))
      // Both copies say the same, whichever of them is lost.
      put(made, FILES[1].offset, encodeUbootCopy({ ...armed, generation: 6 }, 0))
      damage(made)
      expect((await made.run(['repair', '--json'])).json).toMatchObject({ ok: true, state: { trial: 'b', left: 2 } })
      const opened = await openWhole(place(made))
      try {
        expect(await isUbootPartition(opened)).toBe(true)
        expect(await ubootStateOn(opened).read()).toMatchObject({
          state: { primary: 'a', trial: 'b', left: 2 },
          torn: false,
        })
      } finally {
        await opened.close()
      }
    })

  it('a blank one is made anew for the bootloader that started the system', async () => {
    for (const startedByUboot of [true, false]) {
      const made = await device(state())
      lose(made)
      const repairer = await openRepairer(
        { bootstate: place(made) },
        { ...NO_EDGE, startedByUboot: () => startedByUboot },
      )
      await repairer.restore(freshState('a'), 'a')
      expect((await repairer.survey()).parts.every((part) => part.ok)).toBe(true)
      await repairer.close()
      const opened = await openWhole(place(made))
      expect(await isUbootPartition(opened)).toBe(startedByUboot)
      await opened.close()
    }
  })
})
