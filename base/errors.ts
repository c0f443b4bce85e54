import { getSystemErrorMap } from 'node:util'

/**
 * Every refusal has a stable code, a sentence (what was found, what was wanted) and a next step.
 *
 * Each room declares its codes once, in its own `errors.ts`, with `defineErrors`; `docs/errors.md` is the union of
 * those tables and a test holds the two equal. A code never changes its meaning and is never reused.
 */

/** What kind of refusal it is; each kind has one exit code (docs/errors.md). */
export const EXIT = {
  /** A defect of ours. */
  internal: 1,
  /** The command line or a configuration file is wrong. */
  usage: 2,
  /** What was given is malformed: not an image, not a bundle, truncated. */
  input: 3,
  /** It is well formed but not authentic: signature, digest, root hash. */
  authenticity: 4,
  /** It is authentic but not allowed here: product, hardware, floor, blocked release. */
  policy: 5,
  /** It is allowed but does not fit this device or its present state. */
  device: 6,
  /** The way in failed: server, broker, stick. */
  transport: 7,
  /** A disk or file failed: full, read error, lost write. */
  storage: 8,
  /** The boot state could not be read or written. */
  boot: 9,
  /** Something this command needs is missing on this machine. */
  environment: 10,
} as const

export type ErrorFamily = keyof typeof EXIT

export interface ErrorEntry {
  readonly family: ErrorFamily
  /** One sentence: what this code means, wherever it appears. */
  readonly meaning: string
  /** One sentence: what the person in front of it does next. */
  readonly next: string
}

export interface ErrorExtras {
  readonly cause?: unknown
  /** Overrides the catalogue's next step where the place knows better. */
  readonly next?: string
  /** Machine-readable facts for `--json`: paths, digests, numbers. */
  readonly details?: Readonly<Record<string, unknown>>
}

export class BistableError extends Error {
  override readonly name = 'BistableError'
  readonly code: string
  readonly family: ErrorFamily
  readonly next: string
  readonly details: Readonly<Record<string, unknown>>

  constructor(code: string, entry: ErrorEntry, sentence: string, extras: ErrorExtras = {}) {
    super(sentence, extras.cause === undefined ? undefined : { cause: extras.cause })
    this.code = code
    this.family = entry.family
    this.next = extras.next ?? entry.next
    this.details = extras.details ?? {}
  }

  get exitCode(): number {
    return EXIT[this.family]
  }

  toJSON(): Record<string, unknown> {
    return { code: this.code, family: this.family, message: this.message, next: this.next, details: this.details }
  }
}

export type ErrorTable<Code extends string> = {
  readonly [C in Code]: (sentence: string, extras?: ErrorExtras) => BistableError
} & { readonly catalogue: Readonly<Record<Code, ErrorEntry>> }

/**
 * Declares a room's error codes.
 * @example
 * export const bundleErrors = defineErrors({ BUNDLE_TRUNCATED: { family: 'input', meaning: '…', next: '…' } })
 * throw bundleErrors.BUNDLE_TRUNCATED(`the bundle ends at byte ${at}, ${want} bytes were announced`)
 */
export function defineErrors<const T extends Readonly<Record<string, ErrorEntry>>>(
  table: T,
): ErrorTable<keyof T & string> {
  const made: Record<string, unknown> = { catalogue: table }
  for (const [code, entry] of Object.entries(table))
    made[code] = (sentence: string, extras?: ErrorExtras) => new BistableError(code, entry, sentence, extras)
  return made as ErrorTable<keyof T & string>
}

export function isBistableError(error: unknown, code?: string): error is BistableError {
  return error instanceof BistableError && (code === undefined || error.code === code)
}

/** The `code` of a Node.js system error ("ENOENT"), or undefined. */
export function systemCode(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined
  return typeof error.code === 'string' ? error.code : undefined
}

/** Why the system refused, for people: "no such file or directory (ENOENT)"; of other errors their own words. */
export function systemReason(error: unknown): string {
  const code = systemCode(error)
  if (code === undefined) return error instanceof Error ? error.message : String(error)
  const errno = typeof error === 'object' && error !== null && 'errno' in error ? error.errno : undefined
  const words = typeof errno === 'number' ? getSystemErrorMap().get(errno)?.[1] : undefined
  return words === undefined ? code : `${words} (${code})`
}
