import { LabError } from '../harness/lab-error.ts'
import type { Power } from './power.ts'
import { agrees } from './power-command.ts'
import { runTool, TOOL_MS } from './tool.ts'

/** Power by a PDU's outlet (or a switch's PoE port), set with net-snmp's `snmpset` and read back with `snmpget`. */
export interface SnmpPower {
  readonly driver: 'snmp'
  readonly host: string
  /** Community of SNMP v2c that may write. */
  readonly community: string
  /** The outlet's numeric OID; `apcOutlet` and `poePort` know two common ones. */
  readonly oid: string
  readonly on: number
  readonly off: number
}

/** sPDUOutletCtl of APC's PowerNet-MIB: 1 on, 2 off. */
export function apcOutlet(outlet: number): Pick<SnmpPower, 'oid' | 'on' | 'off'> {
  return { oid: `.1.3.6.1.4.1.318.1.1.4.4.2.1.3.${outlet}`, on: 1, off: 2 }
}

/** pethPsePortAdminEnable of POWER-ETHERNET-MIB (RFC 3621), group 1: 1 true, 2 false. */
export function poePort(port: number): Pick<SnmpPower, 'oid' | 'on' | 'off'> {
  return { oid: `.1.3.6.1.2.1.105.1.1.1.3.1.${port}`, on: 1, off: 2 }
}

export function snmpPower(wiring: SnmpPower): Power {
  // Numbers of enumerations, also where the device's MIB is installed.
  const common = ['-v2c', '-c', wiring.community, '-Oqve', wiring.host, wiring.oid]
  // Who knows the community can switch the outlet: it must not get into a report.
  const run = (argv: readonly string[]) => runTool(argv, TOOL_MS, [wiring.community])
  const state = async () => {
    const text = (await run(['snmpget', ...common])).trim()
    // A setting in snmp.conf goes before an option: then it may have its name, too, "outletOn(1)".
    const value = Number(/^(?:[A-Za-z]\w*\()?(\d+)\)?$/.exec(text)?.[1])
    if (value !== wiring.on && value !== wiring.off)
      throw new LabError(`the outlet ${wiring.oid} of ${wiring.host} says "${text.slice(0, 100)}"`)
    return value === wiring.on
  }
  const turn = async (wanted: boolean) => {
    await run(['snmpset', ...common, 'i', String(wanted ? wiring.on : wiring.off)])
    await agrees(state, wanted, `the outlet ${wiring.oid} of ${wiring.host}`)
  }
  return { on: () => turn(true), off: () => turn(false), state, close: async () => {} }
}
