import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { type Files, writeFileDurably } from '../../base/durable.ts'
import { COMMITTED_NOTE, decodeNote, encodeNote } from '../../bootloader/committed-note.ts'
import { BLOCK_BYTES } from '../../bootloader/grub-block.ts'
import type { Slot } from '../../bootloader/state.ts'
import type { NotePort } from './ports.ts'

/**
 * The note of the slot committed last, beside the records.
 *
 * Overwritten in place: GRUB does not replay the journal of ext4, so it sees a new content of the same blocks at once
 * and a new file only later. One byte differs between the two contents, so no cut leaves a third.
 */
export function committedNote(folder: string, files: Files): NotePort {
  const path = join(folder, COMMITTED_NOTE)
  const read = async (): Promise<Slot | undefined> => {
    const bytes = await files.read(path, BLOCK_BYTES).catch(() => undefined)
    return bytes === undefined ? undefined : decodeNote(bytes)
  }
  return {
    read,
    write: async (slot) => {
      const present = await read()
      if (present === slot) return
      if (present === undefined) await writeFileDurably(path, encodeNote(slot), files)
      else await overwrite(path, encodeNote(slot))
    },
  }
}

async function overwrite(path: string, bytes: Uint8Array): Promise<void> {
  const file = await open(path, constants.O_WRONLY)
  try {
    await file.write(bytes, 0, bytes.length, 0)
    await file.sync()
  } finally {
    await file.close()
  }
}
