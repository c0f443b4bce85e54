import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { compareUtf8, type Sha256 } from '../base/bytes.ts'
import { systemCode, systemReason } from '../base/errors.ts'
import { ROOT_PATH, SYSTEM_PATH } from '../bundle/system.ts'
import type { AddedFile } from './derive.ts'
import { publisherErrors } from './errors.ts'
import { INITTAB, initOf, mountingRunlevel, RUNLEVELS, startsAgent, textOf, withAgent } from './inits.ts'
import type { MergedTree, TreeNode } from './tree.ts'

/** Puts the agent, system.json and root.json into an image that has none: files of the host become tree entries. */

export interface AgentFolders {
  /** Its files go to /usr/lib/bistable/agent. */
  readonly files: string
  /** The `node` program for the device; undefined when the folder or the image has it. */
  readonly node?: string
  /** Becomes /usr/bin/bistable. */
  readonly launcher: string
  /** Its files become systemd units and udev rules, where the image has systemd or udev. */
  readonly units: string
  /** device/inits: what starts the agent where that is sysvinit, OpenRC or busybox init. */
  readonly inits: string
}

export interface AgentParts {
  /** A folder as `npm run build` makes it in dist/device. */
  readonly agent?: AgentFolders
  /** A system.json. */
  readonly system?: string
  /** A root.json. */
  readonly root?: string
}

const AGENT_DIR = 'usr/lib/bistable/agent'
const UNIT_DIR = 'usr/lib/systemd/system'
const RULES_DIR = 'usr/lib/udev/rules.d'

/** Mount points that are made when missing, with their modes. */
const FOLDERS = {
  data: 0o755,
  dev: 0o755,
  etc: 0o755,
  proc: 0o555,
  run: 0o755,
  sys: 0o555,
  tmp: 0o1777,
  var: 0o755,
} as const

/**
 * Reads the parts and places them. Modes are 0755 or 0644 by the owner's execute bit, owner root, times `time`
 * (seconds since 1970): the same whoever reads them, with whatever umask.
 * @throws AGENT_PARTS_INVALID when a part is missing or is neither file nor folder
 */
export async function agentFiles(tree: MergedTree, parts: AgentParts, time: number): Promise<readonly AddedFile[]> {
  const added: AddedFile[] = []
  if (parts.agent !== undefined) {
    const { files, node, launcher, units, inits } = parts.agent
    for (const name of await listFiles(files, ''))
      added.push(await fileEntry(`${AGENT_DIR}/${name}`, join(files, name), time))
    if (node !== undefined) added.push(await fileEntry(`${AGENT_DIR}/node`, node, time, 0o755))
    added.push(await fileEntry('usr/bin/bistable', launcher, time, 0o755))
    const has = (folder: string) => tree.resolve(folder)?.node.type === 'dir'
    for (const name of await listFiles(units, '')) {
      const source = join(units, name)
      if (!name.endsWith('.rules')) added.push(...(has(UNIT_DIR) ? await unitEntries(name, source, time) : []))
      else if (has(RULES_DIR)) added.push(await fileEntry(`${RULES_DIR}/${name}`, source, time, 0o644))
    }
    added.push(...(await startEntries(tree, inits, time)))
    for (const [name, mode] of Object.entries(FOLDERS))
      if (tree.get(name) === undefined) added.push({ path: name, node: { type: 'dir', ...attributes(mode, time) } })
  }
  if (parts.system !== undefined) added.push(await fileEntry(SYSTEM_PATH.slice(1), parts.system, time, 0o644))
  if (parts.root !== undefined) added.push(await fileEntry(ROOT_PATH.slice(1), parts.root, time, 0o644))
  return added
}

/** A systemd unit and the links that enable it. */
async function unitEntries(name: string, source: string, time: number): Promise<readonly AddedFile[]> {
  const links = wantedBy(await readFile(source, 'utf8')).map(
    ([target, kind]): AddedFile => ({
      path: `${UNIT_DIR}/${target}.${kind}/${name}`,
      node: { type: 'symlink', target: `../${name}`, ...attributes(0o777, time) },
    }),
  )
  return [await fileEntry(`${UNIT_DIR}/${name}`, source, time, 0o644), ...links]
}

/**
 * What starts the agent where systemd does not. It is in /etc, where these inits look, and comes to a device by the merge. An
 * image that starts the agent already keeps its own way.
 */
async function startEntries(tree: MergedTree, inits: string, time: number): Promise<readonly AddedFile[]> {
  const init = initOf(tree)
  if (init === undefined || init === 'systemd' || (await startsAgent(tree, init))) return []
  const added: AddedFile[] = []
  for (const name of ['start-addons', 'start-agent'])
    added.push(await fileEntry(`usr/lib/bistable/${name}`, join(inits, name), time, 0o755))
  if (init === 'openrc')
    for (const [name, runlevel] of [
      ['bistable-addons', mountingRunlevel(tree)],
      ['bistable-agent', 'default'],
    ] as const) {
      added.push(await fileEntry(`etc/init.d/${name}`, join(inits, 'openrc', name), time, 0o755))
      const link: TreeNode = { type: 'symlink', target: `/etc/init.d/${name}`, ...attributes(0o777, time) }
      added.push({ path: `${RUNLEVELS}/${runlevel}/${name}`, node: link })
    }
  else {
    // Without its own table busybox starts what is not written anywhere: a new one would end that. lint says so.
    const node = tree.get(INITTAB)?.node
    const text = await textOf(tree, INITTAB)
    if (node?.type === 'file' && text !== undefined) added.push(changedFile(INITTAB, node, withAgent(text, init)))
  }
  return added
}

/** A file of the image with other content; all else of it stays. */
function changedFile(path: string, node: TreeNode & { type: 'file' }, text: string): AddedFile {
  const content = Buffer.from(text, 'latin1')
  const digest = createHash('sha256').update(content).digest('hex') as Sha256
  return { path, node: { ...node, size: content.length, content: digest }, content }
}

/**
 * What "systemctl enable" would link, from a unit's [Install] section. Pure. The links go below /usr, so that the
 * agent runs whatever a device's own /etc says of other units.
 */
export function wantedBy(unit: string): readonly (readonly [target: string, kind: 'wants' | 'requires'])[] {
  const links: (readonly [string, 'wants' | 'requires'])[] = []
  let section = ''
  for (const line of unit.split('\n')) {
    section = /^\[(.+)\]\s*$/.exec(line)?.[1] ?? section
    const [, key, value] = /^(WantedBy|RequiredBy)=(.*)$/.exec(line) ?? []
    if (section !== 'Install' || value === undefined) continue
    for (const target of value.split(/\s+/).filter(Boolean))
      links.push([target, key === 'WantedBy' ? 'wants' : 'requires'])
  }
  return links
}

const attributes = (mode: number, time: number) => ({ mode, uid: 0, gid: 0, mtime: time, xattrs: new Map() })

async function fileEntry(path: string, source: string, time: number, mode?: number): Promise<AddedFile> {
  try {
    const about = await stat(source)
    if (!about.isFile()) throw publisherErrors.AGENT_PARTS_INVALID(`${source} is not a file`)
    const hash = createHash('sha256')
    for await (const piece of createReadStream(source)) hash.update(piece)
    const node: TreeNode = {
      type: 'file',
      size: about.size,
      content: hash.digest('hex') as Sha256,
      ...attributes(mode ?? ((about.mode & 0o100) !== 0 ? 0o755 : 0o644), time),
    }
    return { path, node, content: { file: source } }
  } catch (error) {
    throw systemCode(error) === 'ENOENT' ? publisherErrors.AGENT_PARTS_INVALID(`${source} does not exist`) : error
  }
}

/** Names of all files under `folder`, relative, in byte order. */
async function listFiles(folder: string, under: string): Promise<readonly string[]> {
  let entries: Awaited<ReturnType<typeof readDirectory>>
  try {
    entries = await readDirectory(join(folder, under))
  } catch (error) {
    throw publisherErrors.AGENT_PARTS_INVALID(`${join(folder, under)}: ${systemReason(error)}`, {
      cause: error,
      next: "Give the folder that 'npm run build' made: dist/device.",
    })
  }
  const names: string[] = []
  for (const entry of entries) {
    const name = under === '' ? entry.name : `${under}/${entry.name}`
    if (entry.isDirectory()) names.push(...(await listFiles(folder, name)))
    else if (entry.isFile()) names.push(name)
    else throw publisherErrors.AGENT_PARTS_INVALID(`${join(folder, name)} is neither a file nor a folder`)
  }
  return names.sort(compareUtf8)
}

const readDirectory = (path: string) => readdir(path, { withFileTypes: true })
