/** Changes inputs: bits, bytes, numbers, runs, splices of two inputs, and words that parsers look for. */

/** Numbers 0 <= x < 2^32 that a seed repeats exactly (xorshift32). */
export function numbersFrom(seed: number): () => number {
  let state = seed >>> 0 || 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    state >>>= 0
    return state
  }
}

const EDGES = [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff]
const WORDS = [
  '0',
  '-1',
  '1e400',
  '9007199254740993',
  '4294967296',
  '2147483648',
  '"',
  '\\u0000',
  '\ud800',
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  'null',
  'true',
  '__proto__',
  'critical',
  '../',
  '/',
  '\n',
  '\0',
  '#',
  '=',
  '\\',
  '.wh.',
  '.wh..wh..opq',
  ' ',
  '%',
].map((word): Buffer => Buffer.from(word))

const MAX = 64 * 1024

/** One to eight changes of `input`; `other` is a second input of the same target. */
export function mutate(input: Uint8Array, other: Uint8Array, random: () => number): Uint8Array {
  let bytes: Buffer = Buffer.from(input)
  for (let n = 1 + (random() % (random() % 4 === 0 ? 8 : 3)); n > 0; n--) bytes = change(bytes, other, random)
  return bytes.subarray(0, MAX)
}

function change(bytes: Buffer, other: Uint8Array, random: () => number): Buffer {
  const at = bytes.length === 0 ? 0 : random() % bytes.length
  const length = 1 + (random() % Math.min(64, bytes.length + 1))
  const insert = (what: Uint8Array) => Buffer.concat([bytes.subarray(0, at), what, bytes.subarray(at)])
  switch (random() % 12) {
    case 0:
    case 1:
      if (bytes.length > 0) bytes[at] = (bytes[at] ?? 0) ^ (1 << (random() % 8))
      return bytes
    case 2:
      if (bytes.length > 0) bytes[at] = random() % 256
      return bytes
    case 3: {
      // A number of 1, 2, 4 or 8 bytes, either way round.
      const width = [1, 2, 4, 8][random() % 4] ?? 1
      const edge = EDGES[random() % EDGES.length] ?? 0
      if (at + width > bytes.length) return bytes
      const value = BigInt.asUintN(width * 8, BigInt(edge) + BigInt(random() % 3) - 1n)
      for (let i = 0; i < width; i++)
        bytes[at + (random() % 2 === 0 ? i : width - 1 - i)] = Number((value >> BigInt(8 * i)) & 0xffn)
      return bytes
    }
    case 4:
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.min(bytes.length, at + length))])
    case 5:
      return bytes.subarray(0, at)
    case 6:
      return insert(bytes.subarray(at, at + length))
    case 7:
      return insert(WORDS[random() % WORDS.length] ?? bytes)
    case 8: {
      const from = other.length === 0 ? 0 : random() % other.length
      return insert(other.subarray(from, from + length))
    }
    case 9: {
      const from = other.length === 0 ? 0 : random() % other.length
      return Buffer.concat([bytes.subarray(0, at), other.subarray(from)])
    }
    case 10: {
      // A decimal number in text: another one.
      const found = /\d+/.exec(bytes.toString('latin1', at, at + 200))
      if (found === null) return bytes
      const word = WORDS[random() % 6] ?? WORDS[0] ?? bytes
      const start = at + found.index
      return Buffer.concat([bytes.subarray(0, start), word, bytes.subarray(start + found[0].length)])
    }
    default:
      return Buffer.concat([bytes.subarray(0, at), Buffer.alloc(length, random() % 256), bytes.subarray(at + length)])
  }
}
