import { spawnSync } from 'node:child_process'

const PATH = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`

/** Runs a program to its end; throws with its last words unless it ends with `ok`. */
export function run(
  program: string,
  args: readonly string[],
  options: { cwd?: string; ok?: readonly number[] } = {},
): string {
  const done = spawnSync(program, args, {
    encoding: 'latin1',
    env: { ...process.env, PATH, LC_ALL: 'C.UTF-8' },
    maxBuffer: 64 * 1024 * 1024,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  })
  if (done.error !== undefined) throw done.error
  if (!(options.ok ?? [0]).includes(done.status ?? -1))
    throw new Error(
      `${program} ${args.join(' ')} ended with ${done.status ?? done.signal}: ${done.stderr.slice(-2000)}`,
    )
  return done.stdout
}

/** True when a program is on this machine. In CI a missing one is an error, elsewhere a named skip. */
export function have(...programs: readonly string[]): boolean {
  const missing = programs.filter((name) => spawnSync('which', [name], { env: { ...process.env, PATH } }).status !== 0)
  if (missing.length > 0 && process.env['CI']) throw new Error(`missing on this machine: ${missing.join(', ')}`)
  if (missing.length > 0) console.warn(`skipped: ${missing.join(', ')} missing`)
  return missing.length === 0
}
