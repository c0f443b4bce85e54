import { uptime } from 'node:os'
import type { Files } from '../../base/durable.ts'
import { clockFacts } from './assignment.ts'
import type { Core } from './core.ts'
import { guarded } from './guarded.ts'
import type { ForwardClock, Processes } from './ports.ts'

/**
 * A clock that was lost (no battery, no network time yet) stands at 1970 or at the day the system was built, and then no
 * certificate is valid: a device that can only be reached over TLS would never learn what time it is. So a clock that was
 * not set, and stands before a time that was signed, is put forward to that time; never back, and never a clock that calls
 * itself synchronised. Certificates are checked as ever. systemd and systemd-timesyncd do the same with times of their own.
 */

/** Milliseconds since 1970 that have passed for certain: the newest of the times that were signed. Pure. */
export function signedFloor(times: readonly (string | undefined)[]): number {
  return Math.max(0, ...times.map((time) => (time === undefined ? 0 : Date.parse(time))))
}

/** @returns what is done before each check. It never rejects, and says the same failure once. */
export function clockKeeper(core: Core): () => Promise<unknown> {
  let said = ''
  // Verified once: what runs does not change under this process.
  let running: Promise<string | undefined> | undefined
  return () =>
    guarded(core, 'agent', async () => {
      const { clock, engine } = core.ports
      const facts = await clockFacts(core)
      if (clock.forward === undefined || facts.synchronised) return
      running ??= engine.storedRelease(core.line.slot).then(
        (stored) => stored?.statement.issued,
        // The other times are as good.
        () => undefined,
      )
      const floor = signedFloor([core.body.verifiedTime, core.trusted.current.issued, await running])
      if (facts.wall.getTime() >= floor) return
      const trouble = await clock.forward.set(floor)
      const line =
        trouble === undefined
          ? `bistable: the clock showed ${facts.wall.toISOString()} and was put forward to ${new Date(floor).toISOString()}, the newest time that was signed`
          : `bistable: the clock is lost and cannot be put forward to ${new Date(floor).toISOString()}: ${trouble}`
      if (line !== said) core.say(line, trouble === undefined ? 'info' : 'warning')
      said = trouble === undefined ? '' : line
    })
}

/** What the clock and the time since the boot showed when the clock was put forward. Milliseconds. */
export interface Mark {
  readonly wall: number
  readonly up: number
}

/** A setting shows as at least this much, and the two drift apart by no more than this part. */
const STEP_MS = 1000
const DRIFT = 0.0005

/** Whether the clock has run on from the mark by itself: nobody has set it since. Pure. */
export function ranOn(mark: Mark, now: Mark): boolean {
  const [wall, up] = [now.wall - mark.wall, now.up - mark.up]
  return Math.abs(wall - up) <= STEP_MS + DRIFT * Math.abs(up)
}

const SET_MS = 10_000
const MARK_BYTES = 200

/** @param path of a file that lasts until the next boot */
export function forwardClock(path: string, files: Files, processes: Pick<Processes, 'run'>): ForwardClock {
  const now = (): Mark => ({ wall: Date.now(), up: Math.round(uptime() * 1000) })
  const keep = (mark: Mark) => files.write(path, Buffer.from(JSON.stringify(mark)))
  return {
    set: async (to) => {
      // Before and after: an agent that is ended in between must not take its own time for another's.
      const seconds = Math.ceil(to / 1000)
      await keep({ ...now(), wall: seconds * 1000 })
      // busybox and coreutils alike.
      const { exit, said } = await processes.run(['date', '-u', '-s', `@${seconds}`], SET_MS)
      if (exit !== 0) return `date ended with ${exit ?? 'a signal'}: ${said.trim()}`
      await keep(now())
      return undefined
    },
    untouched: async () => {
      const bytes = await files.read(path, MARK_BYTES).catch(() => undefined)
      const [, wall, up] = /^\{"wall":(\d{1,16}),"up":(\d{1,16})\}$/.exec(Buffer.from(bytes ?? '').toString()) ?? []
      return wall !== undefined && ranOn({ wall: Number(wall), up: Number(up) }, now())
    },
  }
}
