import { BOOTSTATE_BYTES, FILES, type FileIndex } from './layout.ts'

/**
 * The boot state partition of a device with U-Boot: a first sector that says what it is, and the three blocks at the same
 * offsets as on a device with GRUB (`layout.ts`), each in its first sector. Nothing here is a file system.
 */

/** Bytes of one copy of the environment: one sector, so that a change is one sector-sized write. */
export const ENV_BYTES = 512

/**
 * The first sector. For people it is a fw_env.config too: replace DEVICE, and fw_printenv and fw_setenv work.
 */
export function ubootHeader(): Uint8Array {
  const lines = [
    '# bistable boot state, U-Boot',
    '# Two copies of one environment; for fw_printenv and fw_setenv:',
    ...FILES.slice(0, 2).map(({ offset }) => `DEVICE 0x${offset.toString(16)} 0x${ENV_BYTES.toString(16)}`),
    '',
  ]
  const sector = Buffer.alloc(512)
  sector.write(lines.join('\n'), 'latin1')
  return new Uint8Array(sector)
}

/** A whole partition image with the given copies (512 bytes each) and reason block (1024 bytes). */
export function ubootLayoutImage(contents: readonly [Uint8Array, Uint8Array, Uint8Array]): Uint8Array {
  const image = new Uint8Array(BOOTSTATE_BYTES)
  image.set(ubootHeader())
  for (const [index, { offset }] of FILES.entries()) image.set(contents[index as FileIndex], offset)
  return image
}
