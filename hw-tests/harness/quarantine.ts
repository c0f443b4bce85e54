import { mkdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { replace } from '../lease/store.ts'

/**
 * A place whose lab fails twice in a row is not used any more until somebody says that it is repaired: its tests are not
 * run, and say so, instead of failing one by one for the same cause.
 */
export interface PlaceHealth {
  /** Lab errors in a row. */
  readonly strikes: number
  /** The first line of the last one. */
  readonly reason?: string
  /** Milliseconds since 1970. */
  readonly at?: number
}

const STRIKES = 2

/** What a test's end says about its place. A failing product says that the lab works. Pure. */
export function nextHealth(health: PlaceHealth, labError: string | undefined, now: number): PlaceHealth {
  if (labError === undefined) return { strikes: 0 }
  return { strikes: health.strikes + 1, reason: labError.split('\n')[0]?.slice(0, 300) ?? '', at: now }
}

/** Why a place is not used, or undefined. Pure. */
export function quarantineText(place: string, { strikes, reason, at }: PlaceHealth): string | undefined {
  if (strikes < STRIKES) return undefined
  const since = new Date(at ?? 0).toISOString().slice(0, 19).replace('T', ' ')
  return `${place} is quarantined since ${since} UTC: ${reason}; when it is repaired: npm run hil -- doctor ${place}`
}

const fileOf = (folder: string, place: string) => join(folder, `health-${place}.json`)

export async function readHealth(folder: string, place: string): Promise<PlaceHealth> {
  try {
    const value = JSON.parse(await readFile(fileOf(folder, place), 'utf8')) as Partial<PlaceHealth>
    const { strikes, reason, at } = value
    return typeof strikes === 'number' ? { strikes, reason: String(reason ?? ''), at: Number(at ?? 0) } : { strikes: 0 }
  } catch {
    return { strikes: 0 }
  }
}

export async function writeHealth(folder: string, place: string, health: PlaceHealth): Promise<void> {
  if (health.strikes === 0) return rm(fileOf(folder, place), { force: true })
  await mkdir(folder, { recursive: true })
  await replace(fileOf(folder, place), JSON.stringify(health))
}
