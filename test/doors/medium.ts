/**
 * What stands behind a door in these tests: the bytes of a file, and how the medium or the link fails. Every door is put
 * before the same medium, so that the same failure can be asked of all of them.
 */
export type Fault =
  | { readonly kind: 'none' }
  /** The size is as said, but behind byte `at` every stream ends, in good order. */
  | { readonly kind: 'ends'; readonly at: number }
  /** Every answer has this many bytes more than were asked for. */
  | { readonly kind: 'late'; readonly more: number }
  /** From byte `at` on nothing comes, and nobody hangs up. */
  | { readonly kind: 'stalls'; readonly at: number }
  /** The link breaks so often, each time after so many bytes; the next one is good. */
  | { readonly kind: 'breaks'; readonly every: number; readonly times: number }
  /** After so many bytes in all it is gone. */
  | { readonly kind: 'gone'; readonly after: number }
  | { readonly kind: 'flips'; readonly at: number }
  /** After so many bytes in all, the content is another. */
  | { readonly kind: 'changes'; readonly after: number; readonly to: Uint8Array }

export const PIECE = 16 * 1024

export class Medium {
  fault: Fault = { kind: 'none' }
  /** Bytes that were given so far. */
  served = 0
  readonly bytes: Uint8Array

  constructor(bytes: Uint8Array) {
    this.bytes = bytes
  }

  get size(): number {
    return this.bytes.length
  }

  /** False while every new link fails at once. */
  get reachable(): boolean {
    return !(this.fault.kind === 'gone' && this.served >= this.fault.after)
  }

  /** True when the content is another by now. */
  get changed(): boolean {
    return this.fault.kind === 'changes' && this.served >= this.fault.after
  }

  /** How many bytes an answer to a read up to `end` carries to, for a door whose other side chooses that itself. */
  endOf(end: number): number {
    return this.fault.kind === 'late' ? end + this.fault.more : end
  }

  /** The next bytes of a stream that stands at `at` and is to end at `end`; or what happens instead. */
  next(at: number, end: number): Uint8Array | 'end' | 'stall' | 'break' {
    const { fault } = this
    let to = Math.min(end, at + PIECE)
    if (fault.kind === 'ends') to = Math.min(to, fault.at)
    if (fault.kind === 'stalls') {
      if (at >= fault.at) return 'stall'
      to = Math.min(to, fault.at)
    }
    if (fault.kind === 'gone') {
      if (this.served >= fault.after) return 'break'
      to = Math.min(to, at + fault.after - this.served)
    }
    if (fault.kind === 'breaks') {
      const next = fault.every * (this.#breaks + 1)
      if (this.#breaks < fault.times && this.served >= next) {
        this.#breaks++
        return 'break'
      }
      if (this.#breaks < fault.times) to = Math.min(to, at + next - this.served)
    }
    if (to <= at) return 'end'
    const from = this.changed && fault.kind === 'changes' ? fault.to : this.bytes
    // Behind the end of the file something else follows.
    const piece = Buffer.alloc(to - at, 0x5a)
    piece.set(from.subarray(at, Math.min(to, from.length)))
    if (fault.kind === 'flips' && fault.at >= at && fault.at < to) {
      const flipped = piece[fault.at - at] ?? 0
      piece[fault.at - at] = flipped ^ 1
    }
    this.served += piece.length
    return piece
  }

  #breaks = 0
}
