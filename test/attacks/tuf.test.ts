import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'
import { encodeEnvelope } from '../../keys/dsse.ts'
import { encodeRoot, ROOT_PAYLOAD_TYPE, walkRoots } from '../../keys/root.ts'
import { signStatement } from '../../keys/statement.ts'
import { verifyEnvelope } from '../../keys/threshold.ts'
import { idsByFile, readThreats } from '../../scripts/threats.ts'
import { key, rootOf, signedRoot, signer } from '../keys/helpers.ts'
import { attempt, refused } from './refused.ts'

// The rotation cases of the TUF conformance suite, by their names there, and its map to our tests.

const REPO = resolve(import.meta.dirname, '../..')
const PAGE = readFileSync(join(REPO, 'docs/tuf-conformance.md'), 'utf8')

/** Keys, threshold and signatures of one version, by number. */
type Version = readonly [keys: readonly number[], threshold: number, signedBy: readonly number[]]
/** `stricter`: TUF accepts it; here a signature by a key that is not listed refuses the envelope. */
type Outcome = 'accepted' | 'refused' | 'stricter'

const FIVE = [0, 1, 2, 3, 4]
const ONE_NEW = [0, 1, 3, 4, 5]
const ROOT_CASES: readonly [string, Outcome, ...Version[]][] = [
  ['1-of-1-key-rotation', 'accepted', [[1], 1, [1]], [[2], 1, [2, 1]], [[2], 1, [2]]],
  [
    '1-of-1-key-rotation-unused-signatures',
    'stricter',
    [[1], 1, [3, 1, 4]],
    [[2], 1, [3, 2, 1, 4]],
    [[2], 1, [3, 2, 4]],
  ],
  [
    '3-of-5-sign-with-different-keycombos',
    'accepted',
    [FIVE, 3, [0, 2, 4]],
    [FIVE, 3, [0, 4, 1]],
    [FIVE, 3, [0, 1, 3]],
    [FIVE, 3, [0, 1, 3]],
  ],
  ['3-of-5-one-key-rotated', 'accepted', [FIVE, 3, [0, 2, 4]], [ONE_NEW, 3, [0, 4, 1]]],
  [
    '3-of-5-one-key-rotated-with-intermediate-step',
    'accepted',
    [FIVE, 3, [0, 2, 4]],
    [ONE_NEW, 3, [0, 2, 4, 5]],
    [ONE_NEW, 3, [0, 4, 5]],
  ],
  [
    '3-of-5-all-keys-rotated-with-intermediate-step',
    'accepted',
    [FIVE, 3, [0, 2, 4]],
    [[5, 6, 7, 8, 9], 3, [0, 2, 4, 5, 6, 7]],
    [[5, 6, 7, 8, 9], 3, [5, 6, 7]],
  ],
  ['1-of-3-threshold-increase-to-2-of-3', 'accepted', [[1, 2, 3], 1, [1]], [[1, 2, 3], 2, [1, 2]]],
  [
    '2-of-3-threshold-decrease-to-1-of-3',
    'accepted',
    [[1, 2, 3], 2, [1, 2]],
    [[1, 2, 3], 1, [1, 2]],
    [[1, 2, 3], 1, [1]],
  ],
  ['1-of-2-threshold-increase-to-2-of-2', 'accepted', [[1], 1, [1]], [[1, 2], 2, [1, 2]]],
  ['1-of-1-key-rotation-fail-not-signed-with-old-key', 'refused', [[1], 1, [1]], [[2], 1, [2, 3, 4]]],
  ['1-of-1-key-rotation-fail-not-signed-with-new-key', 'refused', [[1], 1, [1]], [[2], 1, [1, 3, 4]]],
  ['3-of-5-one-key-rotate-fails-not-signed-with-3-new-keys', 'refused', [FIVE, 3, [0, 2, 4]], [ONE_NEW, 3, [0, 2, 4]]],
  ['3-of-5-one-key-rotate-fails-not-signed-with-3-old-keys', 'refused', [FIVE, 3, [0, 2, 4]], [ONE_NEW, 3, [0, 4, 5]]],
  [
    '1-of-3-threshold-bump-to-2-of-3-fails-new-threshold-not-reached',
    'refused',
    [[1, 2, 3], 1, [1]],
    [[1, 2, 3], 2, [2]],
  ],
  [
    '2-of-3-threshold-decr-to-1-of-3-fails-old-threshold-not-eached',
    'refused',
    [[1, 2, 3], 2, [1, 2]],
    [[1, 2, 3], 1, [1]],
  ],
]

const ROLE_CASES: readonly [string, Outcome, Version][] = [
  ['1-of-1-key-rotation', 'accepted', [[2], 1, [2]]],
  ['1-of-1-key-rotation-unused-signatures', 'stricter', [[1], 1, [3, 1, 4]]],
  ['1-of-1-key-rotation-fail-not-signed-with-new-key', 'refused', [[2], 1, [1, 3, 4]]],
  ['3-of-5-one-key-signature-wrong-not-signed-with-3-expected-keys', 'refused', [ONE_NEW, 3, [0, 2, 4]]],
  ['2-of-5-one-key-signature-mising-threshold-not-reached', 'refused', [ONE_NEW, 3, [0, 4]]],
  ['3-of-5-sign-first-combo', 'accepted', [FIVE, 3, [0, 2, 4]]],
  ['3-of-5-sign-second-combo', 'accepted', [FIVE, 3, [0, 4, 1]]],
  ['3-of-5-sign-third-combo', 'accepted', [FIVE, 3, [0, 1, 3]]],
  ['3-of-5-sign-fourth-combo', 'accepted', [FIVE, 3, [1, 2, 3]]],
  ['3-of-5-sign-fifth-combo', 'accepted', [FIVE, 3, [2, 3, 4]]],
]

const ours = (numbers: readonly number[]) => numbers.map((n) => 50 + n)

describe('A11 root rotation', () => {
  it.each(ROOT_CASES)('%s', async (_, outcome, ...versions) => {
    const chain: Uint8Array[] = []
    for (const [i, [root, threshold, by]] of versions.entries())
      chain.push(await signedRoot({ version: i + 1, root: ours(root), threshold }, ours(by)))
    const last = chain.length - 1
    if (outcome === 'accepted') {
      expect(walkRoots(chain).current.version).toBe(chain.length)
      // The same step by step, as a device meets them.
      let trusted = walkRoots(chain.slice(0, 1))
      for (const link of chain.slice(1)) trusted = walkRoots([link], trusted)
      expect(trusted.current.version).toBe(chain.length)
    } else if (outcome === 'stricter')
      refused('signed by strangers too', await attempt(() => walkRoots(chain)), 'SIGNATURE_UNKNOWN')
    else {
      const trusted = walkRoots(chain.slice(0, last))
      const step = [chain[last] ?? new Uint8Array()]
      refused(
        'the last step',
        await attempt(() => walkRoots(step, trusted)),
        'SIGNATURE_THRESHOLD',
        'SIGNATURE_UNKNOWN',
      )
      refused('all at once', await attempt(() => walkRoots(chain)), 'SIGNATURE_THRESHOLD', 'SIGNATURE_UNKNOWN')
      expect(trusted.current.version).toBe(last)
    }
  })
})

describe('A11 rotation of the other roles', () => {
  it.each(ROLE_CASES)('%s', async (_, outcome, [keys, threshold, by]) => {
    for (const role of ['release', 'fleet'] as const) {
      const root = rootOf()
      const roles = { ...root.roles, [role]: { threshold, keys: ours(keys).map(key) } }
      const signed = await signStatement(ROOT_PAYLOAD_TYPE, encodeRoot({ ...root, roles }), [1, 2].map(signer))
      const trusted = walkRoots([encodeEnvelope(signed)])
      const statement = await signStatement('application/x', Buffer.from('{}'), ours(by).map(signer))
      const code = await attempt(() => verifyEnvelope(statement, role, trusted))
      if (outcome === 'accepted') expect(code).toBe('accepted')
      else refused(role, code, 'SIGNATURE_THRESHOLD', 'SIGNATURE_UNKNOWN')
    }
  })
})

describe('the map of the TUF conformance cases', () => {
  const rows = PAGE.split('\n')
    .map((line) => line.split('|').map((cell) => cell.trim()))
    .filter(([, name]) => name !== undefined && /^`test_/.test(name))
    .map(([, name = '', answer = '', why = '']) => ({ name: name.replaceAll('`', ''), answer, why }))

  it('has each case once, with an answer', () => {
    const names = rows.map(({ name }) => name)
    expect(new Set(names).size).toBe(names.length)
    expect(PAGE).toContain(`${names.length} cases`)
    for (const { name, answer, why } of rows) {
      expect(answer, name).toMatch(/^(same|stricter|not applicable)$/)
      expect(why, name).toMatch(answer === 'not applicable' ? /^There |^No |^The / : /^[ABC]\d/)
    }
    for (const [name] of ROOT_CASES) expect(names).toContain(`test_root_rotation[${name}]`)
    for (const [name] of ROLE_CASES) expect(names).toContain(`test_non_root_rotations[${name}]`)
  })

  it('names only ids that are promised and have tests', () => {
    const existing = new Set([...idsByFile(REPO).values()].flatMap((ids) => [...ids]))
    const promised = new Set(
      readThreats(readFileSync(join(REPO, 'docs/threats.md'), 'utf8')).flatMap(({ id, promised }) =>
        promised ? [id] : [],
      ),
    )
    for (const { name, why } of rows)
      for (const [id] of why.matchAll(/\b[ABC][1-9][0-9]?\b/g)) {
        expect(existing, `${name} names ${id}`).toContain(id)
        expect(promised, `${name} names ${id}`).toContain(id)
      }
  })
})
