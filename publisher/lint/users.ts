import {
  accountCollisions,
  parseSysusers,
  SYSUSERS_FOLDERS,
  SYSUSERS_MAX_BYTES,
  SYSUSERS_MAX_FILES,
  type SystemAccount,
  unnumbered,
} from '../../bundle/sysusers.ts'
import type { MergedTree, TreeEntry, TreeNode } from '../tree.ts'
import { isFile } from './kernel.ts'
import type { Report } from './report.ts'

/** Users and groups of an image: its tables, and what systemd-sysusers would add to them at boot. */

const TABLE_MAX = 1024 * 1024

export async function lintUsers(tree: MergedTree, report: Report): Promise<void> {
  const passwd = await tableOf(tree, 'etc/passwd')
  if (passwd === undefined) report('error', 'users-missing', '/etc/passwd', 'missing, or too large')
  else lintPasswd(passwd, report)
  const group = await tableOf(tree, 'etc/group')
  if (group !== undefined) lintGroup(group, report)
  await lintSysusers(tree, { passwd: passwd ?? '', group: group ?? '' }, report)
}

/** Checks /etc/passwd. Pure. */
export function lintPasswd(passwd: string, report: Report): void {
  const path = '/etc/passwd'
  const ids = lintTable(
    passwd,
    path,
    { fields: 7, form: 'name:password:uid:gid:comment:home:shell', what: 'user' },
    report,
  )
  if (ids.get(0) !== 'root') report('error', 'users-no-root', path, 'there is no user root with uid 0')
}

/** Checks /etc/group. Pure. */
export function lintGroup(group: string, report: Report): void {
  lintTable(group, '/etc/group', { fields: 4, form: 'name:password:gid:members', what: 'group' }, report)
}

/** @returns number to name */
function lintTable(
  text: string,
  path: string,
  { fields, form, what }: { readonly fields: number; readonly form: string; readonly what: 'user' | 'group' },
  report: Report,
): ReadonlyMap<number, string> {
  const names = new Map<string, number>()
  const ids = new Map<number, string>()
  for (const [index, line] of text.split('\n').entries()) {
    if (line === '') continue
    const at = `line ${index + 1}`
    const parts = line.split(':')
    const [name = '', , id = '', gid = ''] = parts
    const numbers = what === 'user' ? [id, gid] : [id]
    if (parts.length !== fields || name === '' || !numbers.every((number) => /^\d{1,10}$/.test(number))) {
      report('error', 'users-malformed', path, `${at} is not ${form}`)
      continue
    }
    const before = names.get(name)
    if (before !== undefined)
      report('error', 'users-duplicate', path, `${at}: ${what} ${name} is on line ${before} already`)
    else names.set(name, index + 1)
    const owner = ids.get(Number(id))
    if (owner !== undefined)
      report(
        'error',
        'users-duplicate',
        path,
        `${at}: ${what}s ${owner} and ${name} share ${what === 'user' ? 'uid' : 'gid'} ${id}`,
      )
    else ids.set(Number(id), name)
  }
  return ids
}

async function lintSysusers(
  tree: MergedTree,
  tables: { readonly passwd: string; readonly group: string },
  report: Report,
): Promise<void> {
  const files = new Map<string, TreeEntry & { readonly node: TreeNode & { readonly type: 'file' } }>()
  // Of two files with one name the first folder's counts.
  for (const folder of SYSUSERS_FOLDERS)
    for (const child of tree.children(tree.resolve(folder)?.path ?? folder)) {
      const name = child.path.slice(child.path.lastIndexOf('/') + 1)
      const file = tree.resolve(child.path)
      if (name.endsWith('.conf') && isFile(file) && !files.has(name)) files.set(name, file)
    }
  const accounts: SystemAccount[] = []
  if (files.size > SYSUSERS_MAX_FILES) {
    const many = `${files.size} files, at most ${SYSUSERS_MAX_FILES} are read`
    report('error', 'users-malformed', '/usr/lib/sysusers.d', many)
    return
  }
  for (const [name, file] of [...files].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (file.node.size > SYSUSERS_MAX_BYTES) {
      report('error', 'users-malformed', `/${file.path}`, `${name} has more than ${SYSUSERS_MAX_BYTES} bytes`)
      continue
    }
    const text = Buffer.from(await tree.readSmall(file.node, SYSUSERS_MAX_BYTES)).toString('latin1')
    for (const account of parseSysusers(text)) accounts.push(account)
  }
  for (const sentence of accountCollisions(accounts, tables))
    report('error', 'users-collision', '/usr/lib/sysusers.d', sentence)
  for (const { table, name } of unnumbered(accounts, tables))
    report(
      'warning',
      'users-unnumbered',
      '/usr/lib/sysusers.d',
      `${table === 'passwd' ? 'user' : 'group'} ${name} gets a number on each device, which a later release may want too; give it one`,
    )
}

async function tableOf(tree: MergedTree, path: string): Promise<string | undefined> {
  const entry = tree.resolve(path)
  if (!isFile(entry) || entry.node.size > TABLE_MAX) return undefined
  return Buffer.from(await tree.readSmall(entry.node, TABLE_MAX)).toString('utf8')
}
