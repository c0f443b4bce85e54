import type { Duplex } from 'node:stream'

/** What a place gives a test when the power goes on: emulated or made of metal. */
export interface Machine {
  /** The console, open before the first instruction runs. */
  readonly port: Duplex
  /** Where there is a real serial port. */
  readonly modem?: Modem
  /** Path at which the running device's medium can be read from outside. */
  readonly liveDisk?: string
  /** The power goes at once. */
  cut(): Promise<void>
  /** The reset button. */
  reset(): Promise<void>
  /** A stick with this image is plugged in. */
  plug(image: string): Promise<void>
  /** It is pulled, without a word before. */
  unplug(): Promise<void>
  /** Writes the whole state (memory, devices) to a file and ends the machine. Emulated machines only. */
  save?(file: string): Promise<void>
  /** What it says of itself when the device in it hangs, for the transcript. Emulated machines only. */
  account?(): Promise<readonly string[]>
}

/** The lines of a serial port besides data. */
export interface Modem {
  /** Holds the line in break condition for so long: Linux takes it as the SysRq key, some boot loaders as "stop". */
  sendBreak(ms: number): Promise<void>
  set(lines: { readonly dtr?: boolean; readonly rts?: boolean }): Promise<void>
}
