import type { Files } from '../../base/durable.ts'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { decodeCopy, encodeWord } from '../../bootloader/grub-env.ts'
import { FILES } from '../../bootloader/layout.ts'
import { freshState } from '../../bootloader/machine.ts'
import { decodeReason } from '../../bootloader/reason.ts'
import { otherSlot, type Slot } from '../../bootloader/state.ts'
import { sha256 } from '../../bundle/digest.ts'
import { openRecords, type RecordStore } from '../../device/records/store.ts'
import { DATA, Device, type DeviceParts, floorFile } from './device.ts'
import { type DiskContent, RecordedDisk, type Told } from './disk.ts'
import { type BootAnswer, type Bootloader, bootFiles, stateIn } from './grub.ts'
import { type Product, type Release, rankOf } from './releases.ts'
import type { CutDisk } from './replay.ts'
import type { SlotReader } from './slots.ts'
import { installing, type Recorded } from './stories.ts'

/** Says what is wrong with a disk after a cut. */

export type Kind = 'unbootable' | 'floor' | 'other'
export interface Verdict {
  readonly kind: Kind
  readonly why: string
}

interface Records {
  readonly problems: readonly string[]
  readonly told: Told
}

const EMPTY = Buffer.alloc(0)
const NO_PARTS: DiskContent['parts'] = {
  ...{ bootstate: EMPTY, 'boot-a': EMPTY, 'rootfs-a': EMPTY, 'boot-b': EMPTY, 'rootfs-b': EMPTY, data: EMPTY },
}

export class Judge {
  readonly #bootloader: Bootloader
  readonly #product: Product
  readonly #reader: SlotReader
  readonly #blank: Buffer
  readonly #agents: () => boolean
  readonly #records = new Map<string, Records | Verdict>()
  readonly #recovered = new Map<string, Verdict | undefined>()

  private constructor(
    bootloader: Bootloader,
    product: Product,
    reader: SlotReader,
    blank: Buffer,
    agents: () => boolean,
  ) {
    this.#agents = agents
    this.#bootloader = bootloader
    this.#product = product
    this.#reader = reader
    this.#blank = blank
  }

  /** @param agents says for each new pair of boot state and data files whether an agent is started on it */
  static async make(
    bootloader: Bootloader,
    product: Product,
    reader: SlotReader,
    agents: () => boolean,
  ): Promise<Judge> {
    return new Judge(bootloader, product, reader, Buffer.from(await bootstateImage(freshState('a'))), agents)
  }

  /** Distinct pairs of boot state and data files from which an agent was started. */
  get recovered(): number {
    return this.#recovered.size
  }

  async judge(cut: CutDisk): Promise<Verdict | undefined> {
    const answer = this.#bootloader(cut.boot)
    return (await this.#boots(cut, answer)) ?? (await this.#remembers(cut)) ?? (await this.#comesBack(cut, answer))
  }

  /** The bootloader knows the state, and what it starts verifies. */
  async #boots(cut: CutDisk, answer: BootAnswer): Promise<Verdict | undefined> {
    const state = stateIn(cut.boot)
    if (state === undefined && !cut.bootLost) return unbootable('no copy of the boot state can be read')
    if (state !== undefined && !cut.bootAllowed.has(encodeWord(state)))
      return unbootable(`the boot state is ${encodeWord(state)}, possible were ${[...cut.bootAllowed].join(', ')}`)
    const chosen = await this.#reader.holds(cut.slot(answer.slot))
    if (chosen === undefined) return unbootable(`slot ${answer.slot} is started (${answer.boot}) and does not verify`)
    if (state?.spare && (await this.#reader.holds(cut.slot(otherSlot(state.primary)))) === undefined)
      return unbootable(`slot ${otherSlot(state.primary)} is the spare and does not verify`)
    if (state !== undefined && answer.boot === 'try' && stateIn(answer.after)?.left !== state.left - 1)
      return unbootable(`a try was started, and ${state.left} tries are left as before`)
    return this.#aboveFloor(cut, chosen)
  }

  #aboveFloor(cut: CutDisk, chosen: Release): Verdict | undefined {
    let floor: number
    try {
      floor = floorFile(cut.files)
    } catch (error) {
      return { kind: 'other', why: `the floor file is damaged: ${error}` }
    }
    return chosen.rank < floor ? unbootable(`release ${chosen.rank} is under the floor ${floor}`) : undefined
  }

  /** Records are whole and hold what was promised. */
  async #remembers(cut: CutDisk): Promise<Verdict | undefined> {
    let found = this.#records.get(cut.filesKey)
    if (found === undefined) {
      found = await readRecords(cut.files)
      this.#records.set(cut.filesKey, found)
    }
    if ('kind' in found) return found
    if (found.problems.length > 0) return { kind: 'other', why: found.problems.join('; ') }
    return lower(found.told, cut.told)
  }

  /** An agent that is started here comes up, keeps what was promised and leaves a state that boots. */
  async #comesBack(cut: CutDisk, { slot, boot, why, left, after }: BootAnswer): Promise<Verdict | undefined> {
    const { installFloor, securityFloor, rootVersion } = cut.told
    const told = `${installFloor} ${securityFloor} ${rootVersion}`
    // The agent sees the boot state through its codec: what decodes alike is one start.
    const release = (await this.#reader.holds(cut.slot(slot)))?.rank
    const key = `${slot} ${release} ${boot} ${why} ${left} ${seenByAgent(cut.boot)} ${seenByAgent(after)} ${cut.filesKey} ${told}`
    if (this.#recovered.has(key)) return this.#recovered.get(key)
    if (!this.#agents()) return undefined
    const verdict = await this.#recover(cut)
    this.#recovered.set(key, verdict)
    return verdict
  }

  async #recover(cut: CutDisk): Promise<Verdict | undefined> {
    const holds = (slot: Slot) => this.#reader.holds(cut.slot(slot))
    // The slots are not touched here, so their bytes need not be put together.
    const start = { ...this.#content(cut), files: cut.files }
    const device = new Device(
      start,
      this.#parts((_, slot) => holds(slot)),
      cut.told,
    )
    try {
      const core = await device.recover()
      if (core.problems.length > 0) return { kind: 'other', why: core.problems.join('; ') }
      const wrong = device.lines.find((line) => /INTERNAL|cannot be written/.test(line))
      if (wrong !== undefined) return { kind: 'other', why: wrong }
      const records = await readRecords(device.disk.content)
      if ('kind' in records) return records
      const state = stateIn(bootFiles(device.disk.parts.bootstate))
      if (state === undefined) return unbootable('no boot state after the agent came up')
      const next = state.trial !== undefined && state.left > 0 ? state.trial : state.primary
      if ((await holds(next)) === undefined) return unbootable(`the agent left slot ${next} to be started next`)
      return lower(records.told, cut.told)
    } catch (error) {
      return { kind: 'unbootable', why: `after the cut: ${error}` }
    }
  }

  /** Starts the device, lets what is under way end, installs another release and commits it. */
  async secondUpdate(cut: CutDisk): Promise<Verdict | undefined> {
    try {
      await this.follow(this.whole(cut), cut.told)
      return undefined
    } catch (error) {
      return { kind: 'other', why: `a second update failed: ${error}` }
    }
  }

  /** @returns what a second update writes to a disk after a cut, as a story of its own */
  async follow(start: DiskContent, told: Told): Promise<Recorded> {
    const device = new Device(
      start,
      this.#parts((disk, slot) => this.inSlot(disk, slot)),
      told,
    )
    const state = () => stateIn(bootFiles(device.disk.parts.bootstate))
    await device.settle()
    // What was armed before the cut is tried first.
    for (let n = 0; n < 4 && state()?.trial !== undefined && (state()?.left ?? 0) > 0; n++) await device.settle()
    let next = 0
    await device.powerOn((core) => {
      // A release that the cut kept from being committed may be blocked by now: a device wants another one then.
      const known = [core.line.release, ...core.body.blocked.map(({ number }) => number)]
      next =
        this.#product.next.find((one) => known.every((number) => number === undefined || rankOf(number) !== one)) ?? 0
      return installing(next)(core)
    })
    await device.settle()
    const running = await this.inSlot(device.disk, state()?.primary ?? 'a')
    if (running?.rank !== next || state()?.trial !== undefined)
      throw new Error(`it ended with ${device.boots.join(' ')}`)
    return { name: 'after a cut', start, log: device.disk.log, told, boots: device.boots }
  }

  /** The whole disk. */
  whole(cut: CutDisk): DiskContent {
    const { parts } = this.#content(cut)
    const [a, b] = [cut.slot('a'), cut.slot('b')]
    return {
      parts: { ...parts, 'boot-a': a.boot(), 'rootfs-a': a.rootfs(), 'boot-b': b.boot(), 'rootfs-b': b.rootfs() },
      files: cut.files,
    }
  }

  async inSlot(disk: RecordedDisk, slot: Slot): Promise<Release | undefined> {
    const [boot, rootfs] = [disk.parts[`boot-${slot}`], disk.parts[`rootfs-${slot}`]]
    return await this.#reader.holds({
      key: `${sha256(boot)} ${sha256(rootfs)}`,
      boot: () => boot,
      rootfs: () => rootfs,
    })
  }

  #content(cut: CutDisk): DiskContent {
    const bootstate = Buffer.from(this.#blank)
    for (const [n, { offset }] of FILES.entries()) cut.boot.copy(bootstate, offset, n * 1024, (n + 1) * 1024)
    const parts = { ...NO_PARTS, bootstate }
    return { parts, files: cut.files }
  }

  #parts(inSlot: DeviceParts['inSlot']): DeviceParts {
    return { bootloader: this.#bootloader, product: this.#product, inSlot }
  }
}

/** Both copies and the reason as the agent reads them, and whether the constant second sectors are whole. */
function seenByAgent(files: Buffer): string {
  const file = (n: number): Buffer => files.subarray(n * 1024, n * 1024 + 1024)
  const copies = [0, 1].map((n) => {
    const copy = decodeCopy(file(n))
    return copy.kind === 'valid' ? encodeWord(copy.state) : copy.kind
  })
  const whole = [0, 1, 2].map((n) =>
    file(n)
      .subarray(512)
      .every((byte) => byte === 0x23),
  )
  return JSON.stringify([copies, decodeReason(file(2)), whole])
}

const unbootable = (why: string): Verdict => ({ kind: 'unbootable', why })

async function readRecords(content: ReadonlyMap<string, Buffer>): Promise<Records | Verdict> {
  const files: Files = new RecordedDisk({ parts: NO_PARTS, files: content }).files()
  try {
    // No word of a running release: the floors must stand in the files themselves.
    const store: RecordStore = await openRecords(DATA, undefined, files, { readOnly: true })
    await store.roots()
    const { installFloor, securityFloor, trust } = store.body
    const told = {
      installFloor: rankOf(installFloor),
      securityFloor: rankOf(securityFloor),
      rootVersion: trust.version,
    }
    return { problems: store.problems, told }
  } catch (error) {
    return { kind: 'other', why: `the records cannot be read: ${error}` }
  }
}

function lower(found: Told, wanted: Told): Verdict | undefined {
  const names = ['installFloor', 'securityFloor', 'rootVersion'] as const
  const fallen = names.find((name) => found[name] < wanted[name])
  if (fallen === undefined) return undefined
  return { kind: 'floor', why: `${fallen} is ${found[fallen]}, ${wanted[fallen]} was acknowledged` }
}
