import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { fakeLab } from '../fixtures/fake-lab.ts'
import { allPlaces, type BoardPlace, PLACES } from '../places/index.ts'
import { openBoard } from './board.ts'
import { Dut } from './dut.ts'
import { LabError } from './lab-error.ts'
import { nextHealth, quarantineText } from './quarantine.ts'

const root = resolve(import.meta.dirname, '..', '..')
const folder = mkdtempSync(join(tmpdir(), 'bistable-board-'))
afterAll(() => rmSync(folder, { recursive: true }))
const lab = (health?: string, more?: Partial<BoardPlace>, script?: string) => fakeLab(folder, health, more, script)

describe('a board', () => {
  it('is heard from its first byte on, and is off when it was cut; one that was left on is cut first', async () => {
    const { place, power, orders } = await lab()
    writeFileSync(power, 'on\n')
    const board = openBoard(place.name, place, { check: () => {} })
    const dut = new Dut({ disk: '/nowhere', machine: () => board.powerOn() })
    await dut.powerOn()
    await dut.next(['firmware'], { timeoutMs: 60_000 })
    expect((await dut.next(['running'], { timeoutMs: 60_000 })).fields).toMatchObject({ slot: 'a', release: '1.2' })
    await dut.powerCut()
    expect(readFileSync(power, 'utf8').trim()).toBe('off')
    expect(orders()).toEqual(['off', 'on', 'off'])
    const before = Date.now()
    await dut.powerOn()
    expect(Date.now() - before).toBeGreaterThanOrEqual(100)
    await dut.powerCut()
    await expect(dut.save('/x')).rejects.toThrow(/is off/)
    expect(() => dut.console.modem).toThrow(/no break and no modem lines/)
    await board.close()
  })

  it('is not touched without its lease', async () => {
    const { place, orders } = await lab()
    let lost = false
    const check = () => {
      if (lost) throw new LabError('the lease of board is lost')
    }
    const board = openBoard(place.name, place, { check })
    const machine = await board.powerOn()
    lost = true
    await expect(machine.cut()).rejects.toThrow(/lease of board is lost/)
    await expect(machine.reset()).rejects.toThrow(/lease/)
    await expect(machine.plug('x')).rejects.toThrow(/lease/)
    await expect(board.provision('x')).rejects.toThrow(/lease/)
    await expect(board.powerOn()).rejects.toThrow(/lease/)
    expect(orders()).toEqual(['on'])
  })

  it('gets its image while it is off, and the medium goes back to it', async () => {
    const image = join(folder, 'image')
    writeFileSync(image, 'a whole system')
    const card = join(folder, 'card')
    const configfs = join(folder, 'configfs')
    mkdirSync(join(configfs, 'usb_gadget'), { recursive: true })
    const storage = { driver: 'usb-gadget', image: card, controller: 'udc0', configfs } as const
    const { place, orders } = await lab('good', { storage, stick: storage })
    const board = openBoard(place.name, place, { check: () => {} })
    await board.provision(image)
    expect(orders()).toEqual(['off'])
    expect(readFileSync(card, 'utf8')).toBe('a whole system')
    const lun = join(configfs, 'usb_gadget/bistable-stick/functions/mass_storage.0/lun.0/file')
    expect(readFileSync(lun, 'utf8').trim()).toBe(card)
    const dut = new Dut({ disk: '', machine: () => board.powerOn(), withMedium: (act) => board.withMedium(act) })
    expect(await dut.withMedium(async (path) => path)).toBe(card)
    await expect(dut.withMedium(() => Promise.reject(new Error('no such partition')))).rejects.toThrow(
      /no such partition/,
    )
    expect(readFileSync(lun, 'utf8').trim()).toBe(card)
    await dut.powerOn()
    await expect(dut.withMedium(async () => {})).rejects.toThrow(/belongs to the device while it is on/)
    await dut.plug(image)
    await dut.unplug()
    expect(readFileSync(lun, 'utf8').trim()).toBe('')
    await dut.powerCut()
  })
})

describe('places of a bench', () => {
  it('come from a file, beside the emulated ones; the example is one; a bad file is said', async () => {
    const places = await allPlaces({ HIL_PLACES: join(root, 'hw-tests/places/example.ts') })
    expect(Object.keys(places)).toEqual([...Object.keys(PLACES), 'rpi4-1', 'pc-1'])
    expect(places['rpi4-1']).toMatchObject({ kind: 'board', features: ['medium'], serverListen: '192.168.7.1' })
    await expect(allPlaces({ HIL_PLACES: join(folder, 'nothing.ts') })).rejects.toThrow(LabError)
    writeFileSync(join(folder, 'empty.mjs'), 'export const OTHER = 1\n')
    await expect(allPlaces({ HIL_PLACES: join(folder, 'empty.mjs') })).rejects.toThrow(/exports no PLACES/)
  })
})

describe('quarantine', () => {
  it('begins with the second lab error in a row, and a product that fails says that the lab works', () => {
    let health = nextHealth({ strikes: 0 }, 'the relay is silent\nmore', 5)
    expect(quarantineText('p', health)).toBeUndefined()
    health = nextHealth(nextHealth(health, undefined, 6), 'again', 7)
    expect(quarantineText('p', health)).toBeUndefined()
    health = nextHealth(health, 'the relay is silent\nmore', 0)
    expect(quarantineText('p', health)).toBe(
      'p is quarantined since 1970-01-01 00:00:00 UTC: the relay is silent; when it is repaired: npm run hil -- doctor p',
    )
  })
})
