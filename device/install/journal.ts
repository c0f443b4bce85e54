/**
 * What an install decided and did, line by line, with no time, speed or place in it: from the same slot and the same
 * bundle the same journal follows, whatever the door. A line is at most 200 characters; neighbouring chunks share one.
 */
export type Journal = (line: string) => void

export type ChunkFate =
  /** The slot holds it already. */
  | 'keep'
  /** From another place on the device. */
  | 'reuse'
  /** Rebuilt by a patch. */
  | 'patch'
  /** That place, or the patch, had other bytes than it claimed: through the door, behind all others. */
  | 'refetch'
  | 'fetch'

/** Gathers the fates of neighbouring chunks into one line: "rootfs fetch 3-17". */
export class ChunkJournal {
  readonly #image: string
  readonly #journal: Journal
  #fate: ChunkFate | undefined
  #first = 0
  #last = 0

  constructor(image: string, journal: Journal) {
    this.#image = image
    this.#journal = journal
  }

  add(index: number, fate: ChunkFate): void {
    if (fate === this.#fate && index === this.#last + 1) {
      this.#last = index
      return
    }
    this.end()
    this.#fate = fate
    this.#first = index
    this.#last = index
  }

  /** Says the line that is open. */
  end(): void {
    if (this.#fate === undefined) return
    const chunks = this.#first === this.#last ? `${this.#first}` : `${this.#first}-${this.#last}`
    this.#journal(`${this.#image} ${this.#fate} ${chunks}`)
    this.#fate = undefined
  }
}
