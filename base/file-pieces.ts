import { closeSync, constants, openSync, readSync } from 'node:fs'

const PIECE = 16 * 1024
/** Between two files: a new one for each of thousands is most of what the garbage collector has to do then. */
const MAX_IDLE = 4
const idle: Buffer[] = []

/**
 * The content of a regular file in pieces, each valid until the next one is asked for. Read by calls that wait: for many
 * small files that is several times quicker than the thread pool.
 * @param atMost bytes; what a growing file has beyond them is not read
 */
export function* filePieces(path: string, atMost: number): Generator<Uint8Array> {
  // Non-blocking: a fifo put in the place of a file must not stop the reader for ever.
  const file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  const piece = idle.pop() ?? Buffer.allocUnsafeSlow(PIECE)
  try {
    for (let left = atMost, read = 1; read > 0 && left > 0; left -= read) {
      read = readSync(file, piece, 0, Math.min(piece.length, left), null)
      if (read > 0) yield piece.subarray(0, read)
    }
  } finally {
    closeSync(file)
    if (idle.length < MAX_IDLE) idle.push(piece)
  }
}
