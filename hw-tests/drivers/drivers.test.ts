import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { LabError } from '../harness/lab-error.ts'
import { openBootMode } from './boot-mode.ts'
import { gpioLine, gpiosetArguments } from './gpio.ts'
import { openPower, type Power, type PowerWiring } from './power.ts'
import { plugPath } from './power-http.ts'
import { PROTOCOLS } from './power-relay.ts'
import { apcOutlet, poePort } from './power-snmp.ts'
import { portPower } from './power-uhubctl.ts'
import * as standIns from './stand-ins.ts'
import { noStorage, openStorage } from './storage.ts'
import { muxCommand, muxSide } from './storage-mux.ts'
import { attachedPort } from './storage-usbip.ts'
import { runTool } from './tool.ts'

const folder = mkdtempSync(join(tmpdir(), 'bistable-drivers-'))
const bin = join(folder, 'bin')
mkdirSync(bin)
const path = process.env['PATH']
process.env['PATH'] = `${bin}:${path}`
const closing: (() => unknown)[] = []
afterAll(async () => {
  process.env['PATH'] = path
  for (const close of closing) await close()
  rmSync(folder, { recursive: true })
})
const file = (name: string) => (existsSync(join(bin, name)) ? readFileSync(join(bin, name), 'utf8') : undefined)
const log = (name: string) => (file(`${name}.state.log`) ?? '').trim().split('\n')

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
    expect(gpiosetArguments('gpioset (libgpiod) v2.2.1', 'gpiochip0', 4, 0)).toEqual(['--chip', 'gpiochip0', '4=0'])
    expect(() => gpiosetArguments('gpioset v3', 'gpiochip0', 4, 0)).toThrow(LabError)
  })
})

// Holds its line like gpioset 2.x: one at a time, until it is told to end.
const GPIOSET = `
[ "$1" = --version ] && { echo "gpioset (libgpiod) v2.2.1"; exit; }
mkdir "$STATE.$2.held" 2>/dev/null || { echo "gpioset: unable to request lines on chip '$2': Device or resource busy" >&2; exit 1; }
echo "$3" >"$STATE"
trap 'rmdir "$STATE.$2.held"; echo none >"$STATE"; exit 0' TERM
while :; do sleep 0.05; done`

describe('GPIO lines', () => {
  it('are held as long as they are wanted, one process at a time, and let go at the end', async () => {
    await standIns.program(bin, 'gpioset', GPIOSET)
    const power = openPower({ driver: 'gpio', chip: 'gpiochip0', line: 17, on: 0 })
    expect(await power.state()).toBeUndefined()
    await power.on()
    expect([file('gpioset.state')?.trim(), await power.state()]).toEqual(['17=0', true])
    await power.off()
    expect([file('gpioset.state')?.trim(), await power.state()]).toEqual(['17=1', false])
    const other = gpioLine('gpiochip0', 17)
    await expect(other.set(1)).rejects.toThrow(/does not hold gpiochip0 line 17.*busy/s)
    await power.close()
    expect(file('gpioset.state')?.trim()).toBe('none')
  })

  it('straps choose what the board boots from', async () => {
    await standIns.program(bin, 'gpioset', GPIOSET.replaceAll('$2.held', '$3.held'))
    const modes = { sd: [1, 0], emmc: [0, 1], odd: [1] } as const
    const straps = openBootMode({ driver: 'gpio', chip: 'gpiochip1', lines: [3, 4], modes })
    await straps.set('emmc')
    expect(log('gpioset').filter((line) => line.includes('gpiochip1'))).toEqual([
      '--chip gpiochip1 3=0',
      '--chip gpiochip1 4=1',
    ])
    await expect(straps.set('odd')).rejects.toThrow(/1 levels for 2 lines/)
    await expect(straps.set('nand')).rejects.toThrow(/no boot mode nand; there are: sd, emmc, odd/)
    await straps.close()
    const mode = openBootMode({ driver: 'command', modes: { sd: ['gpioset', '--version'] } })
    await mode.set('sd')
    expect(log('gpioset').at(-1)).toBe('--version')
  })
})

describe('storage', () => {
  const card = join(folder, 'card')

  it('an SD card goes to this machine and to the board, and is asked for where it is', async () => {
    await standIns.program(
      bin,
      'usbsdmux',
      `[ "$2" = get ] && exec cat "$STATE"; ${KEEP} echo "$2" >"$STATE"; [ "$2" = host ] && touch '${card}'; exit 0`,
    )
    const storage = openStorage({ driver: 'usbsdmux', mux: '/dev/usb-sd-mux/id-1', device: card, appearsMs: 200 })
    await storage.toBoard()
    expect(file('usbsdmux.state')?.trim()).toBe('dut')
    await storage.pull()
    expect(file('usbsdmux.state')?.trim()).toBe('off')
    expect(await storage.toHost()).toBe(card)
    rmSync(card)
    writeFileSync(join(bin, 'usbsdmux.state.stuck'), '')
    await expect(storage.toBoard()).rejects.toThrow(/sent to board and is at host/)
  })

  it('a card that does not appear is a broken lab; each multiplexer has its own words', async () => {
    const wiring = { driver: 'sd-mux-ctrl', mux: 'sd-wire_11', device: card, appearsMs: 100 } as const
    await standIns.program(
      bin,
      'sd-mux-ctrl',
      'case "$2" in --ts) echo TS >"$STATE";; --dut) echo DUT >"$STATE";; --status) echo "SD connected to: $(cat "$STATE")";; *) exit 1;; esac',
    )
    const storage = openStorage(wiring)
    await storage.toBoard()
    await expect(storage.toHost()).rejects.toThrow(/did not appear within 0.1 s/)
    expect(muxCommand(wiring, 'off')).toBeUndefined()
    expect(muxSide('SD connected to: DUT\n')).toBe('board')
    expect(muxSide('no such device')).toBeUndefined()
    await expect(noStorage('bench').toHost()).rejects.toThrow(/bench has no storage driver/)
  })

  it('a USB gadget is bound last, shows its image, and ejects by force', async () => {
    const configfs = join(folder, 'configfs')
    const gadget = join(configfs, 'usb_gadget/bistable-stick')
    mkdirSync(join(configfs, 'usb_gadget'), { recursive: true })
    const unit = join(gadget, 'functions/mass_storage.0/lun.0')
    const attribute = (name: string) => readFileSync(join(gadget, name), 'utf8').trim()
    const storage = openStorage({ driver: 'usb-gadget', image: '/lab/stick.img', controller: 'fe980000.usb', configfs })
    await storage.toBoard()
    expect(attribute('UDC')).toBe('fe980000.usb')
    expect([attribute('functions/mass_storage.0/lun.0/ro'), attribute('functions/mass_storage.0/lun.0/file')]).toEqual([
      '1',
      '/lab/stick.img',
    ])
    expect(existsSync(join(gadget, 'configs/c.1/mass_storage.0'))).toBe(true)
    // An older kernel has no forced_eject: an empty name it is.
    expect(await storage.toHost()).toBe('/lab/stick.img')
    expect(attribute('functions/mass_storage.0/lun.0/file')).toBe('')
    await storage.toBoard()
    writeFileSync(join(unit, 'forced_eject'), '')
    await storage.pull()
    expect(attribute('functions/mass_storage.0/lun.0/forced_eject')).toBe('1')
    const nowhere = openStorage({
      driver: 'usb-gadget',
      image: 'x',
      controller: 'y',
      configfs: '/proc/no-such-configfs',
    })
    await expect(nowhere.toBoard()).rejects.toThrow(/is configfs mounted/)
  })

  it('a far stick is attached by USB/IP and let go by its own port', async () => {
    writeFileSync(card, '')
    const head = 'Imported USB devices\n====================\n'
    const other =
      'Port 00: <Port in Use> at High Speed(480Mbps)\n       unknown (0951:1666)\n  3-1 -> usbip://lab-9:3240/1-1.2\n           -> remote bus/dev 001/004\n'
    await standIns.program(
      bin,
      'usbip',
      `case "$1" in
attach) [ "$3 $5" = "lab-3 1-1.2" ] && touch "$STATE";;
detach) [ "$3" = 1 ] && rm "$STATE";;
port) printf '${head}${other}'; [ ! -e "$STATE" ] || printf 'Port 01: <Port in Use>\\n   unknown\\n  3-2 -> usbip://lab-3:3240/1-1.2\\n';;
esac`,
    )
    const storage = openStorage({ driver: 'usbip', host: 'lab-3', bus: '1-1.2', device: card })
    expect(await storage.toHost()).toBe(card)
    expect(await storage.toHost()).toBe(card)
    expect(log('usbip').filter((line) => line.startsWith('attach'))).toHaveLength(1)
    await storage.toBoard()
    expect(existsSync(join(bin, 'usbip.state'))).toBe(false)
    expect(log('usbip')).toContain('detach --port 1')
    expect(attachedPort({ host: 'lab-9', bus: '1-1.2' }, `${head}${other}`)).toBe(0)
    expect(attachedPort({ host: 'lab-9', bus: '1-1.3' }, `${head}${other}`)).toBeUndefined()
  })
})
