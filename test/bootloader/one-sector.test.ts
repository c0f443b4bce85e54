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

const FRESH: Device = {
  files: [
    Buffer.from(encodeCopy(freshState('a'))),
    Buffer.from(encodeCopy({ ...freshState('a'), generation: 0 })),
    Buffer.from(encodeReason({ starts: { a: 0, b: 0, up: 'a' }, failure: undefined })),
  ],
  holds: { a: 'good', b: 'half' },
}

const copied = ({ files, holds }: Device): Device => ({
  files: [Buffer.from(files[0]), Buffer.from(files[1]), Buffer.from(files[2])],
  holds: { ...holds },
})

function stateOf([first, second]: Files) {
  const copies = [decodeCopy(first), decodeCopy(second)] as const
  const source = chooseCopy(copies)
  const copy = source === undefined ? undefined : copies[source]
  const torn = copies.some(({ kind }) => kind === 'torn')
  return { state: copy?.kind === 'valid' ? copy.state : undefined, other: source === 0 ? 1 : 0, torn } as const
}

/** One story of a device. `seen` hears of every state of the disk between two writes. */
class Life {
  readonly device: Device
  readonly #seen: (device: Device) => void
  readonly #chance: () => boolean

  constructor(device: Device, chance: () => boolean, seen: (device: Device) => void = () => undefined) {
    this.device = device
    this.#chance = chance
    this.#seen = seen
  }

  #write(index: 0 | 1 | 2, block: Uint8Array): void {
    this.device.files[index].set(block)
    this.#seen(this.device)
  }

  move(change: (state: BootState) => BootState): void {
    const { state, other } = stateOf(this.device.files)
    if (state === undefined) throw new Error('a move from no state')
    this.#write(other, encodeCopy(change(state)))
  }

  /** Powers on until a slot comes up; an endless reset is an error. */
  #boot(): { slot: Slot; boot: string } {
    for (let n = 0; n < 14; n++) {
      const { files, holds } = this.device
      const { state, other } = stateOf(files)
      const target = files[other]
      const intact = state !== undefined && decodeCopy(target).kind === 'valid'
      // In a damaged block GRUB finds room for the count, or none: then the primary boots. Without a header, never.
      const writable = intact || (readBlock(target) !== undefined && this.#chance())
      const { starts } = decodeReason(files[2])
      const decision = onBoot(state, { starts, writable, loadable: { a: true, b: true } })
      const { slot, boot, newState } = decision
      if (slot === undefined) throw new Error('no slot is chosen')
      if (newState !== undefined) this.#write(other, encodeCopy(newState))
      const failed = holds[slot] === 'half' || holds[slot] === 'hangs'
      // The initramfs adds a point for a failure that it recognises.
      const points = failed && holds[slot] === 'half' ? 2 : 1
      const more = { ...starts, [slot]: Math.min(MAX_STARTS, starts[slot] + points) }
      if (readBlock(files[2]) !== undefined) this.#write(2, encodeReason({ starts: more, failure: undefined }))
      if (!failed) return { slot, boot }
    }
    throw new Error(
      `an endless reset: ${JSON.stringify({ state: stateOf(this.device.files), holds: this.device.holds })}`,
    )
  }

  /** Power on, and what the agent does first; again when that ends in a reboot. @returns the slot that runs */
  settle(): Slot {
    for (let n = 0; n < 4; n++) {
      const { slot, boot } = this.#boot()
      const { state, torn } = stateOf(this.device.files)
      this.#write(2, encodeReason({ starts: { a: 0, b: 0, up: slot }, failure: undefined }))
      if (state === undefined) {
        this.#write(0, encodeCopy(freshState(slot)))
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
      if (stateOf(life.device.files).state?.spare === true) life.move(rollBack)
      life.settle()
    } else life.install(step)
  }
}

/** Every disk that these stories pass through; those that differ by the age of their generations only are one. */
function reachable(stories: readonly (readonly Step[])[]): Device[] {
  const found = new Map<string, Device>()
  for (const steps of stories) live(new Life(copied(FRESH), () => true), steps)
  const seen = (device: Device) => {
    const copies = [decodeCopy(device.files[0]), decodeCopy(device.files[1])]
    const newest = stateOf(device.files).state?.generation ?? 0
    const words = copies.map((copy) =>
      copy.kind === 'valid' ? encodeWord({ ...copy.state, generation: newest - copy.state.generation }) : copy.kind,
    )
    const key = JSON.stringify([words, decodeReason(device.files[2]), device.holds])
    if (!found.has(key)) found.set(key, copied(device))
  }
  seen(FRESH)
  for (const steps of stories) live(new Life(copied(FRESH), () => true, seen), steps)
  return [...found.values()]
}

const stories = fc.sample(fc.array(fc.constantFrom(...STEPS), { minLength: 4, maxLength: 12 }), {
  numRuns: 400,
  seed: 5,
})
const BATCH = 120
const FILLS = [0x00, 0xff, 0x23, 0xa5]

describe('one destroyed sector of boot state', () => {
  const all = reachable(stories)

  test('of the three files: from every reachable state a slot comes up, and the next update succeeds', () => {
    expect(all.length).toBeGreaterThan(120)
    let asked = 0
    for (const device of all)
      for (const file of [0, 1, 2] as const)
        for (const sector of [0, 1])
          for (const fill of FILLS)
            for (const room of [true, false]) {
              const life = new Life(copied(device), () => room)
              life.device.files[file].fill(fill, sector * SECTOR, (sector + 1) * SECTOR)
              const label = `${JSON.stringify(stateOf(device.files))} ${JSON.stringify(device.holds)} ${file}.${sector} ${fill}`
              const slot = life.settle()
              expect(life.device.holds[slot], label).not.toMatch(/half|hangs/)
              expect(life.install('good'), label).toBe(otherSlot(slot))
              expect(stateOf(life.device.files).torn, label).toBe(false)
              asked++
            }
    expect(asked).toBe(all.length * 48)
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
    const { state } = stateOf(files)
    const { starts } = decodeReason(files[2])
    const worlds = [true, false].map((writable) => ({ starts, writable, loadable: { a: true, b: true } }))
    const wanted = worlds.map((world) => onBoot(state, world)).map(({ slot, boot, why }) => `${slot} ${boot} ${why}`)
    const { slot, boot, why } = decision.fields ?? {}
    const label = `sector ${sector} ${fill} of ${JSON.stringify(stateOf(device.files))} ${decision.text}`
    expect(wanted, label).toContain(`${slot} ${boot} ${why}`)
    // A try may be of a slot that does not come up: there is a count for it, or it would be none.
    if (boot !== 'try') expect(device.holds[slot as Slot], label).not.toMatch(/half|hangs/)
  }
  for (const disk of disks) rmSync(disk)
}
