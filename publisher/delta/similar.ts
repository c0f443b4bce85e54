/**
 * Which old pieces a new one resembles, whatever its name: every piece is known by a sample of its bytes. A place is in
 * the sample when a hash of the 32 bytes in front of it ends in zeros, so that equal bytes are sampled alike wherever
 * they stand.
 */

/** Samples kept of all old content: 64 MiB of tables. */
const MAX_SAMPLES = 1 << 22
/** As a share of a piece's own samples: less is chance. */
const RESEMBLES = 0.02

// Fixed numbers without a pattern, one for each byte value (xorshift32).
const GEAR = (() => {
  const table = new Int32Array(256)
  let x = 0x1f123bb5
  for (let i = 0; i < 256; i++) {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    table[i] = x
  }
  return table
})()

export class Similar {
  readonly #mask: number
  readonly #keys: Int32Array
  readonly #owners: Int32Array
  readonly #slots: number
  #used = 0

  /** @param total bytes of content that will be added: more of it is sampled more thinly */
  constructor(total: number) {
    const wanted = Math.min(MAX_SAMPLES, Math.max(1024, total / 64))
    // About one place in 2^bits.
    const bits = Math.max(6, Math.ceil(Math.log2(total / wanted)))
    this.#mask = (-1 << (32 - bits)) | 0
    this.#slots = 2 ** Math.ceil(Math.log2(wanted * 2))
    this.#keys = new Int32Array(this.#slots)
    this.#owners = new Int32Array(this.#slots).fill(-1)
  }

  /** Piece number `owner`; of samples that several have, the first keeps them. */
  add(content: Uint8Array, owner: number): void {
    this.#sample(content, (key, slot) => {
      if ((this.#owners[slot] as number) >= 0 || this.#used * 4 > this.#slots * 3) return
      this.#keys[slot] = key
      this.#owners[slot] = owner
      this.#used++
    })
  }

  /** The pieces that resemble this content most, best first. */
  find(content: Uint8Array, most: number): readonly number[] {
    const votes = new Map<number, number>()
    let all = 0
    this.#sample(content, (_, slot) => {
      all++
      const owner = this.#owners[slot] as number
      if (owner >= 0) votes.set(owner, (votes.get(owner) ?? 0) + 1)
    })
    return [...votes]
      .filter(([, count]) => count > all * RESEMBLES)
      .sort((a, b) => b[1] - a[1] || a[0] - b[0])
      .slice(0, most)
      .map(([owner]) => owner)
  }

  /** Hands out each sample with the slot that holds it, or that is free for it. */
  #sample(content: Uint8Array, each: (key: number, slot: number) => void): void {
    let hash = 0
    let last = 0
    for (let i = 0; i < content.length; i++) {
      hash = ((hash << 1) + (GEAR[content[i] as number] as number)) | 0
      if ((hash & this.#mask) !== 0 || hash === last) continue
      last = hash
      // The sampled hash itself has few bits left: bytes further back make up for them.
      const key = Math.imul(hash ^ Math.imul(wordAt(content, i - 19), 0x85ebca6b), 0x9e3779b1) ^ wordAt(content, i - 11)
      let slot = (key >>> 0) % this.#slots
      for (let n = 0; n < 64; n++) {
        if ((this.#owners[slot] as number) < 0 || this.#keys[slot] === key) {
          each(key, slot)
          break
        }
        slot = (slot + 1) % this.#slots
      }
    }
  }
}

function wordAt(bytes: Uint8Array, at: number): number {
  if (at < 0) return 0
  return (
    (bytes[at] as number) |
    ((bytes[at + 1] as number) << 8) |
    ((bytes[at + 2] as number) << 16) |
    ((bytes[at + 3] as number) << 24)
  )
}
