import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { FILES, REASON } from '../../bootloader/layout.ts'
import { BROKEN_AFTER } from '../../bootloader/machine.ts'
import { decodeReason } from '../../bootloader/reason.ts'
import { DEFAULT_TRIES } from '../../bootloader/state.ts'
import { momentOfBoot, momentOfInstall, momentOfReboot } from '../../hw-tests/harness/cut-moments.ts'
import { copyImage, partitionStart } from '../../hw-tests/harness/disk.ts'
import { Dut } from '../../hw-tests/harness/dut.ts'
import { type Kit, openKit } from '../../hw-tests/harness/kit.ts'
import { DutError } from '../../hw-tests/harness/lab-error.ts'
import { seeded } from '../../hw-tests/harness/random.ts'
import { TestServer } from '../../hw-tests/harness/server.ts'
import { armedState, type SavedState, savedState } from '../../hw-tests/harness/warm.ts'
import { choosePlace, type QemuPlace } from '../../hw-tests/places/index.ts'

/**
 * An emulated device whose power is cut at random moments of real installs and boots; it must come up again by itself
 * from a slot that it should run. The boot behind a cut is nearly always cut too, up to eleven times: the boot that is
 * then let through answers for them all. Cuts of installs follow each other on one device, whatever state they left it
 * in; a cut of a first boot begins with a saved device on which a release is armed.
 */

export interface Kills {
  readonly cuts: number
  /** Boots that nothing cut: each stands behind one cut or several. */
  readonly comings: number
  /** No agent came up behind these. */
  readonly stranded: number
  /** It came up, and something was not as it should be. */
  readonly wrong: number
  /** Whole updates behind a cut: one for 25 cuts, and one at the end of all. */
  readonly updates: number
}

const BOOT_MS = 300_000
/** Failures after which there is nothing more to learn. */
const ENOUGH = 10
const UPDATE_EVERY = 25
/** How often a boot is cut, and how often in a row. */
const AGAIN = 0.95
const MOST_AGAIN = 11
/** Boots that a release on trial gets: as many cut ones, and it is given up. */
const TRIES = DEFAULT_TRIES

/**
 * @param most seconds: after so many nothing more is cut; the boot that answers for the last ones still comes, a minute or two
 * @param where an emulated place; the PC with GRUB without it
 */
export async function kills(
  wanted: number,
  seed: number,
  say: (line: string) => void,
  { most = Number.POSITIVE_INFINITY, where }: { readonly most?: number; readonly where?: string } = {},
): Promise<Kills> {
  const place = choosePlace(where)
  say(`power cuts of an emulated device: ${place.name}, seed ${seed}`)
  const kit = await openKit(place)
  const server = await TestServer.start(place.serverAddress)
  const folder = await mkdtemp(join(tmpdir(), 'bistable-kills-'))
  const bench = new Bench(kit, place, server, folder, seeded(seed))
  let [cuts, comings, stranded, wrong, updates] = [0, 0, 0, 0, 0]
  try {
    const states = { running: await savedState(kit, place), armed: await armedState(kit, place, 'next') }
    const first = performance.now()
    const inTime = () => performance.now() - first < most * 1000
    while (cuts < wanted && inTime() && stranded + wrong < ENOUGH) {
      const began = performance.now()
      let said = 'the device'
      let from = began
      const cut = (where: string) => {
        said = `cut ${++cuts} of ${wanted}: ${where}`
        say(`${said} (${((performance.now() - from) / 1000).toFixed(1)} s)`)
        from = performance.now()
      }
      try {
        cut(await bench.cut(states))
        try {
          while (cuts < wanted && inTime() && (await bench.cutAgain())) cut(await bench.cutBoot())
          await bench.comeUp()
          comings++
        } catch (error) {
          if (!(error instanceof DutError)) throw error
          stranded++
          say(`STRANDED behind ${said}: ${error.message}\n${bench.dut.lastWords().tail}`)
          await bench.giveUp()
          continue
        }
        await bench.check()
        if (cuts === wanted || (inTime() && Math.floor(cuts / UPDATE_EVERY) > updates)) {
          await bench.update()
          updates++
        }
        if (bench.spent) await bench.giveUp()
        say(`up: ${bench.seen} (${Math.round((performance.now() - began) / 1000)} s)`)
      } catch (error) {
        if (!(error instanceof DutError)) throw error
        wrong++
        say(`WRONG behind ${said}: ${error.message}\n${bench.dut.lastWords().tail}`)
        await bench.giveUp()
      }
    }
  } finally {
    await bench.dut.powerCut()
    await server.close()
    await rm(folder, { recursive: true, force: true })
  }
  say(
    `power cuts of an emulated device: ${place.name}, seed ${seed}, ${cuts} cuts, ${comings} times up again, ${stranded} stranded, ${wrong} wrong, ${updates} further updates`,
  )
  return { cuts, comings, stranded, wrong, updates }
}

class Bench {
  readonly dut: Dut
  readonly #random: () => number
  readonly #address: string
  readonly #next: string
  /** The slot that runs, or ran before the cut. */
  #home: 'a' | 'b' = 'a'
  /** What was armed before the cut, so that it must run behind it. */
  #armed = false
  /** Boots since then in which no agent was seen at its end, and cuts in a row. */
  #boots = 0
  #again = 0
  /** An agent said that it gave the release up, before it was cut. */
  #gaveUp = false
  /** How the device came up last. */
  seen = ''
  /** It gave up a release, every try of which had been cut. */
  spent = false

  constructor(kit: Kit, place: QemuPlace, server: TestServer, folder: string, random: () => number) {
    this.#random = random
    const { path, release } = kit.bundle('next')
    this.#next = release
    this.#address = server.offer('/next.bundle', { from: path })
    this.dut = new Dut({
      disk: join(folder, 'disk.img'),
      profile: place.machine,
      memoryMiB: place.memoryMiB,
      httpPort: server.port,
    })
  }

  /** Brings the device to a random moment and cuts its power. @returns where that was */
  async cut(states: { readonly running: SavedState; readonly armed: SavedState }): Promise<string> {
    const lot = this.#random()
    this.#armed = lot >= 0.5
    this.#boots = 0
    this.#gaveUp = false
    const { dut } = this
    if (lot >= 0.6) {
      // As the device was when its power went with the release armed: its first try needs no saved memory.
      await dut.powerCut()
      await copyImage(states.armed.disk, dut.disk)
      this.#home = 'a'
      const where = await this.cutBoot()
      this.#again = 0
      return `first try: ${where}`
    }
    this.#again = 0
    if (this.#armed) await this.#restore(states.armed)
    else if (!dut.on) await this.#restore(states.running)
    if (this.#armed) this.#boots++
    const where = this.#armed
      ? await momentOfReboot(dut, this.#random)
      : await momentOfInstall(dut, this.#address, this.#random)
    await dut.powerCut()
    return where
  }

  /** Draws whether the boot that follows is cut: not when its start would be a reason to give a slot up. */
  async cutAgain(): Promise<boolean> {
    if (this.#again >= MOST_AGAIN || this.#random() >= AGAIN) return false
    const { disk } = this.dut
    const at = (await partitionStart(disk, 'bootstate')) + FILES[REASON].offset
    await using file = await open(disk, 'r')
    const block = Buffer.alloc(1024)
    await file.read(block, 0, block.length, at)
    const { a, b } = decodeReason(block).starts
    return Math.max(a, b) + 1 < BROKEN_AFTER
  }

  /** @throws DutError when the boot does not come to its moment */
  async cutBoot(): Promise<string> {
    this.#again++
    this.#boots++
    await this.dut.powerOn()
    const where = await momentOfBoot(this.dut, this.#random)
    const { events } = this.dut.console
    await this.dut.powerCut()
    // All of it is on the medium when the agent says so.
    const end = events.findLast(({ kind }) => kind === 'committed' || kind === 'fell-back')
    if (end?.kind === 'committed') this.#home = end.fields['slot'] === 'b' ? 'b' : 'a'
    if (end?.kind === 'fell-back') this.#gaveUp = true
    if (end !== undefined) {
      this.#armed = false
      this.#boots = 0
    }
    return where
  }

  async #restore({ disk, memory }: SavedState): Promise<void> {
    await this.dut.powerCut()
    await copyImage(disk, this.dut.disk)
    await this.dut.powerOn({ restore: memory })
    this.#home = 'a'
  }

  /** @throws DutError when no agent says that it runs */
  async comeUp(): Promise<void> {
    const { dut } = this
    await dut.powerOn()
    const boot = await dut.nextBoot(BOOT_MS)
    const fatal = ['panic', 'boot', 'initramfs-failed', 'emergency'] as const
    const up = await dut.next(['running', 'committed', 'fell-back'], { timeoutMs: BOOT_MS, fatal })
    this.seen = `slot ${boot.slot} ${boot.boot}, ${up.kind}`
    const other = this.#home === 'a' ? 'b' : 'a'
    const moved = up.fields['slot'] === other && boot.slot === other && up.fields['release'] === this.#next
    const stayed = up.fields['slot'] === this.#home && boot.slot === this.#home
    // Every try was cut before it could be committed. That stays so until something else is installed.
    this.spent = boot.why === 'tries-spent' && (this.#gaveUp || this.#boots >= TRIES)
    const goesOn = !this.#gaveUp && up.kind !== 'fell-back' && (moved || (stayed && boot.why === 'ok' && !this.#armed))
    const right = this.spent ? stayed : goesOn
    if (!right) this.seen += ', and it should not have'
    if (moved) this.#home = other
  }

  async check(): Promise<void> {
    if (this.seen.endsWith('should not have')) throw new DutError(this.seen)
    const status = (await this.dut.status()) as {
      state: string
      busy: unknown
      problems: unknown[]
      boot: { problem: unknown }
    }
    const { state, busy, problems, boot } = status
    if (
      !(this.spent ? /^fallen-back$/ : /^(idle|committed)$/).test(state) ||
      busy !== null ||
      boot.problem !== null ||
      problems.length > 0
    )
      throw new DutError(`it came up (${this.seen}), and its status is ${JSON.stringify(status)}`)
    // Nobody saw that it was armed: then at least what it gave up must have been whole.
    if (this.spent && !this.#armed) await this.#verify()
  }

  /** One more update from here: installed, tried, committed; then both slots are read whole. */
  async update(): Promise<void> {
    const { dut } = this
    const other = this.#home === 'a' ? 'b' : 'a'
    // A release whose tries were spent is on the block list.
    const force = this.spent ? '--force ' : ''
    const { code, body } = await dut.bistable(`install ${force}${this.#address}`, { timeoutMs: BOOT_MS })
    if (code !== 0) throw new DutError(`the next install failed: ${JSON.stringify(body)}`)
    await dut.reboot()
    const { slot, boot } = await dut.nextBoot(BOOT_MS)
    if (slot !== other || boot !== 'try') throw new DutError(`slot ${other} was armed, ${boot} of slot ${slot} came`)
    await dut.next(['committed'], { timeoutMs: BOOT_MS, fatal: ['panic', 'boot', 'initramfs-failed', 'fell-back'] })
    this.#home = other
    await this.#verify()
  }

  /** Both slots, read whole. */
  async #verify(): Promise<void> {
    const verified = await this.dut.bistable('verify', { timeoutMs: BOOT_MS })
    if (verified.code !== 0) throw new DutError(`a slot does not verify: ${JSON.stringify(verified.body)}`)
  }

  /** The next cut begins with a saved device. */
  async giveUp(): Promise<void> {
    await this.dut.powerCut()
  }
}
