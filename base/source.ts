/**
 * Random access to bytes from outside: a file, a block device, a server.
 *
 * Whatever a source says is untrusted: it may be short, long, slow, or give other bytes on a second read.
 */
export interface ByteSource {
  /** For messages: a path or an address. */
  readonly name: string
  /** Total bytes, as the source claims. */
  readonly size: number
  /**
   * Yields exactly the bytes `offset .. offset+length-1`, in order, in pieces of at most 1 MiB. A piece is valid until
   * the next one is asked for; its memory may be used again then.
   * Fails with the source's own typed error when they cannot be had. Never yields more than `length` bytes.
   */
  read(offset: number, length: number, options?: { readonly signal?: AbortSignal }): AsyncIterable<Uint8Array>
  /**
   * The same for many ranges at once: their bytes, one range after the other, with nothing between. The ranges ascend
   * and do not overlap. A source that can do better than one after the other (coalesce, ask ahead) has this.
   */
  readRanges?(ranges: readonly ByteRange[], options?: { readonly signal?: AbortSignal }): AsyncIterable<Uint8Array>
  close(): Promise<void>
}

export interface ByteRange {
  readonly offset: number
  readonly length: number
}

interface Asked {
  readonly signal?: AbortSignal
}

/**
 * A source whose reads go through something else, each by itself.
 * @param through begins a read by `start`, whose `wanted` bytes are those of all its ranges
 */
export function filtered(
  source: ByteSource,
  through: (
    start: (options: Asked | undefined) => AsyncIterable<Uint8Array>,
    options: Asked | undefined,
    wanted: number,
  ) => AsyncIterable<Uint8Array>,
): ByteSource {
  const { readRanges } = source
  return {
    name: source.name,
    get size() {
      return source.size
    },
    read: (offset, length, options) => through((given) => source.read(offset, length, given), options, length),
    ...(readRanges === undefined
      ? {}
      : {
          readRanges: (ranges, options) =>
            through(
              (given) => readRanges.call(source, ranges, given),
              options,
              ranges.reduce((sum, { length }) => sum + length, 0),
            ),
        }),
    close: () => source.close(),
  }
}

/** The bytes of ascending ranges, one after the other, by whatever way the source has. */
export async function* readRanges(
  source: ByteSource,
  ranges: readonly ByteRange[],
  options: { readonly signal?: AbortSignal } = {},
): AsyncGenerator<Uint8Array> {
  if (source.readRanges !== undefined) yield* source.readRanges(ranges, options)
  else for (const { offset, length } of ranges) yield* source.read(offset, length, options)
}

/** Collects `length` bytes (the caller bounds it) of a source into one buffer. */
export async function readExactly(
  source: ByteSource,
  offset: number,
  length: number,
  options?: { readonly signal?: AbortSignal },
): Promise<Uint8Array> {
  const out = new Uint8Array(length)
  let at = 0
  for await (const piece of source.read(offset, length, options)) {
    if (at + piece.length > length) throw new RangeError(`${source.name} gave more than the ${length} bytes asked for`)
    out.set(piece, at)
    at += piece.length
  }
  if (at !== length) throw new RangeError(`${source.name} gave ${at} of the ${length} bytes asked for at ${offset}`)
  return out
}
