import { type CommandPower, commandPower } from './power-command.ts'
import { type GpioPower, gpioPower } from './power-gpio.ts'
import { type HttpPower, httpPower } from './power-http.ts'
import { type RelayPower, relayPower } from './power-relay.ts'
import { type SnmpPower, snmpPower } from './power-snmp.ts'
import { type UhubctlPower, uhubctlPower } from './power-uhubctl.ts'

/**
 * What cuts and gives a board its power. A driver returns when the outlet has taken the order, and where the outlet can
 * tell its state, it was asked and agrees. Every failure is a LabError.
 */
export interface Power {
  on(): Promise<void>
  off(): Promise<void>
  /** True when on, false when off, undefined where the outlet cannot tell. */
  state(): Promise<boolean | undefined>
  /** Lets go of what the driver holds (a port, a GPIO line). The outlet stays as it is where that is possible. */
  close(): Promise<void>
}

/** A place's wiring, as its file says it. */
export type PowerWiring = CommandPower | GpioPower | HttpPower | RelayPower | SnmpPower | UhubctlPower

export function openPower(wiring: PowerWiring): Power {
  switch (wiring.driver) {
    case 'command':
      return commandPower(wiring)
    case 'gpio':
      return gpioPower(wiring)
    case 'http':
      return httpPower(wiring)
    case 'usb-relay':
      return relayPower(wiring)
    case 'snmp':
      return snmpPower(wiring)
    case 'uhubctl':
      return uhubctlPower(wiring)
  }
}
