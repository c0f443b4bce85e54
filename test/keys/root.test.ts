import fc from 'fast-check'
import { beforeAll, describe, expect, it, vi } from 'vitest'
import { decodeEnvelope, encodeEnvelope, pae } from '../../keys/dsse.ts'
import { encodeRoot, parseRoot, ROOT_PAYLOAD_TYPE, trustAnchor, walkRoots } from '../../keys/root.ts'
import { addSignature, signStatement } from '../../keys/statement.ts'
import { codeOf } from '../codes.ts'
import { key, type RootPlan, rootOf, secondSignature, signedRoot, signer } from './helpers.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})

const utf8 = (text: string) => new TextEncoder().encode(text)

/** Versions 1 to 4: root keys 1-3, then key 4 for key 1, then keys 5 and 6 for 2 and 3; the epoch rises once. */
const plans: readonly [RootPlan, readonly number[]][] = [
  [{ version: 1 }, [1, 2]],
  [{ version: 2, root: [2, 3, 4] }, [2, 3]],
  [{ version: 3, root: [4, 5, 6], epoch: 1, release: [12] }, [2, 3, 4, 5]],
  [{ version: 4, root: [4, 5, 6], epoch: 1, release: [12], fleet: [22] }, [5, 6]],
]
let roots: Uint8Array[] = []
beforeAll(async () => {
  roots = await Promise.all(plans.map(([plan, by]) => signedRoot(plan, by)))
})
const upTo = (n: number) => roots.slice(0, n)
const nth = (n: number) => roots[n - 1] ?? new Uint8Array()

describe('the root statement', () => {
  const json = (change: (root: Record<string, unknown>) => void) => {
    const root = JSON.parse(Buffer.from(encodeRoot(rootOf())).toString())
    change(root)
    return utf8(JSON.stringify(root))
  }
  const role = (root: Record<string, unknown>, name: string) =>
    (root['roles'] as Record<string, { threshold: unknown; keys: unknown[] }>)[name] ?? { threshold: 0, keys: [] }

  it('comes back as it went', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1 }),
        fc.nat(),
        fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._-]{0,20}$/),
        (version, epoch, product) => {
          const root = rootOf({ version, epoch, product })
          expect(parseRoot(encodeRoot(root))).toEqual(root)
        },
      ),
      { numRuns: 20 },
    )
  })

  it.each<[string, (root: Record<string, unknown>) => void]>([
    [
      'another type',
      (r) => {
        r['type'] = 'release'
      },
    ],
    [
      'version 0',
      (r) => {
        r['version'] = 0
      },
    ],
    [
      'a negative epoch',
      (r) => {
        r['epoch'] = -1
      },
    ],
    [
      'an empty product',
      (r) => {
        r['product'] = ''
      },
    ],
    [
      'a product with a slash',
      (r) => {
        r['product'] = '../x'
      },
    ],
    [
      'a date that does not exist',
      (r) => {
        r['issued'] = '2026-02-30T00:00:00Z'
      },
    ],
    [
      'a date with an offset',
      (r) => {
        r['issued'] = '2026-02-20T00:00:00+01:00'
      },
    ],
    [
      'no fleet role',
      (r) => {
        delete (r['roles'] as Record<string, unknown>)['fleet']
      },
    ],
    [
      'A20: threshold 0',
      (r) => {
        role(r, 'release').threshold = 0
      },
    ],
    [
      'A20: a negative threshold',
      (r) => {
        role(r, 'release').threshold = -1
      },
    ],
    [
      'A20: a threshold over the number of keys',
      (r) => {
        role(r, 'root').threshold = 4
      },
    ],
    [
      'A20: a threshold as text',
      (r) => {
        role(r, 'root').threshold = '2'
      },
    ],
    [
      'A20: a key listed twice',
      (r) => {
        role(r, 'root').keys = [key(1), key(1), key(2)]
      },
    ],
    [
      'one key in two roles',
      (r) => {
        role(r, 'fleet').keys = [key(11)]
      },
    ],
    [
      'no keys',
      (r) => {
        role(r, 'fleet').keys = []
      },
    ],
    [
      '17 keys',
      (r) => {
        role(r, 'root').keys = Array.from({ length: 17 }, (_, i) => key(i + 100))
      },
    ],
    [
      'an upper-case key',
      (r) => {
        role(r, 'fleet').keys = [key(21).toUpperCase()]
      },
    ],
    [
      'a key with an id',
      (r) => {
        role(r, 'fleet').keys = [{ keyid: 'a', key: key(21) }]
      },
    ],
    [
      'an unknown critical field',
      (r) => {
        r['critical'] = ['moon']
      },
    ],
    [
      'a critical field that every JavaScript object seems to have',
      (r) => {
        r['critical'] = ['constructor']
      },
    ],
  ])('is refused with %s', (_, change) => {
    expect(codeOf(() => parseRoot(json(change)))).toBe('ROOT_INVALID')
  })

  it('A20: is refused with a threshold that is no integer', () => {
    expect(
      codeOf(() =>
        parseRoot(
          json((r) => {
            role(r, 'release').threshold = 1.5
          }),
        ),
      ),
    ).toBe('JSON_INVALID')
  })

  it('A22: is refused with a key of small order', () => {
    const bad = json((r) => {
      role(r, 'fleet').keys = [`01${'00'.repeat(31)}`]
    })
    expect(codeOf(() => parseRoot(bad))).toBe('KEY_INVALID')
  })

  it('A10: ignores an unknown field that is not critical', () => {
    expect(
      parseRoot(
        json((r) => {
          r['moon'] = 1
          r['critical'] = ['product']
        }),
      ),
    ).toEqual(rootOf())
  })

  it('is not encoded when it breaks a rule', () => {
    expect(codeOf(() => encodeRoot(rootOf({ threshold: 4 })))).toBe('ROOT_INVALID')
  })
})

describe('the walk along root versions', () => {
  it('goes from the first to the newest, and knows every key that ever was', () => {
    const trusted = walkRoots(roots)
    expect(trusted.current).toEqual(rootOf(plans[3]?.[0]))
    expect(trusted.envelopes).toEqual(roots)
    expect([...trusted.everListed.root]).toEqual([1, 2, 3, 4, 5, 6].map(key))
    expect([...trusted.everListed.release]).toEqual([key(11), key(12)])
    expect([...trusted.everListed.fleet]).toEqual([key(21), key(22)])
  })

  it('ends at the same place by every split of the chain', () => {
    for (let a = 1; a <= 4; a++)
      for (let from = 0; from <= a; from++)
        for (let to = from + 1; to <= 4; to++) {
          const trusted = walkRoots(upTo(a))
          const result = walkRoots(roots.slice(from, to), trusted)
          expect(result, `${a} ${from} ${to}`).toEqual(walkRoots(upTo(Math.max(a, to))))
        }
  })

  it('A30: brings a device forty versions behind to the newest root, and refuses a gap', async () => {
    const by = (version: number) => [100 + version, 101 + version]
    const chain = await Promise.all(
      Array.from({ length: 41 }, (_, i) =>
        signedRoot({ version: i + 1, root: [101 + i, 102 + i, 103 + i] }, i === 0 ? by(1) : by(i + 1)),
      ),
    )
    const anchor = trustAnchor(chain[0] ?? new Uint8Array())
    expect(walkRoots(chain, anchor).current.version).toBe(41)
    expect(walkRoots(chain.slice(1), anchor).current.version).toBe(41)
    const gap = [...chain.slice(0, 20), ...chain.slice(21)]
    expect(codeOf(() => walkRoots(gap, anchor))).toMatch(/^ROOT_VERSION$|^SIGNATURE_THRESHOLD$/)
    expect(codeOf(() => walkRoots(chain.slice(2), anchor))).toMatch(/^ROOT_VERSION$|^SIGNATURE_THRESHOLD$/)
  })

  it.each<[string, RootPlan, readonly number[], string]>([
    ['A11: signed by the new keys only', { version: 2, root: [7, 8, 9] }, [7, 8], 'SIGNATURE_THRESHOLD'],
    ['A11: signed by the old keys only', { version: 2, root: [7, 8, 9] }, [1, 2], 'SIGNATURE_THRESHOLD'],
    ['A11: one old signature too few', { version: 2, root: [1, 8, 9] }, [1, 8], 'SIGNATURE_THRESHOLD'],
    ['not signed', { version: 2 }, [], 'SIGNATURE_THRESHOLD'],
    ['signed by a release key', { version: 2 }, [11], 'SIGNATURE_THRESHOLD'],
    ['signed by a stranger besides', { version: 2 }, [1, 2, 99], 'SIGNATURE_UNKNOWN'],
    ['of the same version', { version: 1, epoch: 1 }, [1, 2], 'ROOT_FORK'],
    ['that skips a version', { version: 3 }, [1, 2], 'ROOT_VERSION'],
    ['of version 2^53 - 1', { version: Number.MAX_SAFE_INTEGER }, [1, 2], 'ROOT_VERSION'],
    ['of another product', { version: 2, product: 'other' }, [1, 2], 'ROOT_PRODUCT'],
  ])('refuses a successor %s', async (_, plan, by, code) => {
    const next = await signedRoot(plan, by)
    const anchor = trustAnchor(nth(1))
    expect(codeOf(() => walkRoots([nth(1), next]))).toBe(code)
    expect(codeOf(() => walkRoots([next], anchor))).toBe(code)
    expect(codeOf(() => walkRoots([nth(1), next], anchor))).toBe(code)
  })

  it('refuses an epoch that falls', async () => {
    const next = await signedRoot({ version: 4, root: [4, 5, 6], epoch: 0 }, [4, 5])
    expect(codeOf(() => walkRoots([...upTo(3), next]))).toBe('ROOT_EPOCH')
  })

  it('A20: refuses two signatures by one key as a threshold of two', async () => {
    const envelope = await signStatement(ROOT_PAYLOAD_TYPE, encodeRoot(rootOf()), [signer(1)])

    const second = secondSignature(1, pae(ROOT_PAYLOAD_TYPE, envelope.payload))
    const bytes = encodeEnvelope({ ...envelope, signatures: [...envelope.signatures, second].sort(Buffer.compare) })
    expect(codeOf(() => trustAnchor(bytes))).toBe('SIGNATURE_THRESHOLD')
  })

  it('A2: an older chain changes nothing, another history of the same product is refused', async () => {
    const trusted = walkRoots(upTo(3))
    expect(walkRoots(upTo(1), trusted)).toBe(trusted)
    expect(walkRoots(upTo(2), trusted)).toBe(trusted)
    const forked = await signedRoot({ version: 2, root: [2, 3, 4], fleet: [23] }, [2, 3])
    expect(codeOf(() => walkRoots([nth(1), forked], trusted))).toBe('ROOT_FORK')
    expect(codeOf(() => walkRoots([forked], trusted))).not.toBe('accepted')
    const other = await signedRoot({ product: 'other' }, [1, 2])
    expect(codeOf(() => walkRoots([other], trusted))).not.toBe('accepted')
    expect(codeOf(() => walkRoots([other, nth(2)], trusted))).not.toBe('accepted')
  })

  it('takes an envelope of a trusted version with other good signatures, and none with bad ones', async () => {
    const trusted = walkRoots(upTo(2))
    const more = encodeEnvelope(await addSignature(decodeEnvelope(nth(2)), signer(4)))
    expect(walkRoots([nth(1), more, nth(3)], trusted).envelopes).toEqual(upTo(3))
    const stranger = encodeEnvelope(await addSignature(decodeEnvelope(nth(2)), signer(99)))
    expect(codeOf(() => walkRoots([nth(1), stranger, nth(3)], trusted))).toBe('SIGNATURE_UNKNOWN')
    const fewer = encodeEnvelope({ ...decodeEnvelope(nth(2)), signatures: decodeEnvelope(nth(2)).signatures.slice(1) })
    expect(codeOf(() => walkRoots([nth(1), fewer, nth(3)], trusted))).toBe('SIGNATURE_THRESHOLD')
  })

  it('works from an anchor that is not version 1', async () => {
    const anchor = trustAnchor(nth(3))
    expect(anchor.current.version).toBe(3)
    expect(walkRoots(roots, anchor).envelopes).toEqual(roots.slice(2))
    expect(walkRoots([nth(3), nth(4)], anchor).current.version).toBe(4)
    expect(walkRoots([nth(4)], anchor).current.version).toBe(4)
    // Keys that only versions before the anchor listed are not known to this device.
    expect([...walkRoots(roots, anchor).everListed.release]).toEqual([key(12)])
    // A chain that ends before the anchor cannot be told from a stranger's.
    expect(codeOf(() => walkRoots(upTo(2), anchor))).not.toBe('accepted')
  })

  it('does not let a made-up past of the anchor lend its keys', async () => {
    const anchor = trustAnchor(nth(3))
    const made = await signedRoot({ version: 2, root: [77, 78], epoch: 0, release: [79] }, [77, 78])
    const bridged = encodeEnvelope(
      await addSignature(await addSignature(decodeEnvelope(nth(3)), signer(77)), signer(78)),
    )
    for (const chain of [[made, nth(3)], [made, bridged], [made]]) {
      const code = codeOf(() => expect(walkRoots(chain, anchor)).toBe(anchor))
      expect(code).toMatch(/^accepted$|^SIGNATURE_/)
    }
  })

  it('A24: refuses changed bits all over every root, whatever is trusted already', () => {
    const chain = upTo(3)
    const anchors = [trustAnchor(nth(1)), walkRoots(upTo(3))]
    // An odd step meets every bit position; every single bit is the attack suite's work.
    for (const [i, bytes] of chain.entries())
      for (let bit = i; bit < bytes.length * 8; bit += 151) {
        const changed = bytes.slice()
        changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7))
        for (const anchor of anchors) {
          const code = codeOf(() => walkRoots([...chain.slice(0, i), changed], anchor))
          if (code === 'accepted') throw new Error(`root ${i + 1}, bit ${bit} was accepted`)
        }
      }
  })

  it('refuses an empty chain, one of 1025 versions, and statements of another type', async () => {
    expect(codeOf(() => walkRoots([]))).toBe('ROOT_CHAIN_LENGTH')
    expect(codeOf(() => walkRoots(Array.from({ length: 1025 }, () => nth(1))))).toBe('ROOT_CHAIN_LENGTH')
    const other = encodeEnvelope(await signStatement('text/plain', encodeRoot(rootOf()), [signer(1), signer(2)]))
    expect(codeOf(() => trustAnchor(other))).toBe('STATEMENT_TYPE')
    expect(codeOf(() => walkRoots([nth(1), other]))).toBe('STATEMENT_TYPE')
  })
})
