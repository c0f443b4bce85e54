import type { Processes } from './ports.ts'

/**
 * A sign of life for systemd, which restarts an agent whose event loop stands still: that one cannot end itself, as it does
 * when a disk or a server hangs (loop.ts).
 *
 * sd_notify(3) is a datagram to a Unix socket, which Node.js cannot send; `systemd-notify` does, in the name of the process
 * that starts it, which root may. Each beat also says how long systemd is to wait for the next one: so the watch begins with the first
 * beat that arrives, and where none can (no such program, no right to) nothing is ever ended for want of one. That is why
 * the unit has no WatchdogSec.
 */

/** Between two beats, milliseconds. */
export const BEAT_MS = 60_000
/** Without a beat for so long the agent is ended: 15 of them, on a busy device with a slow disk. */
export const WATCHDOG_SECONDS = 900
const NOTIFY_MS = 30_000

/**
 * Undefined where no service manager wants to hear. Takes the socket's name out of `env`: what the agent starts shall not
 * speak in its name.
 * @param seconds for which systemd waits for the next one
 */
export function beatOf(
  env: Record<string, string | undefined>,
  processes: Pick<Processes, 'run'>,
  seconds: number = WATCHDOG_SECONDS,
): (() => Promise<void>) | undefined {
  const socket = env['NOTIFY_SOCKET']
  delete env['NOTIFY_SOCKET']
  if (socket === undefined || socket === '') return undefined
  const command = ['systemd-notify', `WATCHDOG_USEC=${seconds * 1_000_000}`, 'WATCHDOG=1'] as const
  return async () => {
    await processes.run(command, NOTIFY_MS, undefined, { NOTIFY_SOCKET: socket })
  }
}
