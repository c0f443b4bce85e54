import { LabError } from '../harness/lab-error.ts'
import type { Power } from './power.ts'
import { agrees } from './power-command.ts'

/** Power by a plug that speaks HTTP: Tasmota, Shelly of both generations. */
export interface HttpPower {
  readonly driver: 'http'
  readonly speaks: 'tasmota' | 'shelly-1' | 'shelly-2'
  /** "http://plug-3.lab" */
  readonly address: string
  /** As the plug counts: Tasmota from 1 (a plug with one relay: leave it out), Shelly from 0. */
  readonly outlet?: number
  /** Tasmota's web user. */
  readonly user?: string
  readonly password?: string
}

const ANSWER_MS = 10_000
const MOST_ANSWER = 64 * 1024

/** Path and query that ask a plug for its state, or order one. Pure. */
export function plugPath(wiring: HttpPower, order: 'on' | 'off' | 'ask'): string {
  const { speaks, outlet } = wiring
  if (speaks === 'tasmota') {
    const query = new URLSearchParams()
    if (wiring.user !== undefined) query.set('user', wiring.user)
    if (wiring.password !== undefined) query.set('password', wiring.password)
    query.set('cmnd', `Power${outlet ?? ''}${order === 'ask' ? '' : order === 'on' ? ' On' : ' Off'}`)
    return `/cm?${query.toString().replaceAll('+', '%20')}`
  }
  const id = outlet ?? 0
  if (speaks === 'shelly-1') return `/relay/${id}${order === 'ask' ? '' : `?turn=${order}`}`
  return order === 'ask' ? `/rpc/Switch.GetStatus?id=${id}` : `/rpc/Switch.Set?id=${id}&on=${order === 'on'}`
}

/** The state in a plug's answer to a question. Pure. @throws LabError */
export function plugState(wiring: HttpPower, answer: unknown): boolean {
  const fields = (typeof answer === 'object' && answer !== null ? answer : {}) as Readonly<Record<string, unknown>>
  if (wiring.speaks === 'tasmota') {
    const word =
      fields[`POWER${wiring.outlet ?? ''}`] ??
      fields['POWER'] ??
      (wiring.outlet === undefined ? fields['POWER1'] : undefined)
    if (word === 'ON' || word === 'OFF') return word === 'ON'
  } else {
    const flag = fields[wiring.speaks === 'shelly-1' ? 'ison' : 'output']
    if (typeof flag === 'boolean') return flag
  }
  throw new LabError(`the plug at ${wiring.address} answered ${JSON.stringify(answer).slice(0, 200)}, no state in it`)
}

export function httpPower(wiring: HttpPower): Power {
  const ask = async (order: 'on' | 'off' | 'ask') => {
    let response: Response
    try {
      response = await fetch(new URL(plugPath(wiring, order), wiring.address), {
        signal: AbortSignal.timeout(ANSWER_MS),
      })
    } catch (cause) {
      throw new LabError(`the plug at ${wiring.address} does not answer`, { cause })
    }
    const text = (await response.text()).slice(0, MOST_ANSWER)
    if (!response.ok)
      throw new LabError(`the plug at ${wiring.address} answered ${response.status}: ${text.slice(0, 200)}`)
    try {
      return JSON.parse(text) as unknown
    } catch {
      throw new LabError(`the plug at ${wiring.address} answered no JSON: ${text.slice(0, 200)}`)
    }
  }
  const state = async () => plugState(wiring, await ask('ask'))
  const turn = async (wanted: boolean) => {
    await ask(wanted ? 'on' : 'off')
    await agrees(state, wanted, `the plug at ${wiring.address}`)
  }
  return { on: () => turn(true), off: () => turn(false), state, close: async () => {} }
}
