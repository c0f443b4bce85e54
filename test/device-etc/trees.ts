import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  lchownSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { onTestFinished } from 'vitest'
import { decideEtc } from '../../device/etc/decide.ts'
import { folderTree } from '../../device/etc/trees.ts'
import type { EtcChoices, EtcFinding, EtcTree } from '../../device/etc/types.ts'
import { writeEtc } from '../../device/etc/write.ts'
import { attrTools } from '../../device/etc/xattrs.ts'

/** Configuration trees as real folders, described in a few words. */

export type Node =
  | string
  | {
      readonly text?: string
      readonly mode?: number
      readonly uid?: number
      readonly dir?: boolean
      readonly to?: string
      readonly hardlink?: string
      readonly fifo?: boolean
      readonly xattr?: string
      readonly acl?: string
    }
export type Tree = Readonly<Record<string, Node>>

export const isRoot = process.getuid?.() === 0

export function scratch(): string {
  const folder = mkdtempSync(join(tmpdir(), 'bistable-etc-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Makes the folder; parents appear by themselves. */
export function makeTree(folder: string, tree: Tree): string {
  mkdirSync(folder, { recursive: true })
  for (const [path, node] of Object.entries(tree)) {
    const full = join(folder, path)
    mkdirSync(dirname(full), { recursive: true })
    const {
      text = '',
      mode,
      uid,
      dir,
      to,
      hardlink,
      fifo,
      xattr,
      acl,
    } = typeof node === 'string' ? { text: node } : node
    if (dir === true) mkdirSync(full, { recursive: true })
    else if (to !== undefined) symlinkSync(to, full)
    else if (hardlink !== undefined) linkSync(join(folder, hardlink), full)
    else if (fifo === true) execFileSync('mkfifo', [full])
    else writeFileSync(full, text)
    if (uid !== undefined) (to === undefined ? chownSync : lchownSync)(full, uid, uid)
    if (mode !== undefined) chmodSync(full, mode)
    if (xattr !== undefined) execFileSync('setfattr', ['-n', 'user.note', '-v', xattr, full])
    if (acl !== undefined) execFileSync('setfacl', ['-m', acl, full])
  }
  return folder
}

export const DEFAULTS: EtcChoices = { mode: 'merge', rules: [], pinned: [], owned: [] }

export interface Merged {
  readonly findings: readonly EtcFinding[]
  readonly result: EtcTree
  readonly folder: string
}

export const listed = (folder: string) => folderTree(folder, attrTools)

/** Merges three folders and writes the result as the agent would. */
export async function mergeFolders(
  base: string,
  folders: { readonly old: string; readonly local: string; readonly image: string },
  choices: Partial<EtcChoices> = {},
): Promise<Merged> {
  const [old, local, image] = await Promise.all([folders.old, folders.local, folders.image].map(listed))
  if (old === undefined || local === undefined || image === undefined) throw new TypeError('three trees')
  const plan = await decideEtc({ old, local, image }, { ...DEFAULTS, ...choices })
  const folder = join(base, 'merged')
  const sources = { local, image }
  await writeEtc(plan, { folder, marker: '1.1 root', sources, xattrs: attrTools, flush: async () => undefined })
  return { findings: plan.findings, result: await listed(folder), folder }
}

export async function mergeTrees(
  old: Tree,
  local: Tree,
  image: Tree,
  choices: Partial<EtcChoices> = {},
): Promise<Merged> {
  const base = scratch()
  const at = (name: string, tree: Tree) => makeTree(join(base, name), tree)
  return await mergeFolders(
    base,
    { old: at('old', old), local: at('local', local), image: at('image', image) },
    choices,
  )
}
