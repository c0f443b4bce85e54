import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import { encodeBootCfg } from '../../bootloader/boot-cfg.ts'
import { decodeFloor, encodeFloor } from '../../bootloader/floor.ts'
import { readAssignments } from '../../bootloader/grub-block.ts'
import { chooseCopy, decodeCopy, decodeWord, encodeCopy, encodeWord } from '../../bootloader/grub-env.ts'
import { MAX_GENERATION } from '../../bootloader/machine.ts'
import { decodeReason, encodeReason, NO_REASON } from '../../bootloader/reason.ts'
import { type BootState, otherSlot, type Slot } from '../../bootloader/state.ts'
import { have, run } from '../helpers/run.ts'

const slot = fc.constantFrom<Slot>('a', 'b')
const generation = fc.oneof(fc.nat(1000), fc.integer({ min: 0, max: MAX_GENERATION }))
const anyState: fc.Arbitrary<BootState> = fc.oneof(
  fc.record({ generation, primary: slot, spare: fc.boolean() }).map((s) => ({ ...s, trial: undefined, left: 0 })),
  fc
    .record({ generation, primary: slot, left: fc.integer({ min: 0, max: 9 }) })
    .map((s) => ({ ...s, trial: otherSlot(s.primary), spare: false })),
)

const dir = mkdtempSync(join(tmpdir(), 'bistable-codec-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

describe('one copy of the boot state', () => {
  test('what is written is read, in 512 bytes of always the same width', () => {
    fc.assert(
      fc.property(anyState, (state) => {
        const bytes = encodeCopy(state)
        expect(decodeCopy(bytes)).toEqual({ kind: 'valid', state })
        expect(bytes.length).toBe(1024)
        expect(Buffer.from(bytes.subarray(100)).every((byte) => byte === 0x23)).toBe(true)
      }),
    )
    expect(encodeWord({ generation: 7, primary: 'a', trial: 'b', left: 3, spare: false })).toBe('0000000007.a.b.3.0')
  })

  test('words outside the machine are refused', () => {
    for (const word of [
      '',
      '7.a.b.3.0',
      '0000000007.a.a.3.0',
      '0000000007.a.-.1.0',
      '0000000007.a.b.3.1',
      '0000000007.a.b.3.0 ',
    ])
      expect(decodeWord(word), word).toBeUndefined()
    expect(() => encodeCopy({ generation: 1, primary: 'a', trial: 'a', left: 1, spare: false })).toThrow(
      expect.objectContaining({ code: 'BOOT_STATE_INVALID' }),
    )
  })

  test('a torn write reads as the old state, the new state or torn, never as a third one', () => {
    fc.assert(
      fc.property(anyState, anyState, fc.nat(200), fc.boolean(), (before, after, cut, garbage) => {
        const bytes = encodeCopy(before)
        if (garbage) bytes.fill(0xa5, 0, 512)
        bytes.set(encodeCopy(after).subarray(0, cut))
        const copy = decodeCopy(bytes)
        if (copy.kind === 'valid') expect([before, after]).toContainEqual(copy.state)
        if (copy.kind === 'valid' && garbage) expect(copy.state).toEqual(after)
      }),
    )
  })

  test('C7 any single wrong byte in the words is noticed', () => {
    const good = encodeCopy({ generation: 12, primary: 'a', trial: 'b', left: 2, spare: false })
    for (let at = 25; at < 79; at++)
      for (const byte of [0x00, 0x0a, 0x31, 0x61, 0xff]) {
        const bytes = Uint8Array.from(good)
        if (bytes[at] === byte) continue
        bytes[at] = byte
        expect(decodeCopy(bytes).kind, `${at} ${byte}`).toBe('torn')
      }
  })

  test('of two copies the newer one counts; of one generation the one with fewer tries left', () => {
    const valid = (n: number, left: number) => ({
      kind: 'valid' as const,
      state: { generation: n, primary: 'a' as const, trial: 'b' as const, left, spare: false },
    })
    const torn = { kind: 'torn' as const, detail: '' }
    expect(chooseCopy([valid(1, 3), valid(2, 3)])).toBe(1)
    expect(chooseCopy([valid(10, 3), valid(9, 0)])).toBe(0)
    expect(chooseCopy([valid(5, 2), valid(5, 3)])).toBe(0)
    expect(chooseCopy([valid(5, 2), valid(5, 1)])).toBe(1)
    expect(chooseCopy([torn, valid(1, 1)])).toBe(1)
    expect(chooseCopy([valid(1, 1), torn])).toBe(0)
    expect(chooseCopy([torn, torn])).toBeUndefined()
  })
})

describe.skipIf(!have('grub-editenv'))('grub-editenv', () => {
  const file = join(dir, 'env')
  const list = (bytes: Uint8Array): string | undefined => {
    writeFileSync(file, bytes)
    const done = spawnSync('grub-editenv', [file, 'list'], { encoding: 'latin1' })
    return done.status === 0 ? done.stdout : undefined
  }
  const lines = (bytes: Uint8Array): string | undefined =>
    readAssignments(bytes)
      ?.map(([name, value]) => `${name}=${value}\n`)
      .join('')

  test('reads what we write, and writes the same bytes as we do', () => {
    fc.assert(
      fc.property(anyState, anyState, (before, after) => {
        expect(list(encodeCopy(before))).toBe(`bs_head=${encodeWord(before)}\nbs_tail=${encodeWord(before)}\n`)
        run('grub-editenv', [file, 'set', `bs_head=${encodeWord(after)}`, `bs_tail=${encodeWord(after)}`])
        expect(spawnSync('cat', [file]).stdout.equals(encodeCopy(after))).toBe(true)
      }),
      { numRuns: 20 },
    )
  })

  test('damaged blocks read alike', () => {
    const damage = fc.array(fc.tuple(fc.nat(110), fc.constantFrom(0x0a, 0x23, 0x3d, 0x5c, 0x41, 0x20)), {
      maxLength: 6,
    })
    fc.assert(
      fc.property(anyState, damage, (state, changes) => {
        const bytes = encodeCopy(state)
        for (const [at, byte] of changes) bytes[at] = byte
        expect(lines(bytes)).toBe(list(bytes))
      }),
      { numRuns: 150 },
    )
  })

  test('reads boot.cfg', () => {
    const args = `bistable.root=${'0'.repeat(64)} bistable.length=4096 console=ttyS0 a="b c" $(x);`
    const bytes = Buffer.alloc(1024, '#')
    bytes.set(encodeBootCfg({ release: '3.14', args }))
    expect(list(bytes)).toBe(`bistable_release=3.14\nbistable_args=${args}\n`)
  })
})

describe('small files', () => {
  test('boot.cfg refuses what would not come back', () => {
    const args = `bistable.root=${'0'.repeat(64)}`
    for (const bad of [
      { release: '1', args },
      { release: '01.2', args },
      { release: '1.2', args: `${args}\nx` },
      { release: '1.2', args: `${args} a\\b` },
      { release: '1.2', args: `${args}  x` },
      { release: '1.2', args: `${args} ${'x'.repeat(2000)}` },
      { release: '1.2', args: 'console=ttyS0' },
    ])
      expect(() => encodeBootCfg(bad)).toThrow(expect.objectContaining({ code: 'BOOT_CFG_INVALID' }))
  })

  test('the floor', () => {
    const floor = { epoch: 2, counter: 17 }
    expect(decodeFloor(encodeFloor(floor))).toEqual(floor)
    const bytes = encodeFloor(floor)
    for (let at = 0; at < bytes.length; at++) {
      const changed = Uint8Array.from(bytes)
      changed[at] = (changed[at] ?? 0) ^ 1
      expect(() => decodeFloor(changed)).toThrow(expect.objectContaining({ code: 'BOOT_FLOOR_INVALID' }))
      expect(() => decodeFloor(bytes.subarray(0, at))).toThrow(expect.objectContaining({ code: 'BOOT_FLOOR_INVALID' }))
    }
  })

  test('the reason: what is damaged reads as nothing', () => {
    const reason = {
      starts: { a: 0, b: 3, up: 'a' },
      failure: { slot: 'b', stage: 'verity', text: 'block 7' },
    } as const
    expect(decodeReason(encodeReason(reason))).toEqual(reason)
    expect(decodeReason(encodeReason(NO_REASON))).toEqual(NO_REASON)
    expect(decodeReason(new Uint8Array(1024))).toEqual(NO_REASON)
    const torn = encodeReason(reason)
    torn.set(encodeReason({ starts: { a: 9, b: 9, up: undefined }, failure: undefined }).subarray(0, 40))
    expect(decodeReason(torn)).toEqual(NO_REASON)
  })
})
