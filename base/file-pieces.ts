import { closeSync, constants, openSync, readSync } from 'node:fs'

const PIECE = 16 * 1024

/**
 * The content of a regular file in pieces, each valid until the next one is asked for. Read by calls that wait: for many
 * small files that is several times quicker than the thread pool.
 * @param atMost bytes; what a growing file has beyond them is not read
 */
export function* filePieces(path: string, atMost: number): Generator<Uint8Array> {
  // Non-blocking: a fifo put in the place of a file must not stop the reader for ever.
  const file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  const piece = Buffer.allocUnsafe(PIECE)
  try {
    for (let left = atMost, read = 1; read > 0 && left > 0; left -= read) {
      read = readSync(file, piece, 0, Math.min(piece.length, left), null)
      if (read > 0) yield piece.subarray(0, read)
    }
  } finally {
    closeSync(file)
  }
}
