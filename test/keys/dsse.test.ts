import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { compareBytes } from '../../base/bytes.ts'
import { decodeEnvelope, encodeEnvelope, MAX_ENVELOPE_BYTES, MAX_SIGNED_BYTES, pae } from '../../keys/dsse.ts'
import type { Envelope } from '../../keys/types.ts'
import { codeOf } from '../codes.ts'

const utf8 = (text: string) => new TextEncoder().encode(text)
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString()
const sig = (n: number) => new Uint8Array(64).fill(n)
const sample: Envelope = { payloadType: 'text/plain', payload: utf8('hello'), signatures: [sig(1), sig(2)] }

describe('the bytes that are signed', () => {
  it('are those of the DSSE protocol page', () => {
    expect(text(pae('http://example.com/HelloWorld', utf8('hello world')))).toBe(
      'DSSEv1 29 http://example.com/HelloWorld 11 hello world',
    )
    expect(text(pae('', new Uint8Array()))).toBe('DSSEv1 0  0 ')
  })

  it('are at most 4096', () => {
    const overhead = pae('t', new Uint8Array(1000)).length - 1000
    expect(pae('t', new Uint8Array(MAX_SIGNED_BYTES - overhead))).toHaveLength(MAX_SIGNED_BYTES)
    expect(codeOf(() => pae('t', new Uint8Array(MAX_SIGNED_BYTES - overhead + 1)))).toBe('STATEMENT_TOO_LARGE')
  })

  it('never join two different (type, payload) pairs', () => {
    const part = fc.string({ unit: fc.constantFrom('1', ' ', 'a', '0'), maxLength: 6 })
    fc.assert(
      fc.property(part, part, part, part, (t1, p1, t2, p2) => {
        const same = compareBytes(pae(t1, utf8(p1)), pae(t2, utf8(p2))) === 0
        expect(same).toBe(t1 === t2 && p1 === p2)
      }),
    )
  })
})

describe('A21 A23 the envelope', () => {
  it('has one exact encoding', () => {
    expect(text(encodeEnvelope({ ...sample, signatures: [sig(1)] }))).toBe(
      `{"payload":"aGVsbG8=","payloadType":"text/plain","signatures":[{"sig":"${'AQEB'.repeat(21)}AQ=="}]}\n`,
    )
  })

  it('comes back as it went', () => {
    const signatures = fc
      .uniqueArray(fc.uint8Array({ minLength: 64, maxLength: 64 }), {
        maxLength: 5,
        comparator: (a, b) => compareBytes(a, b) === 0,
      })
      .map((list) => list.sort(compareBytes))
    const payloadType = fc.stringMatching(/^[a-z/.+]{1,40}$/)
    fc.assert(
      fc.property(payloadType, fc.uint8Array({ maxLength: 300 }), signatures, (type, payload, sigs) => {
        const envelope = { payloadType: type, payload, signatures: sigs }
        const bytes = encodeEnvelope(envelope)
        expect(decodeEnvelope(bytes)).toEqual(envelope)
        expect(encodeEnvelope(decodeEnvelope(bytes))).toEqual(bytes)
      }),
      { numRuns: 100 },
    )
  })

  const good = text(encodeEnvelope(sample))
  it.each([
    ['no newline', good.trimEnd()],
    ['two newlines', `${good}\n`],
    ['space', good.replace(',', ', ')],
    ['another key order', '{"payloadType":"text/plain","payload":"aGVsbG8=","signatures":[]}\n'],
    ['an additional field', good.replace('{"payload"', '{"x":1,"payload"')],
    ['a key id', good.replace('{"sig"', '{"keyid":"a","sig"')],
    ['base64 without padding', good.replace('aGVsbG8=', 'aGVsbG8')],
    ['base64 with stray bits', good.replace('aGVsbG8=', 'aGVsbG9=')],
    ['URL-safe base64', good.replace('aGVsbG8=', 'aGVs-_8=')],
    ['space in base64', good.replace('aGVsbG8=', 'aGVs bG8=')],
    ['an escape', good.replace('text/plain', 'text\\/plain')],
    ['no payload', '{"payloadType":"text/plain","signatures":[]}\n'],
    ['no signatures', '{"payload":"","payloadType":"text/plain"}\n'],
    ['a signature that is a string', '{"payload":"","payloadType":"t","signatures":["AA=="]}\n'],
    ['a signature without sig', '{"payload":"","payloadType":"t","signatures":[{}]}\n'],
    ['a short signature', '{"payload":"","payloadType":"t","signatures":[{"sig":"AAAA"}]}\n'],
    ['an empty type', '{"payload":"","payloadType":"","signatures":[]}\n'],
    ['a type with control characters', '{"payload":"","payloadType":"a\\u001b[2J","signatures":[]}\n'],
    ['a duplicate key', good.replace('{"payload"', '{"payload":"","payload"')],
    ['an array', '[]\n'],
    ['null', 'null\n'],
    ['nothing', ''],
  ])('is refused with %s', (_, changed) => {
    expect(codeOf(() => decodeEnvelope(utf8(changed)))).toBe('ENVELOPE_INVALID')
  })

  it('is refused with signatures out of order or twice', () => {
    for (const signatures of [
      [sig(2), sig(1)],
      [sig(1), sig(1)],
    ]) {
      expect(codeOf(() => encodeEnvelope({ ...sample, signatures }))).toBe('ENVELOPE_INVALID')
      const entries = signatures.map((s) => `{"sig":"${Buffer.from(s).toString('base64')}"}`)
      const bytes = utf8(`{"payload":"","payloadType":"t","signatures":[${entries}]}\n`)
      expect(codeOf(() => decodeEnvelope(bytes))).toBe('ENVELOPE_INVALID')
    }
  })

  it('is refused over its limits', () => {
    const many = Array.from({ length: 200 }, (_, i) => sig(i))
    expect(codeOf(() => encodeEnvelope({ ...sample, signatures: many }))).toBe('ENVELOPE_TOO_LARGE')
    expect(codeOf(() => decodeEnvelope(new Uint8Array(MAX_ENVELOPE_BYTES + 1)))).toBe('ENVELOPE_TOO_LARGE')
    expect(codeOf(() => decodeEnvelope(utf8(good), { maxBytes: good.length - 1 }))).toBe('ENVELOPE_TOO_LARGE')
    const long = `{"payload":"${'A'.repeat(8000)}","payloadType":"t","signatures":[]}\n`
    expect(codeOf(() => decodeEnvelope(utf8(long)))).toBe('STATEMENT_TOO_LARGE')
  })

  it('lets no changed bit through as the same envelope', () => {
    const bytes = utf8(good)
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const changed = bytes.slice()
      changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      const code = codeOf(() => expect(decodeEnvelope(changed), `bit ${bit}`).not.toEqual(sample))
      expect(code).toMatch(/^accepted$|^ENVELOPE_INVALID$/)
    }
  })
})
