import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import type { EtcTree } from '../device/etc/types.ts'
import { listed, makeTree, mergeFolders } from '../test/device-etc/trees.ts'
import { outcome, type Sides, said } from './etc/outcome.ts'
import { CASES, type Case } from './etc/rows.ts'

// npm run etc-vs-ostree [-- --write]
// Every row of the merge matrix, done by Debian's ostree (two deployments in a private sysroot, nothing is booted) and by
// bistable, on the same real files. Prints the table; --write puts it into docs/etc.md.

const PAGE = resolve(import.meta.dirname, '../docs/etc.md')
const [START, END] = ['<!-- etc-vs-ostree -->', '<!-- /etc-vs-ostree -->']

if (process.getuid?.() !== 0) throw new Error('ostree deploys as root only')
const version = /Version: '([^']+)'/.exec(execFileSync('ostree', ['--version'], { encoding: 'utf8' }))?.[1]
const base = mkdtempSync(join(tmpdir(), 'bistable-ostree-'))
const lines = [
  `| # | here, since the old image | in the new image | ostree ${version} | bistable |`,
  '| --- | --- | --- | --- | --- |',
]
try {
  for (const one of CASES) {
    const folder = join(base, String(one.row))
    const sides = { old: one.old, local: one.local, image: one.image }
    const folders = Object.fromEntries(
      Object.entries(sides).map(([name, tree]) => [name, makeTree(join(folder, name), tree)]),
    ) as Record<keyof typeof sides, string>
    const trees = await treesOf(folders)
    const theirs = await byOstree(one, folder, folders)
    const ours = await mergeFolders(folder, folders, { pinned: one.pinned ?? [] })
    const refused = ours.findings.some(({ level }) => level === 'refused')
    const words = said(ours.findings)
    const cells = [
      typeof theirs === 'string' ? theirs : told(one, theirs, trees),
      refused ? words : [told(one, ours.result, trees), words].filter(Boolean).join('; '),
    ]
    lines.push(`| ${one.row} | ${one.here} | ${one.there} | ${cells.join(' | ')} |`)
  }
} finally {
  rmSync(base, { recursive: true, force: true })
}
const table = lines.join('\n')
console.log(table)
if (process.argv.includes('--write')) {
  const page = readFileSync(PAGE, 'utf8')
  const [before, rest] = page.split(START)
  const after = rest?.split(END)[1]
  if (before === undefined || after === undefined) throw new Error(`${PAGE} has no place for the table`)
  writeFileSync(PAGE, `${before}${START}\n${table}\n${END}${after}`)
}

function told({ watch }: Case, result: EtcTree, sides: Sides): string {
  const parts = watch.map((path) => [path, outcome(path, result, sides)] as const)
  return parts.length === 1 ? (parts[0]?.[1] ?? '') : parts.map(([path, what]) => `\`${path}\`: ${what}`).join('; ')
}

async function treesOf(folders: Readonly<Record<keyof Sides, string>>): Promise<Sides> {
  return { old: await listed(folders.old), local: await listed(folders.local), image: await listed(folders.image) }
}

/** The /etc of the second deployment, or why there is none. */
async function byOstree(
  one: Case,
  folder: string,
  folders: Readonly<Record<keyof Sides, string>>,
): Promise<EtcTree | string> {
  const sysroot = join(folder, 'sysroot')
  mkdirSync(sysroot)
  const repo = `--repo=${sysroot}/ostree/repo`
  ostree('admin', 'init-fs', sysroot)
  // The boot loader's entries are written, and no program of a boot loader is run.
  ostree(repo, 'config', 'set', 'sysroot.bootloader', 'none')
  ostree('admin', 'os-init', 'os', `--sysroot=${sysroot}`)
  const commit = (name: string, etc: string) => {
    const tree = join(folder, `tree-${name}`)
    mkdirSync(join(tree, 'usr/lib/modules/6.1.0'), { recursive: true })
    mkdirSync(join(tree, 'boot'))
    writeFileSync(join(tree, 'usr/lib/modules/6.1.0/vmlinuz'), 'kernel')
    writeFileSync(join(tree, 'usr/lib/os-release'), `ID=test\nVERSION=${name}\n`)
    copy(etc, join(tree, 'usr/etc'))
    ostree(repo, 'commit', '--branch=os', `--tree=dir=${tree}`)
  }
  const deploy = () => spawnSync('ostree', ['admin', 'deploy', `--sysroot=${sysroot}`, '--os=os', 'os'], around())
  const deployments = join(sysroot, 'ostree/deploy/os/deploy')
  const present = () => readdirSync(deployments).filter((name) => name.endsWith('.0'))
  commit('old', folders.old)
  const first = deploy()
  if (first.status !== 0) throw new Error(`row ${one.row}: ${first.stderr}`)
  const [old = ''] = present()
  const running = join(deployments, old, 'etc')
  rmSync(running, { recursive: true })
  copy(folders.local, running)
  commit('new', folders.image)
  const second = deploy()
  if (second.status !== 0)
    return `no deployment: ${second.stderr
      .trim()
      .replace(/^error: /, '')
      .slice(0, 120)}`
  const made = present().find((name) => name !== old)
  if (made === undefined) throw new Error(`row ${one.row}: no second deployment`)
  return await listed(join(deployments, made, 'etc'))
}

/** With links, owners, times and extended attributes. */
function copy(from: string, to: string): void {
  execFileSync('cp', ['-a', from, to])
}

function ostree(...args: string[]): void {
  const { status, stderr } = spawnSync('ostree', args, around())
  if (status !== 0) throw new Error(`ostree ${args.join(' ')}: ${stderr}`)
}

function around() {
  // Deployments are made immutable otherwise, which not every file system can and nobody could remove.
  return { encoding: 'utf8', env: { ...process.env, OSTREE_SYSROOT_DEBUG: 'mutable-deployments' } } as const
}
