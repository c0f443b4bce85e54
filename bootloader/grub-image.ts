export interface GrubImageOptions {
  /** Seconds that a menu waits for a key before it boots by itself; 0 (the default): no menu unless Shift is held. */
  readonly menuSeconds?: number
}

/** Writes BOOTX64.EFI. */
export function grubEfiImage(_outPath: string, _options: GrubImageOptions = {}): Promise<void> {
  throw new Error('not yet')
}
