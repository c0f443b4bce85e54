import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import * as standIns from './stand-ins.ts'
import { noStorage, openStorage } from './storage.ts'
import { muxCommand, muxSide } from './storage-mux.ts'
import { attachedPort } from './storage-usbip.ts'
import { toolsFolder } from './tools-folder.ts'

const { folder, bin, file, log } = toolsFolder('storage')
const KEEP = '[ -e "$STATE.stuck" ] ||'

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
