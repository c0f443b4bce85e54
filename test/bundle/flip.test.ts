import { expect, test, vi } from 'vitest'
import { isBistableError } from '../../base/errors.ts'
import { verifyBundle } from '../../bundle/verify.ts'
import { countRefusals, WHOLE } from '../attacks/refused.ts'
import { signedRoot } from '../keys/helpers.ts'
import { fleetSigned, makeBundle, memorySource } from './fixture.ts'
import { noise } from './tools.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})

/** Flips one bit, verifies, and flips it back. Returns the code of the refusal. */
async function flipped(
  bytes: Buffer,
  at: number,
  bit: number,
  trust: Parameters<typeof verifyBundle>[1],
  options: Parameters<typeof verifyBundle>[2] = {},
) {
  bytes[at] = (bytes[at] ?? 0) ^ (1 << bit)
  try {
    await verifyBundle(memorySource(bytes), trust, options)
    return `accepted byte ${at} bit ${bit}`
  } catch (error) {
    return isBistableError(error) ? error.code : `untyped at byte ${at} bit ${bit}: ${String(error)}`
  } finally {
    bytes[at] = (bytes[at] ?? 0) ^ (1 << bit)
  }
}

function expectRefusals(codes: Map<string, number>, wanted: number) {
  const odd = [...codes.keys()].filter((code) => !/^[A-Z_0-9]+$/.test(code))
  expect(odd).toEqual([])
  expect([...codes.values()].reduce((sum, n) => sum + n, 0)).toBe(wanted)
  countRefusals(wanted)
}

test(`A24 ${WHOLE ? 'every bit' : 'a bit of every byte'} of a small bundle: none may flip`, {
  timeout: 300_000,
}, async () => {
  const made = await makeBundle({ boot: Buffer.alloc(4096, 'boot'), rootfs: noise(4096) })
  await verifyBundle(memorySource(made.bytes), made)
  const codes = new Map<string, number>()
  const data = made.bytes.length - 1024 - 4096
  // All 90,000 bits take 25 s: that is for `npm run attacks`. Here one of each byte.
  let wanted = 0
  for (let at = 0; at < made.bytes.length; at++) {
    // The payload, at the end, is covered by the next test.
    if (at >= data && at < data + 4096 && at % 64 !== 0) continue
    for (let bit = 0; bit < 8; bit++) {
      if (!WHOLE && bit !== at % 8) continue
      wanted++
      const code = await flipped(made.bytes, at, bit, made)
      codes.set(code, (codes.get(code) ?? 0) + 1)
    }
  }
  expect(wanted).toBeGreaterThan((made.bytes.length - 4096) * (WHOLE ? 8 : 1) - 1)
  expectRefusals(codes, wanted)
  // Each layer did its part.
  for (const code of ['BUNDLE_NOT_A_BUNDLE', 'BUNDLE_HEADER', 'BUNDLE_PADDING', 'BUNDLE_DIGEST', 'SIGNATURE_UNKNOWN'])
    expect(codes.get(code)).toBeGreaterThan(0)
})

test('A24 one bit in every 4 KiB of payload, and in a chain of two roots with an assignment', async () => {
  const made = await makeBundle({
    boot: Buffer.concat([noise(64 * 4096, 'b'), Buffer.alloc(64 * 4096)]),
    rootfs: noise(200 * 4096),
    roots: [await signedRoot({}, [1, 2]), await signedRoot({ version: 2, release: [11, 12] }, [2, 3])],
    release: { rootVersion: 2 },
    assignment: fleetSigned(),
  })
  const codes = new Map<string, number>()
  let wanted = 0
  for (let at = 0; at < made.bytes.length; at += at < 16384 ? 61 : 4096) {
    const code = await flipped(made.bytes, at, at % 8, made)
    codes.set(code, (codes.get(code) ?? 0) + 1)
    wanted++
  }
  expectRefusals(codes, wanted)
})

test('without unpacking, no byte may flip either', async () => {
  const made = await makeBundle({ boot: Buffer.alloc(4096, 'boot'), rootfs: noise(4096) })
  const options = { storedOnly: true }
  await verifyBundle(memorySource(made.bytes), made, options)
  const codes = new Map<string, number>()
  const step = 3
  for (let at = 0; at < made.bytes.length; at += step) {
    const code = await flipped(made.bytes, at, at % 8, made, options)
    codes.set(code, (codes.get(code) ?? 0) + 1)
  }
  expectRefusals(codes, Math.ceil(made.bytes.length / step))
})
