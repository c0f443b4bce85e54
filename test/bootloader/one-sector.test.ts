import { copyFileSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import { readBlock } from '../../bootloader/grub-block.ts'
import { chooseCopy, decodeCopy, encodeCopy, encodeWord } from '../../bootloader/grub-env.ts'
import { FILES, layoutImage, METADATA_BYTES } from '../../bootloader/layout.ts'
import {
  adopt,
  arm,
  claim,
  commit,
  freshState,
  MAX_STARTS,
  onBoot,
  refuse,
  renew,
  rollBack,
} from '../../bootloader/machine.ts'
import { decodeReason, encodeReason } from '../../bootloader/reason.ts'
import { type BootState, otherSlot, type Slot } from '../../bootloader/state.ts'
import { decodeUbootCopy, encodeUbootCopy } from '../../bootloader/uboot.ts'
import { chooseEnv, nextFlag } from '../../bootloader/uboot-env.ts'
import { type Disk, writeAt } from '../helpers/disk.ts'
import { grubDecides, loadableDisk } from '../helpers/grub-emu.ts'
import { have } from '../helpers/run.ts'

// From any reachable state, with any single sector of boot state destroyed, a slot that comes up is chosen, and the
// device can be updated from there. Never an endless reset.

const SECTOR = 512
const dir = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'bistable-one-sector-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

/** First the pure machine on the bytes of the three files, then the real GRUB on whole partitions. */
type Files = readonly [Buffer, Buffer, Buffer]

/** What a slot holds: nothing whole, a system that never comes up, one that comes up and is not healthy, a good one. */
type Held = 'half' | 'hangs' | 'unhealthy' | 'good'

interface Device {
  files: Files
  readonly holds: Record<Slot, Held>
}

interface Found {
  readonly state: BootState | undefined
  /** The copy that does not count. */
  readonly other: 0 | 1
  readonly torn: boolean
}

/** How a bootloader and its backend keep the state in two copies. */
interface Form {
  readonly find: (files: Files) => Found
  /** What the copy that does not count becomes. */
  readonly encode: (state: BootState, files: Files) => Uint8Array
  /** Whether the bootloader can put a count into a damaged copy. */
  readonly takesCount: (copy: Buffer, chance: () => boolean) => boolean
}

const GRUB: Form = {
  find: ([first, second]) => {
    const copies = [decodeCopy(first), decodeCopy(second)] as const
    const source = chooseCopy(copies)
    const copy = source === undefined ? undefined : copies[source]
    const torn = copies.some(({ kind }) => kind === 'torn')
    return { state: copy?.kind === 'valid' ? copy.state : undefined, other: source === 0 ? 1 : 0, torn }
  },
  encode: encodeCopy,
  // GRUB finds room for the count, or none: then the primary boots. Without a header, never.
  takesCount: (copy, chance) => readBlock(copy) !== undefined && chance(),
}

const ubootCopies = ([first, second]: Files) => {
  const copies = [decodeUbootCopy(first), decodeUbootCopy(second)] as const
  return { copies, source: chooseEnv([copies[0]?.env, copies[1]?.env]) }
}

const UBOOT: Form = {
  find: (files) => {
    const { copies, source } = ubootCopies(files)
    const state = source === undefined ? undefined : copies[source]?.state
    return { state, other: source === 0 ? 1 : 0, torn: source !== undefined && copies.includes(undefined) }
  },
  encode: (state, files) => {
    const { copies, source } = ubootCopies(files)
    return encodeUbootCopy(state, nextFlag(source === undefined ? 0 : (copies[source]?.env.flag ?? 0)))
  },
  // boot.cmd writes the whole sector.
  takesCount: () => true,
}

const reasonOf = (up: Slot) => encodeReason({ starts: { a: 0, b: 0, up }, failure: undefined })
const older = { ...freshState('a'), generation: 0 }
const fresh = (copies: readonly [Uint8Array, Uint8Array]): Device => ({
  files: [Buffer.from(copies[0]), Buffer.from(copies[1]), Buffer.from(reasonOf('a'))],
  holds: { a: 'good', b: 'half' },
})
const FRESH = fresh([encodeCopy(freshState('a')), encodeCopy(older)])

const copied = ({ files, holds }: Device): Device => ({
  files: [Buffer.from(files[0]), Buffer.from(files[1]), Buffer.from(files[2])],
  holds: { ...holds },
})

/** One story of a device. `seen` hears of every state of the disk between two writes. */
class Life {
  readonly device: Device
  readonly #seen: (device: Device) => void
  readonly #chance: () => boolean
  readonly #form: Form

  constructor(form: Form, device: Device, chance: () => boolean, seen: (device: Device) => void = () => undefined) {
    this.#form = form
    this.device = device
    this.#chance = chance
    this.#seen = seen
  }

  #write(index: 0 | 1 | 2, block: Uint8Array): void {
    this.device.files[index].set(block)
    this.#seen(this.device)
  }

  get found(): Found {
    return this.#form.find(this.device.files)
  }

  #store(index: 0 | 1, state: BootState): void {
    this.#write(index, this.#form.encode(state, this.device.files))
  }

  move(change: (state: BootState) => BootState): void {
    const { state, other } = this.found
    if (state === undefined) throw new Error('a move from no state')
    this.#store(other, change(state))
  }

  /** Powers on until a slot comes up; an endless reset is an error. */
  #boot(): { slot: Slot; boot: string } {
    for (let n = 0; n < 14; n++) {
      const { files, holds } = this.device
      const { state, other, torn } = this.found
      const intact = state !== undefined && !torn
      const writable = intact || this.#form.takesCount(files[other], this.#chance)
      const { starts } = decodeReason(files[2])
      const decision = onBoot(state, { starts, writable, loadable: { a: true, b: true } })
      const { slot, boot, newState } = decision
      if (slot === undefined) throw new Error('no slot is chosen')
      if (newState !== undefined) this.#store(other, newState)
      const failed = holds[slot] === 'half' || holds[slot] === 'hangs'
      // The initramfs adds a point for a failure that it recognises.
      const points = failed && holds[slot] === 'half' ? 2 : 1
      const more = { ...starts, [slot]: Math.min(MAX_STARTS, starts[slot] + points) }
      if (readBlock(files[2]) !== undefined) this.#write(2, encodeReason({ starts: more, failure: undefined }))
      if (!failed) return { slot, boot }
    }
    throw new Error(`an endless reset: ${JSON.stringify({ state: this.found, holds: this.device.holds })}`)
  }

  /** Power on, and what the agent does first; again when that ends in a reboot. @returns the slot that runs */
  settle(): Slot {
    for (let n = 0; n < 4; n++) {
      const { slot, boot } = this.#boot()
      const { state, torn } = this.found
      this.#write(2, reasonOf(slot))
      if (state === undefined) {
        this.#store(0, freshState(slot))
      } else if (state.trial === slot && boot === 'try') {
        const healthy = this.device.holds[slot] === 'good'
        this.move((now) => (healthy ? commit(now, slot) : refuse(now, slot)))
        if (!healthy) continue
      } else if (state.trial !== undefined && state.left > 0) {
        this.move((now) => refuse(now, otherSlot(slot)))
      } else if (state.spare && slot !== state.primary) {
        this.move((now) => adopt(now, slot))
      } else if (torn) {
        this.move(renew)
      }
      return slot
    }
    throw new Error('still rebooting')
  }

  install(held: Held): Slot {
    const running = this.settle()
    const target = otherSlot(running)
    this.move(claim)
    this.device.holds[target] = 'half'
    this.#seen(this.device)
    if (held === 'half') return running
    this.device.holds[target] = held
    this.move((state) => arm(state, target))
    return this.settle()
  }
}

type Step = Held | 'roll back' | 'boot'
const STEPS: readonly Step[] = ['half', 'hangs', 'unhealthy', 'good', 'good', 'roll back', 'boot']

function live(life: Life, steps: readonly Step[]): void {
  for (const step of steps) {
    if (step === 'boot') life.settle()
    else if (step === 'roll back') {
      life.settle()
      if (life.found.state?.spare === true) life.move(rollBack)
      life.settle()
    } else life.install(step)
  }
}

/** Every disk that these stories pass through; those that differ by the age of their generations only are one. */
function reachable(form: Form, first: Device, stories: readonly (readonly Step[])[]): Device[] {
  const found = new Map<string, Device>()
  const seen = (device: Device) => {
    const { state, other } = form.find(device.files)
    // The copy that counts, and the other one alone.
    const alone: Files = [Buffer.alloc(1024), Buffer.alloc(1024), device.files[2]]
    device.files[other].copy(alone[other])
    const newest = state?.generation ?? 0
    const words = [state, form.find(alone).state].map((one) =>
      one === undefined ? 'none' : encodeWord({ ...one, generation: newest - one.generation }),
    )
    const key = JSON.stringify([other, words, decodeReason(device.files[2]), device.holds])
    if (!found.has(key)) found.set(key, copied(device))
  }
  seen(first)
  for (const steps of stories) live(new Life(form, copied(first), () => true, seen), steps)
  return [...found.values()]
}

const stories = fc.sample(fc.array(fc.constantFrom(...STEPS), { minLength: 4, maxLength: 12 }), {
  numRuns: 400,
  seed: 5,
})
const BATCH = 120
const FILLS = [0x00, 0xff, 0x23, 0xa5]

describe('one destroyed sector of boot state', () => {
  const all = reachable(GRUB, FRESH, stories)

  /** @returns how many disks were looked at */
  function destroyEach(form: Form, devices: readonly Device[]): number {
    let asked = 0
    for (const device of devices)
      for (const file of [0, 1, 2] as const)
        for (let sector = 0; sector * SECTOR < device.files[file].length; sector++)
          for (const fill of FILLS)
            for (const room of [true, false]) {
              const life = new Life(form, copied(device), () => room)
              life.device.files[file].fill(fill, sector * SECTOR, (sector + 1) * SECTOR)
              const label = `${JSON.stringify(form.find(device.files))} ${JSON.stringify(device.holds)} ${file}.${sector} ${fill}`
              const slot = life.settle()
              expect(life.device.holds[slot], label).not.toMatch(/half|hangs/)
              expect(life.install('good'), label).toBe(otherSlot(slot))
              expect(life.found.torn, label).toBe(false)
              asked++
            }
    return asked
  }

  test('of the three files: from every reachable state a slot comes up, and the next update succeeds', () => {
    expect(all.length).toBeGreaterThan(120)
    expect(destroyEach(GRUB, all)).toBe(all.length * 48)
  })

  test("of U-Boot's two environments and the reason: from every reachable state the same", () => {
    const first = fresh([encodeUbootCopy(freshState('a'), 255), encodeUbootCopy(older, 254)])
    const devices = reachable(UBOOT, first, stories)
    expect(devices.length).toBeGreaterThan(100)
    expect(destroyEach(UBOOT, devices)).toBe(devices.length * 32)
  })

  const ready = have('grub-emu', 'sgdisk', 'mkfs.fat', 'mcopy')

  test.skipIf(!ready)('of the whole partition, its file system included: what the real GRUB starts comes up', () => {
    const template = loadableDisk(dir)
    const sectors = [
      ...Array.from({ length: METADATA_BYTES / SECTOR }, (_, n) => n * SECTOR),
      ...FILES.flatMap(({ offset }) => [offset, offset + SECTOR]),
    ]
    // Each state meets some sectors, each sector some states.
    const cases = all.flatMap((device, n) =>
      sectors
        .filter((_, i) => (n + i) % 8 === 0)
        .map((sector, i) => ({ device, sector, fill: FILLS[(n + i) % 4] ?? 0 })),
    )
    for (let at = 0; at < cases.length; at += BATCH) ask(template, cases.slice(at, at + BATCH))
  })
})

interface Case {
  readonly device: Device
  readonly sector: number
  readonly fill: number
}

function ask(template: Disk, cases: readonly Case[]): void {
  const partitions = cases.map(({ device, sector, fill }) =>
    layoutImage(device.files).fill(fill, sector, sector + SECTOR),
  )
  const disks = partitions.map((partition, n) => {
    const path = join(dir, `${n}.img`)
    copyFileSync(template.path, path)
    writeAt(path, template.offsets.bootstate, partition)
    return path
  })
  for (const [n, decision] of grubDecides(dir, disks).entries()) {
    const { device, sector, fill } = cases[n] as Case
    const partition = partitions[n] ?? new Uint8Array()
    const file = (i: 0 | 1 | 2) => Buffer.from(partition.subarray(FILES[i].offset, FILES[i].offset + 1024))
    const files: Files = [file(0), file(1), file(2)]
    const { state } = GRUB.find(files)
    const { starts } = decodeReason(files[2])
    const worlds = [true, false].map((writable) => ({ starts, writable, loadable: { a: true, b: true } }))
    const wanted = worlds.map((world) => onBoot(state, world)).map(({ slot, boot, why }) => `${slot} ${boot} ${why}`)
    const { slot, boot, why } = decision.fields ?? {}
    const label = `sector ${sector} ${fill} of ${JSON.stringify(GRUB.find(device.files))} ${decision.text}`
    expect(wanted, label).toContain(`${slot} ${boot} ${why}`)
    // A try may be of a slot that does not come up: there is a count for it, or it would be none.
    if (boot !== 'try') expect(device.holds[slot as Slot], label).not.toMatch(/half|hangs/)
  }
  for (const disk of disks) rmSync(disk)
}
