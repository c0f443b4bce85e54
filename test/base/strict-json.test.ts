import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type JsonLimits, parseStrictJson } from '../../base/strict-json.ts'
import { codeOf } from '../codes.ts'

const utf8 = (text: string) => new TextEncoder().encode(text)
const parse = (text: string, limits: Partial<JsonLimits> = {}) =>
  parseStrictJson(utf8(text), { maxBytes: 100_000, ...limits })

/** The same value with ordinary objects, to compare with JSON.parse. */
const plain = (value: unknown) => JSON.parse(JSON.stringify(value))

describe('A23 strict JSON', () => {
  it('reads what JSON.parse reads', () => {
    const texts = [
      '0',
      '-1',
      '""',
      'true',
      'false',
      'null',
      '[]',
      '{}',
      ' [ 1 , {"a" : [ ] } ] \r\n\t',
      '"\\u00e9\\n\\/"',
    ]
    for (const text of texts) expect(plain(parse(text))).toEqual(JSON.parse(text))
    expect(parse('"\\ud83d\\ude00"')).toBe('😀')
    expect(parse(`${Number.MAX_SAFE_INTEGER}`)).toBe(Number.MAX_SAFE_INTEGER)
    expect(parse('1.5e3', { integersOnly: false })).toBe(1500)
  })

  it.each([
    ['nothing', ''],
    ['only space', ' \n'],
    ['a byte order mark', '\ufeff{}'],
    ['duplicate keys', '{"a":1,"a":1}'],
    ['duplicate keys in two spellings', '{"a":1,"\\u0061":2}'],
    ['two __proto__ keys', '{"__proto__":1,"__proto__":2}'],
    ['a lone high surrogate', '"\\ud800"'],
    ['a lone low surrogate', '"\\udc00x"'],
    ['surrogates in the wrong order', '"\\udc00\\ud800"'],
    ['a lone surrogate in a key', '{"\\ud800":1}'],
    ['minus zero', '-0'],
    ['an unsafe integer', '9007199254740992'],
    ['a fraction', '1.0'],
    ['an exponent', '1e2'],
    ['a leading zero', '01'],
    ['a plus sign', '+1'],
    ['a bare point', '.5'],
    ['NaN', 'NaN'],
    ['hexadecimal', '0x10'],
    ['a trailing value', '{}{}'],
    ['a trailing NUL', '{}\0'],
    ['a trailing comma', '[1,]'],
    ['a trailing comma in an object', '{"a":1,}'],
    ['a missing value', '{"a":}'],
    ['a missing colon', '{"a" 1}'],
    ['an unquoted key', '{a:1}'],
    ['single quotes', "{'a':1}"],
    ['a comment', '[1/*x*/]'],
    ['a control character in a string', '"\n"'],
    ['an unknown escape', '"\\x41"'],
    ['a short escape', '"\\u12"'],
    ['an open string', '"abc'],
    ['an open array', '[1'],
    ['an open object', '{"a":1'],
    ['a half word', 'tru'],
    ['other white space', '[1,\u00a02]'],
  ])('refuses %s', (_, text) => {
    expect(codeOf(() => parse(text))).toBe('JSON_INVALID')
  })

  it.each(['1e400', '-1e400', '-0', '-0.0', '-1e-400', '9007199254740993', '1.', '1e'])(
    'refuses %s even where fractions are allowed',
    (text) => {
      expect(codeOf(() => parse(text, { integersOnly: false }))).toBe('JSON_INVALID')
    },
  )

  it.each([[[0xff]], [[0x22, 0xc0, 0x80, 0x22]], [[0x22, 0xed, 0xa0, 0x80, 0x22]], [[0x22, 0xe2, 0x82, 0x22]]])(
    'refuses invalid UTF-8 %j',
    (bytes) => {
      expect(codeOf(() => parseStrictJson(Uint8Array.from(bytes), { maxBytes: 100 }))).toBe('JSON_INVALID')
    },
  )

  it('refuses a text over its limit and one nested too deep', () => {
    expect(codeOf(() => parse('[1,2]', { maxBytes: 4 }))).toBe('JSON_TOO_LARGE')
    expect(parse('[1,2]', { maxBytes: 5 })).toEqual([1, 2])
    const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth)
    expect(codeOf(() => parse(nested(16)))).toBe('accepted')
    expect(codeOf(() => parse(nested(17)))).toBe('JSON_TOO_DEEP')
    expect(codeOf(() => parse('['.repeat(50_000)))).toBe('JSON_TOO_DEEP')
    expect(codeOf(() => parse('{"a":{"b":{}}}', { maxDepth: 2 }))).toBe('JSON_TOO_DEEP')
  })

  it('keeps __proto__ and constructor as plain keys', () => {
    const value = parse('{"__proto__":{"admin":1},"constructor":2}') as Record<string, unknown>
    expect(Object.keys(value)).toEqual(['__proto__', 'constructor'])
    expect(value['admin']).toBeUndefined()
    expect(value['toString']).toBeUndefined()
    expect(({} as Record<string, unknown>)['admin']).toBeUndefined()
  })

  it('agrees with JSON.parse on every JSON value', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 8 }), (value) => {
        const text = JSON.stringify(value)
        fc.pre(!/-0(?![.\d])|-0\.0*(?!\d)/.test(text) && !/(?<![.\d])\d{16,}|e[+-]?\d/.test(text))
        expect(plain(parse(text, { integersOnly: false }))).toEqual(JSON.parse(text))
      }),
      { numRuns: 300 },
    )
  })

  it('accepts nothing that JSON.parse refuses, and reads the same value where both accept', () => {
    const pieces = [
      '{',
      '}',
      '[',
      ']',
      ',',
      ':',
      '"',
      '"a"',
      '"b"',
      '\\',
      '\\u',
      'd800',
      '0',
      '-',
      '1',
      '.',
      'e',
      ' ',
      'null',
      '\ufeff',
    ]
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...pieces), { maxLength: 12 }), (parts) => {
        const text = parts.join('')
        const code = codeOf(() => parse(text, { integersOnly: false }))
        if (code === 'accepted') expect(plain(parse(text, { integersOnly: false }))).toEqual(JSON.parse(text))
        else expect(code).toMatch(/^JSON_/)
      }),
      { numRuns: 3000 },
    )
  })

  it('throws nothing but its own errors on arbitrary bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        expect(codeOf(() => parseStrictJson(bytes, { maxBytes: 64 }))).toMatch(/^JSON_|^accepted$/)
      }),
      { numRuns: 1000 },
    )
  })
})
