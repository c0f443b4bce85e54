import type { ByteSource } from '../../base/source.ts'
import { engineOver, type Slots } from '../../device/agent/engine-over.ts'
import type { Engine } from '../../device/agent/ports.ts'
import { doorErrors } from '../../device/doors/errors.ts'
import { Machine, ModelDevice } from '../device-install/model.ts'
import type { World } from './world.ts'

/**
 * A link between a device in memory and its publisher that breaks at one byte, in one manner, and comes back after a time.
 * It stands where every door stands: it gives ranges of a bundle and small files. The rest of the engine is the real one.
 */

export type Manner =
  /** Says at once that it failed. */
  | 'refuses'
  /** Gives nothing more, and heeds its signal. */
  | 'hangs'
  /** Gives nothing more, and heeds nothing. */
  | 'deaf'
  /** Ends early, as if that were all. */
  | 'short'
  /** Gives other bytes. */
  | 'wrong'
  /** Gives more bytes than were asked for, without end. */
  | 'endless'
  /** A byte every ten seconds. */
  | 'slow'

export const MANNERS: readonly Manner[] = ['refuses', 'hangs', 'deaf', 'short', 'wrong', 'endless', 'slow']

/** Where it breaks: a small file, or a byte of the bundle. */
export type Place = { readonly file: string } | { readonly byte: number }

export class Link {
  readonly #world: World
  readonly #bundle: Uint8Array
  readonly #place: Place
  readonly #manner: Manner
  readonly #forMs: number
  /** Milliseconds of the world's clock. */
  brokenAt: number | undefined

  constructor(world: World, bundle: Uint8Array, place: Place, manner: Manner, forMs: number) {
    this.#world = world
    this.#bundle = bundle
    this.#place = place
    this.#manner = manner
    this.#forMs = forMs
  }

  get backAt(): number {
    return (this.brokenAt ?? Number.POSITIVE_INFINITY) + this.#forMs
  }

  /** The real engine over slots in memory, with this link instead of its doors. */
  engine(): (files: World['files'], data: string) => Engine {
    const slots = memorySlots()
    return (files, data) => ({
      ...engineOver(data, files, slots),
      open: async (name, signal) => {
        // Opening asks for the first bytes, as every door does.
        for await (const _ of this.#bytes({ byte: 0 }, this.#bundle.subarray(0, 64), signal)) break
        return this.#source(name)
      },
      fetchSmall: async (url, limit, signal) => {
        const found = this.#world.web.get(url.href)
        if (found instanceof Error) throw found
        const pieces: Uint8Array[] = []
        let total = 0
        for await (const piece of this.#bytes({ file: url.pathname }, found ?? new Uint8Array(0), signal)) {
          total += piece.length
          if (total > limit) throw doorErrors.TRANSPORT_TOO_LARGE(`more than ${limit} bytes`)
          pieces.push(piece)
        }
        return found === undefined ? undefined : Buffer.concat(pieces)
      },
    })
  }

  #source(name: string): ByteSource {
    const bundle = this.#bundle
    const bytes = (offset: number, length: number, signal?: AbortSignal) =>
      this.#bytes({ byte: offset }, bundle.subarray(offset, offset + length), signal)
    return {
      name,
      size: bundle.length,
      read: (offset, length, options) => bytes(offset, length, options?.signal),
      close: async () => undefined,
    }
  }

  async *#bytes(from: Place, bytes: Uint8Array, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    const at = this.#breaksAt(from, bytes.length)
    if (at === undefined) {
      yield* pieces(bytes)
      return
    }
    this.brokenAt ??= this.#world.mono
    yield* pieces(bytes.subarray(0, at))
    const rest = bytes.subarray(at)
    switch (this.#manner) {
      case 'refuses':
        throw doorErrors.TRANSPORT_LOST('the link is down')
      case 'hangs':
        return await new Promise((_, stop) =>
          signal?.addEventListener('abort', () => stop(signal.reason), { once: true }),
        )
      case 'deaf':
        return await new Promise(() => undefined)
      case 'short':
        return
      case 'wrong':
        yield* pieces(rest.map((byte) => byte ^ 0x55))
        return
      case 'endless':
        for (;;) {
          yield* pieces(rest.length === 0 ? new Uint8Array(64) : rest)
          await this.#world.sleep(1, signal)
        }
      case 'slow':
        for (const byte of rest) {
          await this.#world.sleep(10_000, signal)
          yield Uint8Array.of(byte)
        }
    }
  }

  /** How many bytes of this answer still come; undefined: all. */
  #breaksAt(from: Place, length: number): number | undefined {
    const place = this.#place
    const down = this.brokenAt !== undefined && this.#world.mono < this.backAt
    // While it is down nothing comes at all; a link that lies goes on lying in the same place only.
    if (down && ['refuses', 'hangs', 'deaf', 'slow'].includes(this.#manner)) return 0
    if (this.brokenAt !== undefined && !down) return undefined
    if ('file' in place) return 'file' in from && from.file === place.file ? Math.min(10, length) : undefined
    if ('file' in from || place.byte < from.byte || place.byte >= from.byte + length) return undefined
    return place.byte - from.byte
  }
}

/** Both slots of a device, in memory. */
export function memorySlots(): Slots {
  const machine = new Machine()
  const slot = () => ({
    boot: new ModelDevice('boot', Buffer.alloc(1 << 20), machine),
    rootfs: new ModelDevice('rootfs', Buffer.alloc(1 << 20), machine),
  })
  const slots = { a: slot(), b: slot() }
  return {
    forWriting: async (name, image) => slots[name][image],
    forReuse: async (name, image) => slots[name][image],
    forVerifying: async (name, image) => slots[name][image],
  }
}

function* pieces(bytes: Uint8Array): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += 16_384) yield bytes.slice(at, at + 16_384)
}
