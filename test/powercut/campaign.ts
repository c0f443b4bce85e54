import { sha256 } from '../../bundle/digest.ts'
import { randomFrom } from '../device-install/model.ts'
import { type CutPlan, cuts } from './cuts.ts'
import type { Doubles } from './device.ts'
import type { DiskContent, RecordedDisk, Told } from './disk.ts'
import { BROKEN } from './doubles.ts'
import { type Bootloader, Grub } from './grub.ts'
import { Judge, type Kind, type Verdict } from './judge.ts'
import { makeProduct, type Product } from './releases.ts'
import { SlotReader } from './slots.ts'
import { type Recorded, record } from './stories.ts'

/** Every power cut of whole stories, by enumeration: docs/power-cuts.md. */

export interface CampaignPlan extends CutPlan {
  /** Part of the distinct pairs of boot state and data files on which an agent is started, 0 .. 1. */
  readonly agents: number
  /** Part of the disks on which a second update is made, 0 .. 1. */
  readonly secondUpdates: number
  /** Disks after a cut from which the device is followed on, each cut again wherever it can be. */
  readonly cutAgain: number
  /** Each so-manyth story and broken writer, from this one on: for several runs side by side. */
  readonly part: { readonly first: number; readonly step: number }
}

export const FULL: CampaignPlan = {
  seed: 1,
  keep: 1,
  keepBoot: 1,
  agents: 1,
  exhaustive: 8,
  tornPages: 64,
  pageSubsets: 500,
  secondUpdates: 0.003,
  cutAgain: 4,
  part: { first: 0, step: 1 },
}
/** What the unit tests run. */
export const SAMPLE: CampaignPlan = {
  ...FULL,
  keep: 0.075,
  keepBoot: 0.02,
  agents: 0.25,
  pageSubsets: 120,
  secondUpdates: 0.003,
  cutAgain: 1,
}

export interface Outcome {
  readonly states: number
  readonly decisions: number
  readonly secondUpdates: number
  readonly counts: Readonly<Record<Kind, number>>
  /** Name of a broken writer to the first disk that gave it away; undefined: it got through. */
  readonly caught: ReadonlyMap<string, string | undefined>
  /** The closing line. */
  readonly line: string
  readonly ok: boolean
}

const SHOWN = 20
/** States between two lines that say how far it is. */
const PROGRESS = 5000

export async function campaign(plan: CampaignPlan, say: (line: string) => void): Promise<Outcome> {
  say(`power cuts: seed ${plan.seed}`)
  const grub = new Grub()
  try {
    const bench = new Bench(grub, await makeProduct(), say)
    const run = await bench.run(plan)
    const decisions = grub.asked
    const caught = await bench.mutants(plan)
    const states = run.states
    const { unbootable, floor, other } = run.counts
    const found = [...caught.values()].filter((why) => why !== undefined).length
    const line = `power cuts: ${states} states, ${decisions} bootloader decisions, ${unbootable} unbootable, ${floor} floors lowered, ${found}/${caught.size} broken writers caught`
    for (const difference of grub.differences.slice(0, SHOWN)) say(`difference: ${difference}`)
    say(line)
    const ok = unbootable + floor + other === 0 && found === caught.size && grub.differences.length === 0
    return { states, decisions, secondUpdates: run.seconds, counts: run.counts, caught, line, ok }
  } finally {
    grub.close()
  }
}

/** A disk after a cut from which the device is followed on. */
interface Drawn {
  readonly lot: number
  readonly start: DiskContent
  readonly told: Told
  readonly what: string
}

interface Run {
  readonly states: number
  readonly seconds: number
  readonly counts: Record<Kind, number>
}

const part = (share: number, seed: number): (() => boolean) => {
  const random = randomFrom(seed + 2)
  return () => random() < share
}

function inPart<T>({ part: { first, step } }: CampaignPlan, all: readonly T[]): T[] {
  return all.filter((_, n) => n % step === first)
}

class Bench {
  readonly #grub: Grub
  readonly #product: Product
  readonly #reader: SlotReader
  readonly #say: (line: string) => void

  constructor(grub: Grub, product: Product, say: (line: string) => void) {
    this.#grub = grub
    this.#product = product
    this.#reader = new SlotReader(product.releases)
    this.#say = say
  }

  async run(plan: CampaignPlan): Promise<Run> {
    const judge = await Judge.make(this.#grub.decide, this.#product, this.#reader, part(plan.agents, plan.seed))
    const counts: Record<Kind, number> = { unbootable: 0, floor: 0, other: 0 }
    const seen = new Set<string>()
    const random = randomFrom(plan.seed + 1)
    let seconds = 0
    const note = (verdict: Verdict | undefined, what: string) => {
      if (verdict === undefined) return
      counts[verdict.kind]++
      if (counts.unbootable + counts.floor + counts.other <= SHOWN)
        this.#say(`${verdict.kind}: ${verdict.why} (${what})`)
    }
    const live = async (story: Recorded): Promise<Drawn | undefined> => {
      const before = seen.size
      let drawn: Drawn | undefined
      this.#ask(story, plan, this.#grub.decide)
      for (const cut of cuts(story, plan)) {
        if (seen.has(cut.key)) continue
        seen.add(cut.key)
        const verdict = await judge.judge(cut)
        note(verdict, cut.what)
        if (seen.size % PROGRESS === 0) this.#say(`${seen.size} states, in ${story.name}`)
        if (verdict === undefined && random() < plan.secondUpdates) {
          seconds++
          note(await judge.secondUpdate(cut), cut.what)
        }
        const lot = random()
        if (lot < (drawn?.lot ?? 1)) drawn = { lot, start: judge.whole(cut), told: cut.told, what: cut.what }
      }
      this.#say(`${story.name}: ${story.log.length} writes and flushes, ${seen.size - before} states`)
      return drawn
    }
    const drawn: Drawn[] = []
    for (const story of inPart(plan, await record(this.#parts(judge)))) {
      const one = await live(story)
      if (one !== undefined) drawn.push(one)
    }
    drawn.sort((x, y) => x.lot - y.lot)
    for (const { start, told, what } of drawn.slice(0, Math.ceil(plan.cutAgain / plan.part.step)))
      await live({ ...(await judge.follow(start, told)), name: `cut again after a cut in ${what}` })
    const { asked } = this.#grub
    this.#say(
      `distinct: ${asked} boot states, ${this.#reader.verified} slot contents, ${judge.recovered} starts of an agent; ${seconds} second updates`,
    )
    return { states: seen.size, seconds, counts }
  }

  /** Asks GRUB about every boot state of a story, many at a time, and about what it leaves behind, try after try. */
  #ask(story: Recorded, plan: CutPlan, bootloader: Bootloader): void {
    let files = new Map<string, Buffer>()
    for (const cut of cuts(story, plan)) files.set(cut.bootKey, cut.boot)
    for (let round = 0; round < 4 && files.size > 0; round++) {
      this.#grub.prepare(files.values())
      const next = new Map<string, Buffer>()
      for (const one of files.values()) {
        const answer = bootloader(one)
        if (answer.boot === 'try') next.set(sha256(answer.after), answer.after)
      }
      files = next
    }
  }

  async mutants(plan: CampaignPlan): Promise<Map<string, string | undefined>> {
    const caught = new Map<string, string | undefined>()
    for (const [name, doubles] of inPart(plan, Object.entries(BROKEN))) {
      const why = await this.#catches(
        { ...plan, keep: Math.min(plan.keep, 0.2), keepBoot: Math.min(plan.keepBoot, 0.1) },
        doubles,
      )
      caught.set(name, why)
      this.#say(`broken writer '${name}': ${why ?? 'NOT CAUGHT'}`)
    }
    return caught
  }

  async #catches(plan: CampaignPlan, doubles: Doubles): Promise<string | undefined> {
    const bootloader = doubles.bootloader?.(this.#grub.decide) ?? this.#grub.decide
    const judge = await Judge.make(bootloader, this.#product, this.#reader, part(plan.agents, plan.seed))
    for (const story of await record({ ...this.#parts(judge), doubles }, 'second update')) {
      this.#ask(story, plan, bootloader)
      for (const cut of cuts(story, plan)) {
        const verdict = await judge.judge(cut)
        if (verdict !== undefined) return `${verdict.kind}: ${verdict.why} (${cut.what})`
      }
    }
    return undefined
  }

  #parts(judge: Judge) {
    const inSlot = (disk: RecordedDisk, slot: 'a' | 'b') => judge.inSlot(disk, slot)
    return { bootloader: this.#grub.decide, product: this.#product, inSlot }
  }
}
