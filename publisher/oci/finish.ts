import { compareUtf8 } from '../../base/bytes.ts'
import { resolvePath } from '../derive.ts'
import type { MergedTree, TreeEntry, TreeNode } from '../tree.ts'
import type { Finding } from './attributes.ts'
import { ociErrors } from './errors.ts'
import type { Item } from './layer.ts'
import type { SealedStore } from './store.ts'

/** The merged items as the tree that others see: sorted, counted, reported on. */

/** Lists all entries in byte order of their paths; hard links get numbers. Pure. */
export function listEntries(root: Item): TreeEntry[] {
  const found: { path: string; node: TreeNode }[] = []
  const uses = new Map<TreeNode, number>()
  const walk = (item: Item, path: string): void => {
    if (item.node === undefined) throw new Error(`'${path}' was left without attributes`)
    found.push({ path, node: item.node })
    if (item.node.type === 'file') uses.set(item.node, (uses.get(item.node) ?? 0) + 1)
    for (const [name, child] of item.children ?? []) walk(child, path === '' ? name : `${path}/${name}`)
  }
  walk(root, '')
  found.sort(byPath(found))
  const links = new Map<TreeNode, number>()
  return found.map(({ path, node }) => {
    if ((uses.get(node) ?? 1) === 1) return { path, node }
    const link = links.get(node) ?? links.size + 1
    links.set(node, link)
    return { path, node, link }
  })
}

/** JavaScript orders strings by UTF-16 units, which is byte order unless a name goes beyond the surrogates. */
function byPath(all: readonly { path: string }[]): (a: { path: string }, b: { path: string }) => number {
  if (all.some(({ path }) => /[\ud800-\uffff]/.test(path))) return (a, b) => compareUtf8(a.path, b.path)
  return (a, b) => (a.path < b.path ? -1 : 1)
}

/** Removes device nodes and FIFOs below /dev, which the kernel fills at boot. */
export function dropDevices(root: Item, findings: Finding[]): void {
  const walk = (item: Item, path: string): void => {
    for (const [name, child] of item.children ?? []) {
      const full = `${path}/${name}`
      const type = child.node?.type
      if (type === 'char' || type === 'block' || type === 'fifo') {
        item.children?.delete(name)
        findings.push({ kind: 'device-dropped', path: full, detail: type })
      } else walk(child, full)
    }
  }
  const dev = root.children?.get('dev')
  if (dev !== undefined) walk(dev, 'dev')
}

/** Findings of single layers, each once, without those about paths that a later layer removed. Pure. */
export function stillTrue(findings: readonly Finding[], entries: readonly TreeEntry[]): Finding[] {
  const paths = new Set(entries.map(({ path }) => path))
  const seen = new Map<string, Finding>()
  for (const finding of findings)
    if (finding.kind === 'device-dropped' || paths.has(finding.path))
      seen.set(`${finding.kind} ${finding.path} ${finding.detail}`, finding)
  return [...seen.values()]
}

/** What a reader of the build report should see. Pure. */
export function findIn(entries: readonly TreeEntry[]): Finding[] {
  const findings: Finding[] = []
  const folded = new Map<string, string>()
  for (const { path, node } of entries) {
    if (node.type === 'file' && (node.mode & 0o4000) !== 0)
      findings.push({ kind: 'setuid', path, detail: `runs as user ${node.uid}` })
    if (node.type === 'file' && (node.mode & 0o2000) !== 0)
      findings.push({ kind: 'setgid', path, detail: `runs as group ${node.gid}` })
    if (node.xattrs.has('security.capability'))
      findings.push({ kind: 'file-capability', path, detail: 'has file capabilities' })
    const slash = path.lastIndexOf('/') + 1
    const key = path.slice(0, slash) + fold(path.slice(slash))
    const twin = folded.get(key)
    if (twin === undefined) folded.set(key, path)
    else findings.push({ kind: 'look-alike', path, detail: `differs from '${twin}' only by case or Unicode form` })
  }
  return findings
}

/** Upper-casing first turns "ß" into "SS", which lower-casing alone keeps apart from "ss". */
function fold(name: string): string {
  return /^[ -~]*$/.test(name)
    ? name.toLowerCase()
    : name.normalize('NFKC').toUpperCase().toLowerCase().normalize('NFKC')
}

/** The tree over its content store. */
export function makeTree(
  entries: readonly TreeEntry[],
  store: Pick<SealedStore, 'read'>,
  config: MergedTree['config'],
  findings: readonly Finding[],
): MergedTree {
  const byPath = new Map<string, TreeEntry>()
  const childrenOf = new Map<string, TreeEntry[]>()
  for (const entry of entries) {
    byPath.set(entry.path, entry)
    if (entry.node.type === 'dir') childrenOf.set(entry.path, [])
    if (entry.path !== '') childrenOf.get(entry.path.slice(0, Math.max(0, entry.path.lastIndexOf('/'))))?.push(entry)
  }
  const get = (path: string): TreeEntry | undefined => byPath.get(path)
  const content: MergedTree['content'] = (node) => store.read(node.content, node.size)
  return {
    entries: () => entries,
    get,
    resolve: (path) => resolvePath(get, path),
    children: (path) => childrenOf.get(path) ?? [],
    content,
    readSmall: async (node, atMost) => {
      if (node.size > atMost)
        throw ociErrors.IMAGE_FILE_TOO_LARGE(`a file of ${node.size} bytes stands where at most ${atMost} are read`)
      const pieces: Uint8Array[] = []
      for await (const piece of content(node)) pieces.push(piece)
      return new Uint8Array(Buffer.concat(pieces))
    },
    config,
    findings,
  }
}
