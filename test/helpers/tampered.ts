import type { ByteSource } from '../../base/source.ts'

/** A source that may be pulled or lie, told by what was read of it so far. */
export function tampered(
  inner: ByteSource,
  change: (at: number, piece: Uint8Array, readSoFar: number) => Uint8Array,
): ByteSource {
  let readSoFar = 0
  return {
    name: inner.name,
    size: inner.size,
    async *read(offset, length, options) {
      let at = offset
      for await (const piece of inner.read(offset, length, options)) {
        readSoFar += piece.length
        yield change(at, piece, readSoFar)
        at += piece.length
      }
    },
    close: () => inner.close(),
  }
}
