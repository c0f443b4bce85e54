/** A partition as the boot state sees it. Small, so that a test can record every write and flush. */
export interface RawDevice {
  /** For messages. */
  readonly name: string
  /** Exactly `length` bytes at `offset`, from the medium where the system allows it. */
  read(offset: number, length: number): Promise<Uint8Array>
  write(offset: number, bytes: Uint8Array): Promise<void>
  /** Returns when everything written is on the medium. */
  flush(): Promise<void>
  close(): Promise<void>
}
