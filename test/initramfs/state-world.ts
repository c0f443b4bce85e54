import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { run } from '../helpers/run.ts'

/**
 * initramfs/state.sh on this machine: its own shell and tools, a folder (or a mounted file system) for the data partition,
 * a small system in it to chroot into. Every program that changes something can be the last one before a power cut.
 */

const SCRIPTS = resolve(import.meta.dirname, '../../initramfs')
const INIT = readFileSync(join(SCRIPTS, 'init'), 'utf8')

/** A function of `init`, as it stands there. */
function shellFunction(name: string): string {
  const found = new RegExp(`^${name}\\(\\) \\{\\n[\\s\\S]*?^\\}\\n`, 'm').exec(INIT)
  if (found === null) throw new Error(`init has no ${name}`)
  return found[0]
}

const CUTTABLE = ['rm', 'mv', 'cp', 'mkdir', 'sync', 'btrfs']

/** `sync` flushes nothing here: what the kernel holds outlives these cuts. Counts itself; at its turn it does half of its work, if it has halves, and the power goes. */
const wrapper = (
  name: string,
  real = name === 'btrfs' ? '/usr/bin/btrfs' : name === 'sync' ? 'true' : `/bin/busybox ${name}`,
) => `#!/bin/busybox sh
n=$(($(/bin/busybox cat "$COUNTER") + 1)); echo $n >"$COUNTER"
if [ $n = "$CUT_AT" ]; then
  for last; do :; done
  case ${name}$HALF in
    cp1) /bin/busybox mkdir -p "$last" ;;
    rm1) /bin/busybox find "$last" -type f 2>/dev/null | /bin/busybox head -n 1 | /bin/busybox xargs -r /bin/busybox rm ;;
  esac
  kill -9 0
fi
exec ${real} "$@"
`

const DRIVER = `
say() { echo "$*"; }
enter() { :; }
patience() { :; }
mount() { :; }
umount() { :; }
fail() { echo "fail: $1"; exit 9; }
${shellFunction('is_number')}
# busybox takes its own before those in PATH.
${CUTTABLE.map((name) => `${name}() { "$BASE/bin/${name}" "$@"; }`).join('\n')}
ETC=$BASE/etc RUN=$BASE/run TMP=$BASE/tmp LONG=900
. ${SCRIPTS}/state.sh
find_state || fail "the state cannot be found"
settle_state
# What is mounted on the root, here: the root stands in the state itself.
ROOT=$STATE
/bin/busybox mkdir -p "$STATE/var" "$STATE/bin"
[ -e "$STATE/bin/busybox" ] || /bin/busybox cp /bin/busybox "$STATE/bin"
/bin/busybox rm -f "$STATE"/migrate-*
/bin/busybox cp -r "$BASE/image/." "$STATE" 2>/dev/null || :
migrate_state
/bin/busybox cat "$RUN/bistable/state"
`

export interface Release {
  readonly slot: 'a' | 'b'
  readonly number: string
  readonly schema: number
  readonly readableBy?: number
  readonly seconds?: number
  /** Schema to the program, a shell script. */
  readonly migrations?: Readonly<Record<number, string>>
}

export interface Start {
  readonly boot?: 'try' | 'committed' | 'fallback'
  /** The program at whose turn the power goes, counted from 1. */
  readonly cutAt?: number
  /** Half of that program's work is done. */
  readonly half?: boolean
  /** "TO.N": the power goes at step N of the migration to schema TO. */
  readonly stepAt?: string
}

/** Steps of a migration, which may be cut before each. */
const STEP = `#!/bin/busybox sh
n=0
step() { n=$((n + 1)); [ "$BISTABLE_TO.$n" != "$STEP_AT" ] || kill -9 0; /bin/busybox "$@"; }
set -e
cd /var/lib/app
`

export class StateWorld {
  readonly base: string
  readonly filesystem: string
  readonly data: string

  /** @param data a mounted file system; unless given, a folder of `base` */
  constructor(base: string, filesystem = 'ext4', data = join(base, 'data')) {
    this.base = base
    this.filesystem = filesystem
    this.data = data
    for (const folder of ['etc', 'run/bistable', 'tmp', 'image', 'bin'])
      mkdirSync(join(base, folder), { recursive: true })
    mkdirSync(join(data, 'bistable/seeding'), { recursive: true })
    for (const name of CUTTABLE) {
      const path = join(base, 'bin', name)
      writeFileSync(path, wrapper(name))
      chmodSync(path, 0o755)
    }
    writeFileSync(join(base, 'driver.sh'), DRIVER)
  }

  /** The same device once more, elsewhere. */
  copyTo(base: string): StateWorld {
    rmSync(base, { recursive: true, force: true })
    cpSync(this.base, base, { recursive: true, verbatimSymlinks: true, preserveTimestamps: true })
    const { filesystem } = this
    return Object.assign(Object.create(StateWorld.prototype), { base, filesystem, data: join(base, 'data') })
  }

  get state(): string {
    return this.filesystem === 'btrfs' ? join(this.data, 'state') : this.data
  }

  /** Starts a release; what the script said, and whether the power went. */
  start(release: Release, start: Start = {}): { readonly cut: boolean; readonly said: string } {
    const { base } = this
    const { schema, readableBy = schema, seconds = 20, migrations = {} } = release
    const lines = (name: string, text: readonly string[]) =>
      writeFileSync(join(base, 'etc', name), text.map((line) => `${line}\n`).join(''))
    lines('bistable-state', [`${schema} ${readableBy} ${seconds}`])
    lines('bistable-state-paths', ['var/lib/app', 'bind/opt/none'])
    lines(
      'bistable-migrations',
      Object.keys(migrations).map((to) => `${to} /migrate-${to}`),
    )
    for (const [to, text] of Object.entries(migrations)) {
      writeFileSync(join(base, 'image', `migrate-${to}`), STEP + text)
      chmodSync(join(base, 'image', `migrate-${to}`), 0o755)
    }
    writeFileSync(join(base, 'counter'), '0\n')
    const env = {
      BASE: base,
      DATA: this.data,
      COUNTER: join(base, 'counter'),
      CUT_AT: String(start.cutAt ?? 0),
      STEP_AT: start.stepAt ?? '',
      HALF: start.half === true ? '1' : '',
      PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
      slot: release.slot,
      other: release.slot === 'a' ? 'b' : 'a',
      release: release.number,
      roothash: 'ab'.repeat(32),
      boot: start.boot ?? 'committed',
      filesystem: this.filesystem,
    }
    const shell = ['/bin/busybox', 'sh', join(base, 'driver.sh')]
    // chroot takes a user of its own where nobody is root.
    const own = process.getuid?.() === 0 ? [] : ['unshare', '-r']
    const done = spawnSync('setsid', ['-w', ...own, ...shell], { env, encoding: 'utf8', timeout: 60_000 })
    if (done.stderr !== '') throw new Error(done.stderr)
    return { cut: done.signal === 'SIGKILL' || done.status === 137, said: done.stdout }
  }

  /** Path to content of what the application has. */
  files(): Readonly<Record<string, string>> {
    const folder = join(this.state, 'var/lib/app')
    if (!existsSync(folder)) return {}
    const found = run('find', [folder, '-type', 'f', '-printf', '%P\\n']).trim().split('\n').filter(Boolean).sort()
    return Object.fromEntries(found.map((name) => [name, readFileSync(join(folder, name), 'utf8').trim()]))
  }

  put(files: Readonly<Record<string, string>>): void {
    for (const [name, text] of Object.entries(files)) {
      const path = join(this.state, 'var/lib/app', name)
      mkdirSync(join(path, '..'), { recursive: true })
      writeFileSync(path, `${text}\n`)
    }
  }
}
