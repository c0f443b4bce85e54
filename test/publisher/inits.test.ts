import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { INITRAMFS_NEEDS } from '../../initramfs/build.ts'
import { agentFiles } from '../../publisher/agent-overlay.ts'
import { deriveTree } from '../../publisher/derive.ts'
import { type Init, initOf } from '../../publisher/inits.ts'
import { lintTree } from '../../publisher/lint/lint.ts'
import { run } from '../helpers/run.ts'
import { fitSpecs, memoryTree, type Spec, TIME } from './memory-tree.ts'

/** Who starts the agent: which init an image has, what the build puts there for it, and what lint says when nothing does. */

const DEVICE = resolve(import.meta.dirname, '../../device')
const program: Spec = { type: 'file', bytes: '\x7fELF', mode: 0o755 }
const SYSVINIT_TABLE = 'id:2:initdefault:\nsi::sysinit:/etc/init.d/rcS\nl2:2:wait:/etc/init.d/rc 2'
const BUSYBOX_TABLE = '::sysinit:/etc/init.d/rcS\n# ::respawn:/usr/bin/bistable agent\n'

/** What makes an image one of each init. */
const INITS: Readonly<Record<Init, Readonly<Record<string, Spec>>>> = {
  systemd: {},
  openrc: {
    ...{ 'usr/sbin/init': program, 'usr/sbin/openrc-run': program, 'etc/inittab': SYSVINIT_TABLE },
    ...{ 'etc/runlevels/boot': { type: 'dir' }, 'etc/runlevels/default': { type: 'dir' } },
  },
  sysvinit: { 'usr/sbin/init': program, 'etc/inittab': { type: 'file', bytes: SYSVINIT_TABLE, mode: 0o600, gid: 4 } },
  busybox: { 'usr/sbin/init': { type: 'symlink', target: '../bin/busybox' }, 'etc/inittab': BUSYBOX_TABLE },
}

/** A fit image with that init, in which nothing starts the agent. */
async function image(init: Init, more: Readonly<Record<string, Spec>> = {}) {
  const specs = await fitSpecs()
  for (const path of Object.keys(specs)) if (path.includes('bistable-agent')) delete specs[path]
  return memoryTree({ ...specs, 'usr/lib/systemd/system/multi-user.target': '', ...INITS[init], ...more })
}

const findings = async (tree: Awaited<ReturnType<typeof image>>) =>
  (await lintTree(tree, INITRAMFS_NEEDS)).problems.map(({ severity, id, path }) => `${severity} ${id} ${path}`)

const host = mkdtempSync(join(tmpdir(), 'bistable-inits-'))
afterAll(() => rmSync(host, { recursive: true }))
beforeAll(() => {
  mkdirSync(join(host, 'dist'))
  writeFileSync(join(host, 'dist/bistable.mjs'), 'agent')
})

/** The image with what `build --agent` adds. */
async function built(init: Init, more: Readonly<Record<string, Spec>> = {}) {
  const tree = await image(init, more)
  const folders = { units: join(DEVICE, 'systemd'), inits: join(DEVICE, 'inits') }
  const agent = { files: join(host, 'dist'), launcher: join(DEVICE, 'bin/bistable'), ...folders }
  const added = await agentFiles(tree, { agent }, TIME)
  return deriveTree(tree, { add: added, time: TIME })
}

const names = Object.keys(INITS) as Init[]

describe('inits', () => {
  it.each(names)('%s: known, said when it starts no agent, and made to start it', async (init) => {
    const bare = await image(init)
    expect(initOf(bare)).toBe(init)
    expect(await findings(bare)).toEqual(['warning agent-not-started /sbin/init'])
    expect(await findings(await built(init))).toEqual([])
  })

  const text = async (tree: Awaited<ReturnType<typeof image>>, path: string) => {
    const entry = tree.get(path)
    if (entry?.node.type !== 'file') throw new Error(`${path} is no file`)
    return { ...entry.node, text: Buffer.from(await tree.readSmall(entry.node, 10_000)).toString() }
  }

  it('tables of sysvinit and busybox get two lines behind their own, and stay whose they were', async () => {
    const table = await text(await built('sysvinit'), 'etc/inittab')
    expect(table).toMatchObject({ mode: 0o600, gid: 4 })
    expect(table.text.split('\n').slice(2)).toEqual([
      'l2:2:wait:/etc/init.d/rc 2',
      'bsad::bootwait:/usr/lib/bistable/start-addons',
      'bsag:2345:respawn:/usr/lib/bistable/start-agent',
      '',
    ])
    expect((await text(await built('busybox'), 'etc/inittab')).text).toBe(
      `${BUSYBOX_TABLE}::wait:/usr/lib/bistable/start-addons\n::respawn:/usr/lib/bistable/start-agent\n`,
    )
    expect(await text(await built('busybox'), 'usr/lib/bistable/start-agent')).toMatchObject({ mode: 0o755, uid: 0 })
  })

  it('OpenRC gets services in their runlevels; its table is left alone', async () => {
    const tree = await built('openrc')
    expect(tree.get('etc/runlevels/boot/bistable-addons')?.node).toMatchObject({
      target: '/etc/init.d/bistable-addons',
    })
    expect((await text(tree, 'etc/init.d/bistable-agent')).mode).toBe(0o755)
    expect((await text(tree, 'etc/inittab')).text).toBe(SYSVINIT_TABLE)
  })

  it.each([
    ['Alpine', 'boot/localmount', 'boot'],
    // Where `boot` starts together with `default`.
    ['Debian', 'sysinit/mountall.sh', 'sysinit'],
  ])('OpenRC of %s: add-ons come before the services of the next runlevel', async (_, mounting, runlevel) => {
    const tree = await built('openrc', { [`etc/runlevels/${mounting}`]: { type: 'symlink', target: 'x' } })
    const levels = tree.children('etc/runlevels').filter(({ path }) => tree.get(`${path}/bistable-addons`))
    expect(levels.map(({ path }) => path)).toEqual([`etc/runlevels/${runlevel}`])
  })

  it.each([
    ['sysvinit', { 'etc/inittab': `${SYSVINIT_TABLE}\nbs:2345:respawn:/usr/bin/bistable agent\n` }],
    ['busybox', { 'etc/init.d/rcS': '#!/bin/sh\n/usr/bin/bistable agent &\n' }],
    ['openrc', { 'etc/runlevels/default/bistable': { type: 'symlink', target: '/etc/init.d/bistable' } }],
    ['systemd', { 'etc/systemd/system/a.target.requires/bistable-agent.service': { type: 'symlink', target: 'x' } }],
  ] as const)('%s: an image that starts the agent in its own way keeps it', async (init, more) => {
    expect(await findings(await image(init, more))).toEqual([])
    const tree = await built(init, more)
    expect(tree.get('usr/lib/bistable/start-agent')).toBeUndefined()
    expect(await findings(tree)).toEqual([])
  })

  it.each<[string, Init, Record<string, Spec>]>([
    ['no table', 'busybox', {}],
    ['a table that is none', 'sysvinit', { 'etc/inittab': `${SYSVINIT_TABLE}\n${'#'.repeat(70_000)}` }],
  ])('%s: left as it is, and said', async (_, init, more) => {
    const { 'etc/inittab': __, ...others } = INITS[init]
    const specs = { ...(await fitSpecs()), ...others, ...more }
    const tree = memoryTree(specs)
    const folders = { units: join(DEVICE, 'systemd'), inits: join(DEVICE, 'inits') }
    const agent = { files: join(host, 'dist'), launcher: join(DEVICE, 'bin/bistable'), ...folders }
    const added = await agentFiles(tree, { agent }, TIME)
    expect(added.map(({ path }) => path)).not.toContain('etc/inittab')
    expect(await findings(deriveTree(tree, { add: added, time: TIME }))).toEqual([
      'warning agent-not-started /sbin/init',
    ])
  })

  it('another first program is said to be unknown', async () => {
    expect(await findings(await image('systemd', { 'usr/sbin/init': program }))).toEqual([
      'warning init-unknown /sbin/init',
    ])
  })

  it('its scripts are good shell; an agent that ended soon waits before it starts again; an empty machine id is filled once', () => {
    for (const name of ['start-agent', 'start-addons', 'openrc/bistable-agent', 'openrc/bistable-addons'])
      run('sh', ['-n', join(DEVICE, 'inits', name)])
    const script = readFileSync(join(DEVICE, 'inits/start-agent'), 'utf8')
      .replace('stamp=/run', `stamp=${host}`)
      .replace('/proc/self/oom_score_adj', '/dev/null')
      .replace('id=/etc', `id=${host}`)
      .replace('/usr/bin/bistable', 'echo bistable')
    const start = () => run('sh', ['-c', `sleep() { echo "waits $*"; }\n${script}`])
    const id = join(host, 'machine-id')
    expect(start()).toBe('bistable agent\n')
    expect(existsSync(id)).toBe(false)
    writeFileSync(id, '')
    expect(start()).toBe('waits 13\nbistable agent\n')
    const made = readFileSync(id, 'utf8')
    expect(made).toMatch(/^[0-9a-f]{32}\n$/)
    writeFileSync(join(host, 'bistable-started'), '-20\n')
    expect(start()).toBe('bistable agent\n')
    expect(readFileSync(id, 'utf8')).toBe(made)
  })
})
