import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { build } from 'esbuild'
import { describe, expect, it, onTestFinished } from 'vitest'
import { have } from '../helpers/run.ts'

/** The agent's unit and its sign of life under a real systemd: a manager of a user, in name spaces of its own. */

const REPO = resolve(import.meta.dirname, '../..')
const SYSTEMD = '/lib/systemd/systemd'
const ready = have('systemd-notify', 'systemctl', 'unshare') && existsSync(SYSTEMD) && process.getuid?.() === 0

/** What the services write down: "NAME PROCESS WHAT". */
const AGENT = `
import { appendFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { realProcesses } from '${REPO}/device/agent/real.ts'
import { beatOf } from '${REPO}/device/agent/service-watchdog.ts'
const [, , log, name] = process.argv
const tell = (what) => appendFileSync(log, [name, process.pid, what].join(' ') + '\\n')
const beat = beatOf(process.env, realProcesses(name === 'mute' ? '/nowhere' : ''), 8)
tell('started')
await beat()
await sleep(1000)
await beat()
if (name === 'stuck') for (;;);
setInterval(beat, 1000)
`

/** A hierarchy of control groups of its own, which ends with it. */
const OUTER = `
mount -t cgroup2 none "$BASE/groups" || exit 77
group=$BASE/groups/bistable-test-$$
mkdir "$group" && echo $$ >"$group/cgroup.procs" || exit 77
unshare -C -m -p -f --kill-child --mount-proc sh "$BASE/inner.sh"
code=$?
echo $$ >"$BASE/groups/cgroup.procs"
find "$group" -depth -type d -exec rmdir {} +
exit $code
`
const INNER = `
mount -t cgroup2 none /sys/fs/cgroup && mount -t tmpfs none /run && mkdir -p /run/systemd/system || exit 77
${SYSTEMD} --user --unit=both.target >"$BASE/said" 2>&1 &
# Until systemd has ended one that stands still, and started it anew.
n=0
until [ "$(cat "$BASE/log" 2>/dev/null | grep -c 'stuck .* started')" -ge 2 ] || [ $n = 400 ] || ! kill -0 $!; do n=$((n + 1)); sleep 0.1; done
for name in stuck well mute; do systemctl --user show -p WatchdogUSec -p NRestarts $name.service | tr '\\n' ' '; echo; done
`

describe.skipIf(!ready)('a real systemd', () => {
  it('restarts an agent that stands still, and no other', { timeout: 120_000 }, async (context) => {
    const base = mkdtempSync(join(tmpdir(), 'bistable-systemd-'))
    onTestFinished(() => rmSync(base, { recursive: true, force: true }))
    const at = (path: string) => join(base, path)
    for (const folder of ['groups', 'runtime', 'home/.config/systemd/user']) mkdirSync(at(folder), { recursive: true })
    writeFileSync(at('agent.ts'), AGENT)
    symlinkSync(join(REPO, 'node_modules'), at('node_modules'))
    await build({
      ...{
        absWorkingDir: REPO,
        entryPoints: [at('agent.ts')],
        outfile: at('agent.mjs'),
        bundle: true,
        logLevel: 'error',
      },
      ...{ platform: 'node', format: 'esm', target: 'node20.19', external: ['zstd-napi'] },
      banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
    })
    const unit = readFileSync(join(REPO, 'device/systemd/bistable-agent.service'), 'utf8')
    const names = ['stuck', 'well', 'mute']
    for (const name of names) {
      const text = unit
        .replace(/^ExecStart=.*$/m, `ExecStart=${process.execPath} ${at('agent.mjs')} ${at('log')} ${name}`)
        .replace(/^RestartSec=.*$/m, 'RestartSec=0')
        // What a manager of a user has no right to, and what is no matter here.
        .replace(/^(?:RequiresMountsFor|After|OOMScoreAdjust|RuntimeDirectory\w*|Standard\w+)=.*\n/gm, '')
      expect(text).toMatch(/^NotifyAccess=main$/m)
      writeFileSync(at(`home/.config/systemd/user/${name}.service`), text)
    }
    const wants = names.map((name) => `Wants=${name}.service\n`).join('')
    writeFileSync(at('home/.config/systemd/user/both.target'), `[Unit]\n${wants}`)
    writeFileSync(at('inner.sh'), INNER)
    const env = { ...process.env, BASE: base, HOME: at('home'), XDG_RUNTIME_DIR: at('runtime') }
    const ran = spawnSync('unshare', ['-m', 'sh', '-c', OUTER], { env, encoding: 'utf8', timeout: 90_000 })
    if (ran.status === 77) return context.skip('no control groups to be had here')
    expect([ran.status, ran.stdout], ran.stderr + readFileSync(at('said'), 'utf8')).toEqual([
      0,
      'WatchdogUSec=8s NRestarts=1 \nWatchdogUSec=8s NRestarts=0 \nWatchdogUSec=0 NRestarts=0 \n',
    ])
  })
})
