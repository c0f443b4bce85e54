import { FILES } from '../../bootloader/layout.ts'
import {
  arm,
  type BootDecision,
  claim,
  commit,
  freshState,
  GOOD_WORLD,
  onBoot,
  refuse,
  renew,
  rollBack,
} from '../../bootloader/machine.ts'
import type { RawDevice } from '../../bootloader/raw-device.ts'
import { decodeReason, encodeReason } from '../../bootloader/reason.ts'
import { type BootState, otherSlot, type Slot } from '../../bootloader/state.ts'
import { decodeUbootCopy, encodeUbootCopy, ubootBootstateImage, ubootStateOn } from '../../bootloader/uboot.ts'
import { chooseEnv, nextFlag } from '../../bootloader/uboot-env.ts'
import { ubootRepairer } from '../../bootloader/uboot-repair.ts'

/**
 * What a device with U-Boot writes to its boot state while it is updated: the agent by the real backend, U-Boot as the
 * machine says that it does. The real one is asked about each of these states afterwards, so a wrong guess is found.
 */

/** The three sectors that ever change: both environments, and the first half of the reason. */
export interface Sectors {
  readonly copies: readonly [Buffer, Buffer]
  readonly reason: Buffer
}

export type UbootEntry =
  | { readonly op: 'write'; readonly index: 0 | 1 | 2; readonly bytes: Buffer }
  | { readonly op: 'flush' }
  /** From here on these slots hold a release that may be started. */
  | { readonly op: 'slots'; readonly whole: ReadonlySet<Slot> }

export interface UbootStory {
  readonly start: Sectors
  readonly whole: ReadonlySet<Slot>
  readonly log: readonly UbootEntry[]
}

/** Broken on purpose. */
export interface Doubles {
  readonly writes?: 'in place' | 'both'
  /** False: a slot is overwritten while the boot state still names it. */
  readonly claims?: false
  /** False: what the agent flushes is not. */
  readonly flushes?: false
  /** False: U-Boot starts a try and counts nothing. */
  readonly counts?: false
}

const SECTOR = 512
/** The second half of a reason block is constant. */
export const whole = (sector: Buffer): Buffer => Buffer.concat([sector, Buffer.alloc(SECTOR, '#')])

function read({ copies }: Sectors) {
  const found = [decodeUbootCopy(copies[0]), decodeUbootCopy(copies[1])] as const
  const source = chooseEnv([found[0]?.env, found[1]?.env])
  return { source, counting: source === undefined ? undefined : found[source] }
}

export const stateOf = (sectors: Sectors): BootState | undefined => read(sectors).counting?.state

/** What U-Boot decides and leaves behind; a reason that is damaged it may write or not. */
export function predicted(
  sectors: Sectors,
  doubles: Doubles,
): {
  readonly decision: BootDecision
  readonly after: Sectors
  /** The start counted in a good reason of the same content; undefined when the reason is good and `after` has it. */
  readonly instead: Buffer | undefined
} {
  const { source, counting } = read(sectors)
  const reason = decodeReason(whole(sectors.reason))
  const reasonGood = whole(sectors.reason).equals(encodeReason(reason))
  const decision = onBoot(counting?.state, { ...GOOD_WORLD, starts: reason.starts })
  const copies = [...sectors.copies] as [Buffer, Buffer]
  if (decision.newState !== undefined && source !== undefined && doubles.counts !== false)
    copies[source === 0 ? 1 : 0] = Buffer.from(encodeUbootCopy(decision.newState, nextFlag(counting?.env.flag ?? 0)))
  const starts = { ...reason.starts }
  if (decision.slot !== undefined) starts[decision.slot] = Math.min(9, starts[decision.slot] + 1)
  const counted = Buffer.from(encodeReason({ ...reason, starts })).subarray(0, SECTOR)
  if (reasonGood) return { decision, after: { copies, reason: counted }, instead: undefined }
  return { decision, after: { copies, reason: sectors.reason }, instead: counted }
}

class Board {
  readonly log: UbootEntry[] = []
  readonly image: Buffer
  readonly #doubles: Doubles
  #slots: ReadonlySet<Slot> = new Set(['a'])

  constructor(image: Buffer, doubles: Doubles) {
    this.image = image
    this.#doubles = doubles
  }

  get sectors(): Sectors {
    const [first, second, reason] = FILES.map(({ offset }) =>
      Buffer.from(this.image.subarray(offset, offset + SECTOR)),
    ) as [Buffer, Buffer, Buffer]
    return { copies: [first, second], reason }
  }

  readonly device: RawDevice = {
    name: 'bootstate',
    read: async (offset, length) => Uint8Array.from(this.image.subarray(offset, offset + length)),
    write: async (offset, bytes) => this.#write(offset, Buffer.from(bytes)),
    flush: async () => {
      if (this.#doubles.flushes !== false) this.log.push({ op: 'flush' })
    },
    close: async () => undefined,
  }

  #write(offset: number, bytes: Buffer): void {
    const index = FILES.findIndex((file) => file.offset === offset)
    const rest = bytes.subarray(SECTOR)
    if (index < 0 || !rest.equals(this.image.subarray(offset + SECTOR, offset + bytes.length)))
      throw new Error(`${bytes.length} bytes at ${offset} change more than the first sector of a file`)
    const first = Buffer.from(bytes.subarray(0, SECTOR))
    first.copy(this.image, offset)
    this.log.push({ op: 'write', index: index as 0 | 1 | 2, bytes: first })
  }

  slots(...whole: readonly Slot[]): void {
    this.#slots = new Set(whole)
    this.log.push({ op: 'slots', whole: this.#slots })
  }

  get state(): BootState {
    const state = stateOf(this.sectors)
    if (state === undefined) throw new Error('no boot state')
    return state
  }

  async write(state: BootState): Promise<void> {
    const { source, counting } = read(this.sectors)
    const { writes } = this.#doubles
    if (writes === undefined) return ubootStateOn(this.device).write(state)
    const bytes = encodeUbootCopy(state, nextFlag(counting?.env.flag ?? 0))
    const copies = writes === 'both' ? ([0, 1] as const) : ([source ?? 0] as const)
    for (const index of copies) await this.device.write(FILES[index].offset, bytes)
    await this.device.flush()
  }

  /** The device starts; its agent comes up unless told otherwise. */
  async boots(slot: Slot, boot: string, agent = true): Promise<void> {
    const { decision, after } = predicted(this.sectors, this.#doubles)
    if (decision.slot !== slot || decision.boot !== boot)
      throw new Error(`${boot} of slot ${slot} was wanted: ${JSON.stringify(decision)}`)
    for (const [index, bytes] of [...after.copies, after.reason].entries()) {
      const offset = FILES[index as 0 | 1 | 2].offset
      if (!bytes.equals(this.image.subarray(offset, offset + SECTOR))) await this.device.write(offset, bytes)
    }
    if (agent) await ubootStateOn(this.device).clearReason(slot)
  }

  /** An install into the slot that does not run, and arming. */
  async installs(tries: number): Promise<Slot> {
    const { primary } = this.state
    const other = otherSlot(primary)
    if (this.#doubles.claims !== false) await this.write(claim(this.state))
    this.slots(primary)
    // The slot is flushed before it is armed, and with it the disk.
    await this.device.flush()
    this.slots('a', 'b')
    await this.write(arm(this.state, other, tries))
    return other
  }
}

/** First boots, updates that end well, are refused and never come up, a way back, a damaged copy, both lost and repaired. */
export async function recordUboot(doubles: Doubles, firstFlag: number): Promise<UbootStory> {
  const image = Buffer.from(ubootBootstateImage(freshState('a')))
  image.set(encodeUbootCopy(freshState('a'), firstFlag), FILES[0].offset)
  image.set(encodeUbootCopy({ ...freshState('a'), generation: 0 }, firstFlag - 1), FILES[1].offset)
  const board = new Board(image, doubles)
  const start = board.sectors
  await board.boots('a', 'committed')

  await board.installs(3)
  await board.boots('b', 'try')
  await board.write(commit(board.state, 'b'))
  await board.boots('b', 'committed')

  // A double that counts nothing would be tried for ever; its story ends where that is seen.
  if (doubles.counts !== false) {
    await board.installs(3)
    for (let n = 0; n < 3; n++) await board.boots('a', 'try', false)
    await board.boots('b', 'fallback')

    await board.installs(2)
    await board.boots('a', 'try')
    await board.write(refuse(board.state, 'a'))
    await board.boots('b', 'fallback')

    await board.installs(1)
    await board.boots('a', 'try')
    await board.write(commit(board.state, 'a'))
    await board.write(rollBack(board.state))
    await board.boots('b', 'try')
    await board.write(commit(board.state, 'b'))

    // A medium that loses a sector, and the agent that renews it at its next start.
    const { source } = read(board.sectors)
    const damage = async (index: 0 | 1) => board.device.write(FILES[index].offset, Buffer.alloc(SECTOR, 0xa5))
    await damage(source === 0 ? 1 : 0)
    await board.device.flush()
    await board.boots('b', 'committed')
    await board.write(renew(board.state))

    await damage(0)
    await damage(1)
    await board.device.flush()
    await board.boots('b', 'fallback', false)
    await ubootRepairer(board.device).restore({ ...freshState('b'), generation: 900 }, 'b')
    await board.boots('b', 'committed')
    await board.installs(3)
    await board.boots('a', 'try')
    await board.write(commit(board.state, 'a'))
  }
  return { start, whole: new Set(['a']), log: board.log }
}
