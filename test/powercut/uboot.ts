import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { encodeBootCfg } from '../../bootloader/boot-cfg.ts'
import { decodeReason } from '../../bootloader/reason.ts'
import { type BootState, otherSlot, type Slot } from '../../bootloader/state.ts'
import { decodeUbootCopy } from '../../bootloader/uboot.ts'
import { sha256 } from '../../bundle/digest.ts'
import { compareUboot } from '../helpers/uboot-cases.ts'
import { UBOOT_MACHINES, type UbootMachine, ubootDecides, ubootLab } from '../helpers/uboot-qemu.ts'
import {
  type Doubles,
  predicted,
  recordUboot,
  type Sectors,
  stateOf,
  type UbootEntry,
  type UbootStory,
  whole,
} from './uboot-story.ts'

/** Every power cut of the boot state that U-Boot reads, in stories of updates: docs/power-cuts.md. */

export interface UbootPlan {
  /** Of the distinct boot states the real U-Boot is asked about each so-manyth. */
  readonly askEach: number
  /** Where that begins, 0 .. askEach - 1. */
  readonly askFrom: number
  readonly machines: readonly (keyof typeof UBOOT_MACHINES)[]
  /** Bytes of a torn sector that are new. */
  readonly torn: readonly number[]
}

export const UBOOT_FULL: UbootPlan = {
  askEach: 1,
  askFrom: 0,
  machines: ['x86', 'arm64'],
  torn: Array.from({ length: 511 }, (_, n) => n + 1).filter((n) => n < 200 || n % 13 === 0 || n === 511),
}
/** What the unit tests run. */
export const UBOOT_SAMPLE: UbootPlan = {
  askEach: 61,
  askFrom: 0,
  machines: ['x86'],
  torn: [1, 4, 5, 37, 80, 120, 256, 511],
}

/** @throws RangeError for a name that is none of the two */
export function machineOf(name: string | undefined): keyof typeof UBOOT_MACHINES {
  if (name !== 'x86' && name !== 'arm64') throw new RangeError('--machine takes x86 or arm64')
  return name
}

export interface UbootOutcome {
  readonly states: number
  readonly decisions: number
  readonly wrong: number
  readonly caught: ReadonlyMap<string, string | undefined>
  readonly line: string
  readonly ok: boolean
}

/** A disk after a cut. */
interface Cut {
  readonly sectors: Sectors
  /** What the boot state may say; "none" where both copies were lost before. */
  readonly allowed: ReadonlySet<string>
  readonly whole: ReadonlySet<Slot>
  readonly what: string
}

const BATCH = 1000
const SHOWN = 20
const GARBAGE = Buffer.from(Uint8Array.from({ length: 512 }, (_, n) => (n * 37 + 11) % 256))
const args = `bistable.root=${'5'.repeat(64)} console=ttyS0`

const BROKEN: Readonly<Record<string, Doubles>> = {
  'one copy only': { writes: 'in place' },
  'both copies at once': { writes: 'both' },
  'the slot before the boot state': { claims: false },
  'no flush': { flushes: false },
  'counter not decremented': { counts: false },
}

const word = (state: BootState | undefined): string =>
  state === undefined ? 'none' : JSON.stringify([state.generation, state.primary, state.trial, state.left, state.spare])

const keyOf = ({ copies, reason }: Sectors): string => sha256(Buffer.concat([...copies, reason]))

export async function ubootCampaign(plan: UbootPlan, say: (line: string) => void): Promise<UbootOutcome> {
  const seen = new Set<string>()
  const asked = new Map<string, Sectors>()
  let wrong = 0
  const note = (why: string) => {
    if (++wrong <= SHOWN) say(why)
  }
  for (const firstFlag of [1, 249]) {
    const story = await recordUboot({}, firstFlag)
    for (const cut of cutsOf(story, plan)) {
      const key = `${keyOf(cut.sectors)} ${[...cut.whole].join('')} ${[...cut.allowed].join(' ')}`
      if (seen.has(key)) continue
      seen.add(key)
      asked.set(keyOf(cut.sectors), cut.sectors)
      const why = judge(cut, {})
      if (why !== undefined) note(`unbootable: ${why} (${cut.what})`)
    }
    say(`flags from ${firstFlag} on: ${story.log.length} writes, flushes and changes of slots, ${seen.size} states`)
  }
  const caught = new Map<string, string | undefined>()
  for (const [name, doubles] of Object.entries(BROKEN)) {
    const why = firstWrong(await recordUboot(doubles, 1), plan, doubles)
    caught.set(name, why)
    say(`broken writer '${name}': ${why ?? 'NOT CAUGHT'}`)
  }
  const questions = [...asked.values()].filter((_, n) => n % plan.askEach === plan.askFrom)
  for (const name of plan.machines) {
    const began = performance.now()
    for (const why of await askAll(UBOOT_MACHINES[name], questions)) note(`${name}: ${why}`)
    say(`U-Boot on ${name}: ${questions.length} boot states in ${Math.round((performance.now() - began) / 1000)} s`)
  }
  const found = [...caught.values()].filter((why) => why !== undefined).length
  const decisions = questions.length * plan.machines.length
  const line = `power cuts, U-Boot: ${seen.size} states, ${decisions} bootloader decisions, ${wrong} unbootable or otherwise wrong, ${found}/${caught.size} broken writers caught`
  say(line)
  return { states: seen.size, decisions, wrong, caught, line, ok: wrong === 0 && found === caught.size }
}

/** Behind each entry: every loss of unflushed writes, and every write of them torn, over the old sector and garbage. */
function* cutsOf(story: UbootStory, plan: UbootPlan): Generator<Cut> {
  let durable = story.start
  let slots = story.whole
  let pending: Extract<UbootEntry, { op: 'write' }>[] = []
  const put = (on: Sectors, index: number, bytes: Buffer): Sectors => {
    const three = [...on.copies, on.reason].map((one, n) => (n === index ? bytes : one)) as [Buffer, Buffer, Buffer]
    return { copies: [three[0], three[1]], reason: three[2] }
  }
  for (const [n, entry] of story.log.entries()) {
    if (entry.op === 'flush') {
      durable = pending.reduce((on, { index, bytes }) => put(on, index, bytes), durable)
      pending = []
    } else if (entry.op === 'slots') slots = entry.whole
    else pending = [...pending, entry]
    const boundaries = [durable]
    for (const { index, bytes } of pending) boundaries.push(put(boundaries.at(-1) as Sectors, index, bytes))
    const allowed = new Set(boundaries.map((one) => word(stateOf(one))))
    // Nobody flushes U-Boot's writes before a system does. Two tries without one are in both copies: the first lost and the
    // second torn, the state from before arming counts again.
    if (entry.op === 'write' && [0, 1].every((index) => pending.some((write) => write.index === index)))
      for (const copy of durable.copies) allowed.add(word(decodeUbootCopy(copy)?.state))
    const cut = (sectors: Sectors, what: string): Cut => ({
      sectors,
      allowed,
      whole: slots,
      what: `entry ${n}: ${what}`,
    })
    const versions = [0, 1, 2].map((index) => [undefined, ...pending.filter((write) => write.index === index)])
    const [first = [], second = [], third = []] = versions
    for (const a of first)
      for (const b of second)
        for (const c of third) {
          const kept = [a, b, c].flatMap((write) => write ?? [])
          const sectors = kept.reduce((on, { index, bytes }) => put(on, index, bytes), durable)
          yield cut(sectors, `${kept.length} of ${pending.length} unflushed writes arrived`)
        }
    const all = boundaries.at(-1) as Sectors
    const of = (on: Sectors, index: number) => [...on.copies, on.reason][index] as Buffer
    for (const k of plan.torn)
      for (const tail of ['old', 'garbage'] as const) {
        const tear = (on: Sectors, index: number, bytes: Buffer) =>
          put(
            on,
            index,
            Buffer.concat([bytes.subarray(0, k), (tail === 'old' ? of(durable, index) : GARBAGE).subarray(k)]),
          )
        const what = `${k} bytes and an ${tail} tail`
        for (const { index, bytes } of pending)
          for (const others of [durable, all]) yield cut(tear(others, index, bytes), `${what} in sector ${index}`)
      }
  }
}

/** @returns what is wrong with a disk; the decision is the machine's, which the real U-Boot is held against. */
function judge({ sectors, allowed, whole: slots }: Cut, doubles: Doubles): string | undefined {
  const state = stateOf(sectors)
  if (!allowed.has(word(state))) return `the boot state is ${word(state)}, possible were ${[...allowed].join(', ')}`
  const { decision, after } = predicted(sectors, doubles)
  if (decision.slot === undefined || !slots.has(decision.slot)) return `slot ${decision.slot} is started and not whole`
  if (state?.spare === true && !slots.has(otherSlot(state.primary))) return 'the spare is not whole'
  if (decision.boot === 'try' && stateOf(after)?.left !== (state?.left ?? 0) - 1) return 'a try took no try away'
  return undefined
}

function firstWrong(story: UbootStory, plan: UbootPlan, doubles: Doubles): string | undefined {
  for (const cut of cutsOf(story, plan)) {
    const why = judge(cut, doubles)
    if (why !== undefined) return `${why} (${cut.what})`
  }
  return undefined
}

/** @returns differences between the real U-Boot and the machine */
async function askAll(machine: UbootMachine, questions: readonly Sectors[]): Promise<string[]> {
  const dir = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'bistable-uboot-cuts-'))
  const differing: string[] = []
  try {
    const lab = await ubootLab(machine, dir, encodeBootCfg({ release: '0.1', args }), Math.min(BATCH, questions.length))
    for (let from = 0; from < questions.length; from += BATCH) {
      const batch = questions.slice(from, from + BATCH).map(({ copies, reason }, n) => {
        const { starts } = decodeReason(whole(reason))
        return { name: `boot state ${from + n}`, copies, reason: whole(reason), starts, lost: [] }
      })
      for (const [n, got] of ubootDecides(lab, batch).entries()) {
        const each = batch[n] as (typeof batch)[number]
        try {
          // A torn reason is a hint that is lost: what becomes of its sector is nobody's business.
          const { instead } = predicted(questions[from + n] as Sectors, {})
          const after = instead === undefined ? got.after : { ...got.after, reason: instead }
          compareUboot(each, { ...got, after }, args)
        } catch (error) {
          differing.push(error instanceof Error ? error.message : String(error))
        }
      }
    }
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
  return differing
}
