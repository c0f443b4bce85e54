import { setTimeout as sleep } from 'node:timers/promises'
import { type BootState, nextState, readLine } from '../harness/boot-states.ts'
import { Decoder } from '../harness/decoder.ts'
import { LabError } from '../harness/lab-error.ts'
import type { Place } from '../places/index.ts'
import { missingTools } from '../places/index.ts'
import type { Check, Patient } from './patient.ts'

/** `npm run hil -- doctor PLACE`: looks at wiring, power, console and boot, and says what is wrong. */

/** What was measured while the power went off and on. */
export interface Facts {
  /** Programs of this machine that are not here. */
  readonly missing: readonly string[]
  /** Undefined when it went well; else what the driver said, or how the console went away while the board was on. */
  readonly consoleError: string | undefined
  readonly powerError: string | undefined
  /** What else the tests need, each with what is wrong with it. */
  readonly checked: readonly (Pick<Check, 'part' | 'text'> & { readonly error: string | undefined })[]
  /** Bytes on the console in the last moment of the time without power, after a line end was typed. */
  readonly bytesOff: number
  /** Bytes after power-on, and how many of them no console text has. */
  readonly bytesOn: number
  readonly strange: number
  /** Milliseconds from power-on to the first byte. */
  readonly firstByteMs: number | undefined
  readonly states: readonly BootState[]
  readonly lastLine: string
}

export interface Finding {
  readonly part: 'tools' | 'console' | 'power' | 'boot' | Check['part']
  readonly ok: boolean
  readonly text: string
}

/** A line that goes on does so before. */
const PROMPT_MS = 1_000

const GOAL: readonly BootState[] = ['bootloader', 'kernel', 'userspace']

/** What the facts mean, part by part; what cannot be known because of an earlier trouble is left out. Pure. */
export function diagnose(facts: Facts): readonly Finding[] {
  const findings: Finding[] = []
  const tell = (part: Finding['part'], ok: boolean, text: string) => findings.push({ part, ok, text })
  if (facts.missing.length > 0) {
    tell('tools', false, `not here: ${facts.missing.join(', ')}; nothing else was looked at`)
    return findings
  }
  tell('tools', true, 'all programs are here')
  if (facts.consoleError !== undefined) tell('console', false, facts.consoleError)
  if (facts.powerError !== undefined) tell('power', false, facts.powerError)
  for (const { part, text, error } of facts.checked) tell(part, error === undefined, error ?? text)
  if (facts.consoleError !== undefined || facts.powerError !== undefined) return findings

  if (facts.bytesOff > 0)
    tell(
      'power',
      false,
      `${facts.bytesOff} bytes came while the power was off, where a line end was typed: the outlet is another board's, the console is another board's or sends back what it gets, or the board is fed through its serial adapter or USB`,
    )
  else tell('power', true, 'off is silent, and answers nothing')

  if (facts.bytesOn === 0) {
    tell(
      'console',
      false,
      'no byte came after power-on: TX and RX swapped or no common ground, another port, another outlet, or a board that says nothing on this console',
    )
    return findings
  }
  if (facts.strange * 10 > facts.bytesOn) {
    tell('console', false, `${facts.strange} of ${facts.bytesOn} bytes are no text: another baud rate, or a bad ground`)
    return findings
  }
  const first =
    facts.firstByteMs === undefined ? '' : `, the first ${(facts.firstByteMs / 1000).toFixed(1)} s after power-on`
  tell('console', true, `${facts.bytesOn} bytes of text${first}`)

  const way = facts.states.length === 0 ? 'nothing known' : facts.states.join(', ')
  const reached = GOAL.filter((state) => facts.states.includes(state))
  const last = facts.states.at(-1)
  if (last === 'userspace')
    tell(
      'boot',
      true,
      `seen: ${way}${facts.states.length === 1 ? ' (firmware, boot loader and kernel say nothing)' : ''}`,
    )
  else if (last === 'panic' || last === 'emergency' || last === 'initramfs-failed')
    tell('boot', false, `it ended in ${last} (seen: ${way}); last line: ${facts.lastLine}`)
  else
    tell(
      'boot',
      false,
      `${reached.at(-1) ?? 'power-on'} was reached and not userspace (seen: ${way}); last line: ${facts.lastLine}${reached.length === 0 ? '; is a system on its medium, and its boot mode right?' : ''}`,
    )
  return findings
}

export interface DoctorTimes {
  /** How long the console must be silent without power. */
  readonly silenceMs: number
  readonly bootMs: number
}

/** Turns the power off and on once and watches. Leaves the power off. */
export async function examine(place: Place, open: () => Promise<Patient>, times: DoctorTimes): Promise<Facts> {
  const seen = new Observation()
  const missing = missingTools(place.tools, process.env['PATH'] ?? '')
  const checked: { part: Check['part']; text: string; error: string | undefined }[] = []
  const facts = (errors: { consoleError?: string; powerError?: string }, bytesOff: number): Facts => ({
    missing,
    checked,
    consoleError: errors.consoleError,
    powerError: errors.powerError,
    bytesOff,
    ...seen.facts(),
  })
  if (missing.length > 0) return facts({}, 0)
  const patient = await open()
  try {
    patient.onData((bytes) => seen.take(bytes))
    patient.onEnd((why) => seen.end(why))
    try {
      await patient.open()
    } catch (error) {
      return facts({ consoleError: message(error) }, 0)
    }
    try {
      await patient.off()
      // What was under way, and what capacitors keep alive, is not counted.
      await sleep(patient.offMs)
      for (const { part, text, run } of patient.checks)
        checked.push({ part, text, error: await run().then(() => undefined, message) })
      seen.restart()
      // A system that has nothing to say is silent, too; one that waits for somebody answers.
      patient.write(Buffer.from('\r'))
      await sleep(times.silenceMs)
      const bytesOff = seen.bytes
      seen.restart()
      await patient.on()
      const deadline = Date.now() + times.bootMs
      while (Date.now() < deadline && !seen.done) await sleep(50)
      const consoleError = seen.ended
      await patient.off()
      return facts(consoleError === undefined ? {} : { consoleError }, bytesOff)
    } catch (error) {
      return facts({ powerError: message(error) }, 0)
    }
  } finally {
    await patient.close()
  }
}

function message(error: unknown): string {
  if (error instanceof LabError) return error.message
  throw error
}

/** What came over the console since a moment. */
class Observation {
  bytes = 0
  #strange = 0
  #since = Date.now()
  #first: number | undefined
  #states: BootState[] = []
  #last = ''
  #decoder = new Decoder()
  #lastAt = 0
  #ended: string | undefined

  /** How the console went away, and what it had said by then. */
  get ended(): string | undefined {
    return this.#ended
  }

  end(why: string): void {
    const at = ((Date.now() - this.#since) / 1000).toFixed(1)
    const last = this.#last === '' ? 'it had said nothing' : `its last line: ${this.#last}`
    this.#ended ??= `${why}, ${at} s after power-on; ${last}`
  }

  /** Nothing more is to be learnt: the system is up, has given up, or cannot be heard any more. */
  get done(): boolean {
    if (this.#ended !== undefined) return true
    // A login prompt has no line end: it is one when nothing comes behind it.
    if (Date.now() - this.#lastAt > PROMPT_MS) this.#read(this.#decoder.partial)
    return ['userspace', 'panic', 'emergency', 'initramfs-failed'].includes(this.#states.at(-1) ?? '')
  }

  restart(): void {
    this.bytes = 0
    this.#strange = 0
    this.#since = Date.now()
    this.#first = undefined
    this.#states = []
    this.#last = ''
    this.#decoder = new Decoder()
  }

  take(bytes: Buffer): void {
    this.#first ??= Date.now() - this.#since
    this.#lastAt = Date.now()
    this.bytes += bytes.length
    for (const byte of bytes)
      if ((byte < 0x20 && ![7, 8, 9, 10, 13, 27].includes(byte)) || byte >= 0x80) this.#strange++
    for (const line of this.#decoder.take(bytes)) this.#read(line)
  }

  #read(line: string): void {
    if (line.trim() !== '') this.#last = line.slice(0, 200)
    const event = readLine(line)
    if (event === undefined) return
    const state = nextState(this.#states.at(-1) ?? 'off', event)
    if (state !== (this.#states.at(-1) ?? 'off')) this.#states.push(state)
  }

  facts() {
    const { bytes: bytesOn } = this
    return { bytesOn, strange: this.#strange, firstByteMs: this.#first, states: this.#states, lastLine: this.#last }
  }
}
