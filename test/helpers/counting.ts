import type { ByteSource } from '../../base/source.ts'
import { openFileDoor } from '../../device/doors/file.ts'

/** A file door, and how many bytes came through it. */
export async function countingDoor(path: string): Promise<{ source: ByteSource; counted: { bytes: number } }> {
  const inner = await openFileDoor(path)
  const counted = { bytes: 0 }
  const source: ByteSource = {
    name: inner.name,
    size: inner.size,
    async *read(...asked) {
      for await (const piece of inner.read(...asked)) {
        counted.bytes += piece.length
        yield piece
      }
    },
    close: () => inner.close(),
  }
  return { source, counted }
}
