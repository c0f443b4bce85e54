import { LabError } from '../harness/lab-error.ts'
import { type GadgetStorage, gadgetStorage } from './storage-gadget.ts'
import { type MuxStorage, muxStorage } from './storage-mux.ts'
import { type UsbipStorage, usbipStorage } from './storage-usbip.ts'

/** A medium that is either at this machine or at the board, never at both. Every failure is a LabError. */
export interface Storage {
  /** Takes it to this machine; returns the path of its block device or image. */
  toHost(): Promise<string>
  /** Gives it to the board, which sees a medium appear. */
  toBoard(): Promise<void>
  /** Takes it from the board at once, as when a stick is pulled. Nobody has it then. */
  pull(): Promise<void>
}

export type StorageWiring = MuxStorage | GadgetStorage | UsbipStorage

export function openStorage(wiring: StorageWiring): Storage {
  switch (wiring.driver) {
    case 'sd-mux-ctrl':
    case 'usbsdmux':
      return muxStorage(wiring)
    case 'usb-gadget':
      return gadgetStorage(wiring)
    case 'usbip':
      return usbipStorage(wiring)
  }
}

/** A board without a medium that this machine can reach. */
export function noStorage(place: string): Storage {
  const refuse = () => Promise.reject(new LabError(`the place ${place} has no storage driver`))
  return { toHost: refuse, toBoard: refuse, pull: refuse }
}
