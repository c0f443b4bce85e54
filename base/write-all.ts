import type { FileHandle } from 'node:fs/promises'

/** Writes all of `bytes` at `position` of an open file, in as many writes as the system takes. @throws what writing throws */
export async function writeAll(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let at = 0; at < bytes.length; )
    at += (await file.write(bytes, at, bytes.length - at, position + at)).bytesWritten
}
