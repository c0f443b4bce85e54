import { defineErrors } from './errors.ts'

/**
 * The one JSON parser for bytes from outside.
 *
 * JSON.parse keeps the last of two equal keys, takes lone surrogates, turns 1e400 into Infinity and rounds large
 * integers; another reader of the same signed bytes may then see another value. This one refuses all of these.
 */

export const jsonErrors = defineErrors({
  JSON_INVALID: {
    family: 'input',
    meaning: 'Bytes that should be JSON in the strict form are not.',
    next: 'Write the file again with the tool that made it; do not edit it by hand.',
  },
  JSON_TOO_LARGE: {
    family: 'input',
    meaning: 'A JSON document is longer than its limit.',
    next: 'Check that the right file was given.',
  },
  JSON_TOO_DEEP: {
    family: 'input',
    meaning: 'A JSON document nests arrays and objects deeper than its limit.',
    next: 'Check that the right file was given.',
  },
})

export interface JsonLimits {
  /** Longest document that is read at all, in bytes. */
  readonly maxBytes: number
  /** Deepest nesting of arrays and objects; 16 unless told. */
  readonly maxDepth?: number
  /** True unless told: fractions and exponents are refused. Integers outside +-(2^53 - 1) and -0 always are. */
  readonly integersOnly?: boolean
}

/**
 * Parses `bytes` as one JSON text (RFC 8259) and refuses whatever two readers could read differently: a byte order
 * mark, invalid UTF-8, lone surrogates, duplicate keys, numbers that do not survive as given, trailing bytes.
 *
 * Objects come without a prototype: `__proto__` and `constructor` are keys like any other, and a missing key is
 * always undefined.
 * @throws JSON_INVALID, JSON_TOO_LARGE, JSON_TOO_DEEP
 */
export function parseStrictJson(bytes: Uint8Array, limits: JsonLimits): unknown {
  if (bytes.length > limits.maxBytes)
    throw jsonErrors.JSON_TOO_LARGE(`the JSON text has ${bytes.length} bytes, at most ${limits.maxBytes} are read`)
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw jsonErrors.JSON_INVALID('the JSON text is not valid UTF-8', { cause })
  }
  return new Parser(text, limits.maxDepth ?? 16, limits.integersOnly ?? true).document()
}

const SPACE = /[ \t\n\r]*/y
const PLAIN = /[^"\\\u0000-\u001f]*/y
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y
const LONE_SURROGATE = /\p{Surrogate}/u
const HEX4 = /[0-9a-fA-F]{4}/y
const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
}

class Parser {
  readonly #text: string
  readonly #maxDepth: number
  readonly #integersOnly: boolean
  #at = 0

  constructor(text: string, maxDepth: number, integersOnly: boolean) {
    this.#text = text
    this.#maxDepth = maxDepth
    this.#integersOnly = integersOnly
  }

  document(): unknown {
    const value = this.#value(0)
    this.#match(SPACE)
    if (this.#at !== this.#text.length) throw this.#invalid('the end')
    return value
  }

  #value(depth: number): unknown {
    this.#match(SPACE)
    switch (this.#text[this.#at]) {
      case '{':
        return this.#object(depth + 1)
      case '[':
        return this.#array(depth + 1)
      case '"':
        return this.#string()
      case 't':
        return this.#word('true', true)
      case 'f':
        return this.#word('false', false)
      case 'n':
        return this.#word('null', null)
      default:
        return this.#number()
    }
  }

  #object(depth: number): Record<string, unknown> {
    this.#enter(depth)
    const object: Record<string, unknown> = Object.create(null)
    if (this.#take('}')) return object
    do {
      this.#match(SPACE)
      const start = this.#at
      const key = this.#string()
      if (key in object) {
        this.#at = start
        throw this.#invalid('a key not seen before in this object')
      }
      if (!this.#take(':')) throw this.#invalid("':'")
      object[key] = this.#value(depth)
    } while (this.#take(','))
    if (!this.#take('}')) throw this.#invalid("',' or '}'")
    return object
  }

  #array(depth: number): unknown[] {
    this.#enter(depth)
    const array: unknown[] = []
    if (this.#take(']')) return array
    do array.push(this.#value(depth))
    while (this.#take(','))
    if (!this.#take(']')) throw this.#invalid("',' or ']'")
    return array
  }

  #enter(depth: number): void {
    if (depth > this.#maxDepth)
      throw jsonErrors.JSON_TOO_DEEP(`the JSON text nests deeper than ${this.#maxDepth} at character ${this.#at}`)
    this.#at++
  }

  #string(): string {
    const start = this.#at
    if (this.#text[start] !== '"') throw this.#invalid('a string')
    this.#at++
    let out = ''
    for (;;) {
      out += this.#match(PLAIN)
      const next = this.#text[this.#at]
      if (next === '"') break
      if (next !== '\\') throw this.#invalid('the closing quote of a string')
      out += this.#escape()
    }
    this.#at++
    if (LONE_SURROGATE.test(out)) {
      this.#at = start
      throw this.#invalid('a string without lone surrogates')
    }
    return out
  }

  #escape(): string {
    const letter = this.#text[this.#at + 1] ?? ''
    if (letter !== 'u') {
      const plain = ESCAPES[letter]
      if (plain === undefined) throw this.#invalid('a known escape')
      this.#at += 2
      return plain
    }
    this.#at += 2
    const digits = this.#match(HEX4)
    if (digits === '') throw this.#invalid('four hexadecimal digits')
    return String.fromCharCode(Number.parseInt(digits, 16))
  }

  #number(): number {
    const start = this.#at
    const digits = this.#match(NUMBER)
    if (digits === '') throw this.#invalid('a JSON value')
    const value = Number(digits)
    const integer = /^-?[0-9]+$/.test(digits)
    const sound = integer ? Number.isSafeInteger(value) : !this.#integersOnly && Number.isFinite(value)
    if (!sound || Object.is(value, -0)) {
      this.#at = start
      throw this.#invalid(this.#integersOnly ? 'an integer within 2^53 - 1, not -0' : 'a number that survives as given')
    }
    return value
  }

  #word<T>(word: string, value: T): T {
    if (!this.#text.startsWith(word, this.#at)) throw this.#invalid('a JSON value')
    this.#at += word.length
    return value
  }

  /** Steps over `char`, and space before it, when it comes next. */
  #take(char: string): boolean {
    this.#match(SPACE)
    if (this.#text[this.#at] !== char) return false
    this.#at++
    return true
  }

  #match(pattern: RegExp): string {
    pattern.lastIndex = this.#at
    const found = pattern.exec(this.#text)?.[0] ?? ''
    this.#at += found.length
    return found
  }

  #invalid(wanted: string): Error {
    const found =
      this.#at < this.#text.length ? JSON.stringify(this.#text.slice(this.#at, this.#at + 12)) : 'the end of the text'
    return jsonErrors.JSON_INVALID(`at character ${this.#at}: found ${found}, wanted ${wanted}`)
  }
}
