import type { BootEvent } from './boot-states.ts'

/** What the matchers decide, from events alone. Pure. */

export interface WantedBoot {
  readonly slot: 'a' | 'b'
  readonly boot?: 'committed' | 'try' | 'fallback' | 'menu'
  readonly why?: string
}

/** What is wrong with the boot loader's line, or undefined. */
export function judgeBoot(event: BootEvent, want: WantedBoot): string | undefined {
  const wrong = (['slot', 'boot', 'why'] as const)
    .filter((name) => want[name] !== undefined && event.fields[name] !== want[name])
    .map((name) => `${name} is ${event.fields[name]}, ${want[name]} was wanted`)
  return wrong.length === 0 ? undefined : `${wrong.join('; ')}: ${event.line}`
}

export interface WantedFallBack {
  readonly to: 'a' | 'b'
  /** Release that failed. */
  readonly from?: string
  /** Found in the reason and what follows it. */
  readonly reason?: string | RegExp
  /** How many times the other slot was started. */
  readonly tries?: number
}

export type Verdict = 'wait' | { readonly ok: true } | { readonly ok: false; readonly why: string }

/** Judges what was seen since the device was told to try the other slot. */
export function judgeFallBack(events: readonly BootEvent[], want: WantedFallBack): Verdict {
  const boots = events.filter((e) => e.kind === 'boot')
  const committed = events.find((e) => e.kind === 'committed' && e.fields['slot'] !== want.to)
  if (committed !== undefined) return no(`it was committed: ${committed.line}`)
  const back = events.find((e) => e.kind === 'fell-back')
  const home = boots.findIndex((e) => e.fields['slot'] === want.to)
  const strange = boots.slice(0, home < 0 ? undefined : home).find((e) => e.fields['boot'] !== 'try')
  if (strange !== undefined) return no(`a boot that is no try: ${strange.line}`)
  const tries = home < 0 ? boots.length : home
  if (want.tries !== undefined && (tries > want.tries || (home >= 0 && tries !== want.tries)))
    return no(`${tries} tries, ${want.tries} were wanted`)
  if (back === undefined) return 'wait'
  if (home < 0) return no(`the boot loader never started slot ${want.to}: ${back.line}`)
  if (back.fields['slot'] !== want.to) return no(`slot ${want.to} was wanted: ${back.line}`)
  if (want.from !== undefined && back.fields['from'] !== want.from)
    return no(`from ${want.from} was wanted: ${back.line}`)
  const said = back.line.slice(back.line.indexOf('reason='))
  if (
    want.reason !== undefined &&
    !(typeof want.reason === 'string' ? said.includes(want.reason) : want.reason.test(said))
  )
    return no(`the reason ${want.reason} was wanted: ${back.line}`)
  return { ok: true }
}

function no(why: string): Verdict {
  return { ok: false, why }
}
