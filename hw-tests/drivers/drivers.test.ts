import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { LabError } from '../harness/lab-error.ts'
import { gpiosetArguments } from './gpio.ts'
import { openPower, type Power, type PowerWiring } from './power.ts'
import { plugPath, plugState } from './power-http.ts'
import { PROTOCOLS } from './power-relay.ts'
import { apcOutlet, poePort } from './power-snmp.ts'
import { portPower } from './power-uhubctl.ts'
import * as standIns from './stand-ins.ts'
import { runTool } from './tool.ts'
import { toolsFolder } from './tools-folder.ts'

const { folder, bin, file } = toolsFolder('drivers')
const closing: (() => unknown)[] = []
afterAll(async () => {
  for (const close of closing) await close()
})

interface StandIn {
  readonly wiring: PowerWiring
  /** What the outlet really is. */
  on(): boolean | undefined
  /** From now on the outlet obeys no more; undefined where the driver could not notice. */
  readonly stick?: () => void
  /** Power cannot be asked for before something was ordered. */
  readonly blind?: true
}

async function relay(
  speaks: keyof typeof PROTOCOLS,
  make: Promise<standIns.RelayBoard>,
  channel: number,
): Promise<StandIn> {
  const board = await make
  closing.push(() => board.close())
  return {
    wiring: { driver: 'usb-relay', speaks, path: board.path, channel },
    on: () => board.channels.get(channel),
    ...(speaks === 'icstation' ? { blind: true } : { stick: () => (board.stuck = true) }),
  }
}

async function httpPlug(
  speaks: 'tasmota' | 'shelly-1' | 'shelly-2',
  make: Promise<standIns.Plug>,
  outlet: number | undefined,
  more: object = {},
): Promise<StandIn> {
  const plug = await make
  closing.push(() => plug.close())
  const number = outlet ?? 1
  return {
    wiring: { driver: 'http', speaks, address: plug.address, ...(outlet !== undefined && { outlet }), ...more },
    on: () => plug.outlets.get(number),
    stick: () => (plug.stuck = true),
  }
}

async function programs(wiring: PowerWiring, names: Readonly<Record<string, string>>, state: string): Promise<StandIn> {
  for (const [name, script] of Object.entries(names)) await standIns.program(bin, name, script)
  const read = () => file(state)?.trim()
  return {
    wiring,
    on: () => (read() === undefined ? undefined : read() === 'on' || read() === '1'),
    stick: () => writeFileSync(join(bin, `${state}.stuck`), ''),
  }
}

const KEEP = '[ -e "$STATE.stuck" ] ||'
const HUB = `
case "$*" in *"-a on"*) ${KEEP} echo on >"$STATE";; *"-a off"*) ${KEEP} echo off >"$STATE";; esac
echo "Current status for hub 2-1 [05e3:0626 USB3.1 Hub, USB 3.20, 4 ports, ppps]"
echo "  Port 3: 02a0 power 5gbps Rx.Detect"
echo "Current status for hub 1-1.4 [05e3:0610 USB2.1 Hub, USB 2.10, 4 ports, ppps]"
[ "$(cat "$STATE" 2>/dev/null)" = on ] && echo "  Port 3: 0503 power highspeed enable connect" || echo "  Port 3: 0000 off"`

const SNMP = `
[ "$3" = private ] || { echo "Timeout: No Response from $5." >&2; exit 1; }
case $0 in *set) ${KEEP} [ "$7" != i ] || { s=\${STATE%set.state}; [ -e "$s""get.state.stuck" ] || echo "$8" >"$s""get.state"; } ;; esac
cat "$(dirname "$0")/snmpget.state"`

const POWERS: Readonly<Record<string, () => Promise<StandIn>>> = {
  'a command': () =>
    programs(
      { driver: 'command', on: ['outlet', 'on'], off: ['outlet', 'off'], state: ['outlet', 'state'] },
      { outlet: `[ "$1" = state ] && exec cat "$STATE"; ${KEEP} echo "$1" >"$STATE"` },
      'outlet.state',
    ),
  'an LCUS relay board': () => relay('lcus', standIns.lcusBoard(folder), 2),
  'a KMTronic relay board': () => relay('kmtronic', standIns.kmtronicBoard(folder), 1),
  'a KMTronic board with eight relays': () => relay('kmtronic-8', standIns.kmtronic8Board(folder), 3),
  'an LCUS board with one relay': async () => {
    const { stick: _, ...rest } = await relay('lcus', standIns.lcus1Board(folder), 1)
    return { ...rest, wiring: { ...rest.wiring, blind: true } as PowerWiring, blind: true }
  },
  'a Numato relay board': () => relay('numato', standIns.numatoBoard(folder), 11),
  'an ICStation relay board': () => relay('icstation', standIns.icstationBoard(folder), 2),
  'a Tasmota plug': () => httpPlug('tasmota', standIns.tasmota(), undefined),
  'a Tasmota strip with a password': () =>
    httpPlug('tasmota', standIns.tasmota('p&w d'), 3, { user: 'admin', password: 'p&w d' }),
  'a Shelly plug of the first generation': () => httpPlug('shelly-1', standIns.shelly(1), 0),
  'a Shelly plug of the second generation': () => httpPlug('shelly-2', standIns.shelly(2), 2),
  'a USB hub': () => programs({ driver: 'uhubctl', hub: '1-1.4', port: 3 }, { uhubctl: HUB }, 'uhubctl.state'),
  'a PDU by SNMP': () =>
    programs(
      { driver: 'snmp', host: 'pdu-1', community: 'private', oid: '.1.2.3', on: 1, off: 2 },
      { snmpget: SNMP, snmpset: SNMP },
      'snmpget.state',
    ),
}

describe('power: every driver keeps the contract', () => {
  for (const [name, make] of Object.entries(POWERS))
    it(`${name} goes on and off, tells its state, and an outlet that does not obey is a broken lab`, async () => {
      const standIn = await make()
      const power: Power = openPower(standIn.wiring)
      for (const wanted of [true, false, true]) {
        await (wanted ? power.on() : power.off())
        // A board that cannot answer may still be reading.
        await expect.poll(() => standIn.on()).toBe(wanted)
        expect(await power.state()).toBe(wanted)
      }
      if (standIn.stick !== undefined) {
        standIn.stick()
        await expect(power.off()).rejects.toThrow(LabError)
        expect(standIn.on()).toBe(true)
      }
      await power.close()
    })

  it('a board on the contact that is closed at rest has power when the relay has none', async () => {
    const { wiring, on } = await relay('lcus', standIns.lcusBoard(folder), 1)
    const power = openPower({ ...wiring, normallyClosed: true } as PowerWiring)
    expect(await power.state()).toBe(true)
    await power.off()
    expect(on()).toBe(true)
    await power.close()
  })

  it('two runs have two channels of one relay board', async () => {
    const { wiring, on } = await relay('lcus', standIns.lcusBoard(folder), 1)
    const [one, other] = [openPower(wiring), openPower({ ...wiring, channel: 2 } as PowerWiring)]
    await one.on()
    await Promise.all([other.on(), one.off(), one.state()])
    expect([on(), await one.state(), await other.state()]).toEqual([false, false, true])
    for (const power of [one, other]) await power.close()
  })

  it('a board that was started by an earlier run does what the next one tells it', async () => {
    const { wiring, on } = await relay('icstation', standIns.icstationBoard(folder), 2)
    for (const wanted of [true, false, true]) {
      const power = openPower(wiring)
      await (wanted ? power.on() : power.off())
      await expect.poll(() => on()).toBe(wanted)
      await power.close()
    }
  })

  it('one channel of a board that is told all at once leaves the others as they were told', () => {
    const told = new Map([[1, true]])
    expect(PROTOCOLS.icstation.order(3, true, told)).toEqual(Buffer.from([0b11111010]))
    expect(PROTOCOLS.icstation.order(1, false, told)).toEqual(Buffer.from([0xff]))
    expect(PROTOCOLS.lcus.order(1, true)).toEqual(Buffer.from([0xa0, 0x01, 0x01, 0xa2]))
  })

  it('what is not there or says nonsense is a broken lab, with its words', async () => {
    const fails = async (wiring: PowerWiring, words: RegExp) => {
      const failure = openPower(wiring).on()
      await expect(failure).rejects.toThrow(LabError)
      await expect(failure).rejects.toThrow(words)
    }
    await fails({ driver: 'command', on: ['no-such-program-here'], off: [] }, /no-such-program-here` does not start/)
    await fails(
      { driver: 'command', on: ['sh', '-c', 'echo wires crossed >&2; exit 3'], off: [] },
      /ended with 3: wires crossed/,
    )
    await fails({ driver: 'command', on: ['true'], off: [], state: ['echo', 'perhaps'] }, /printed "perhaps"/)
    await fails({ driver: 'http', speaks: 'tasmota', address: 'http://127.0.0.1:9' }, /does not answer/)
    await fails({ driver: 'usb-relay', speaks: 'lcus', path: join(folder, 'nothing'), channel: 1 }, /does not open/)
    await fails({ driver: 'snmp', host: 'pdu', community: 'public', ...poePort(4) }, /Timeout/)
    const locked = await httpPlug('tasmota', standIns.tasmota('right'), 1, { user: 'admin', password: 'wrong' })
    await fails(locked.wiring, /answered 401/)
    const mute = await standIns.relayBoard(folder, (got) => ({ used: got.length }))
    closing.push(() => mute.close())
    await fails({ driver: 'usb-relay', speaks: 'kmtronic', path: mute.path, channel: 1 }, /does not tell the state/)
    expect(() => portPower({ driver: 'uhubctl', hub: '1-1', port: 9 }, 'Current status for hub 1-1\n')).toThrow(
      LabError,
    )
    await expect(runTool(['sleep', '9'], 50)).rejects.toThrow(/was stopped \(SIGKILL\) after 0.05 s/)
    // What it has started neither lives on nor is waited for.
    await expect(runTool(['sh', '-c', 'sleep 99 & wait'], 50)).rejects.toThrow(/was stopped/)
    expect(await runTool(['sh', '-c', 'sleep 3 & echo done'])).toBe('done\n')
    await expect(
      runTool(['sh', '-c', 'echo secret word $1 >&2; exit 1', 'sh', 'word'], 5000, ['word', '']),
    ).rejects.toThrow('secret *** $1 >&2; exit 1 sh ***` ended with 1: secret *** ***')
    const refused = openPower({ driver: 'snmp', host: 'pdu', community: 'hush', ...poePort(4) }).on()
    await expect(refused).rejects.toThrow(/-c \*\*\* -Oqve pdu/)
  })

  it('a plug whose first relay has a number answers to its name, too', () => {
    const plug = { driver: 'http', speaks: 'tasmota', address: 'http://plug' } as const
    expect(plugState(plug, { POWER1: 'ON' })).toBe(true)
    expect(plugState({ ...plug, outlet: 1 }, { POWER: 'OFF' })).toBe(false)
    expect(() => plugState({ ...plug, outlet: 2 }, { POWER1: 'ON' })).toThrow(LabError)
  })

  it('addresses, numbers and arguments are those of the devices', () => {
    const shelly = { driver: 'http', speaks: 'shelly-2', address: '' } as const
    expect(plugPath(shelly, 'on')).toBe('/rpc/Switch.Set?id=0&on=true')
    expect(plugPath({ ...shelly, speaks: 'tasmota', outlet: 2 }, 'off')).toBe('/cm?cmnd=Power2%20Off')
    expect(apcOutlet(7)).toEqual({ oid: '.1.3.6.1.4.1.318.1.1.4.4.2.1.3.7', on: 1, off: 2 })
    expect(gpiosetArguments('gpioset (libgpiod) v1.6.3', 'gpiochip0', 4, 1)).toEqual([
      '--mode=signal',
      'gpiochip0',
      '4=1',
    ])
    expect(gpiosetArguments('gpioset (libgpiod) v2.2.1', 'gpiochip0', 4, 0)).toEqual([
      '--banner',
      '--chip',
      'gpiochip0',
      '4=0',
    ])
    expect(() => gpiosetArguments('gpioset v3', 'gpiochip0', 4, 0)).toThrow(LabError)
  })
})
