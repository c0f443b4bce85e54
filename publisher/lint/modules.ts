import { MAX_MODULE, namesOfModule } from '../../initramfs/modules.ts'
import type { MergedTree, TreeEntry, TreeNode } from '../tree.ts'
import { isFile, moduleName, moduleOfPath, moduleVersions, parseModulesDep } from './kernel.ts'
import { type ModuleFacts, readModule, unpackAnyModule } from './module-file.ts'
import type { Report } from './report.ts'

/**
 * The modules of an image: those that the device needs to start, and those that were not built with the kernel (drivers
 * of a vendor, DKMS). The kernel refuses a module of another version or build, and under Secure Boot an unsigned one: on
 * the device, when it is too late.
 */

const TABLE_MAX = 16 * 1024 * 1024
/** More out-of-tree modules than this are a mistake; each one is read whole. */
const MAX_FOREIGN = 256
/** What is needed to start, and what that needs: some hundred. Each one is read whole, too. */
const MAX_NEEDED = 1024

export interface ModulesAsked {
  /** Of the kernel: the name of its module folder. */
  readonly version: string
  /** Modules that the initramfs loads. */
  readonly needed: readonly string[]
  /** The image declares Secure Boot: unsigned modules do not load. */
  readonly secureBoot: boolean
}

export async function lintModules(tree: MergedTree, asked: ModulesAsked, report: Report): Promise<void> {
  const { version } = asked
  const path = `lib/modules/${version}`
  if (tree.resolve(path) === undefined) {
    report('error', 'modules-missing', `/${path}`, `the kernel's module folder is missing`)
    return
  }
  for (const other of moduleVersions(tree))
    if (other !== version && filesBelow(tree, `lib/modules/${other}`).length > 0)
      report(
        'warning',
        'modules-other-kernel',
        `/lib/modules/${other}`,
        `modules for a kernel that is not in the image`,
      )
  if (!tablesFit(tree, path, report)) return
  const needed = await neededFiles(tree, asked, report)
  if (needed === undefined) return
  const foreign = await foreignFiles(tree, path)
  if (foreign.length > MAX_FOREIGN) {
    const first = `${foreign.length} modules that modules.order does not list, at most ${MAX_FOREIGN} are read`
    report('warning', 'modules-many', `/${path}`, first)
  }
  const pattern = await ownModule(tree, path, needed)
  for (const file of new Set([...needed, ...foreign.slice(0, MAX_FOREIGN)])) {
    const entry = tree.resolve(file.startsWith('/') ? file : `${path}/${file}`)
    if (!isFile(entry)) {
      report('error', 'module-missing', `/${path}/${file}`, 'modules.dep lists it, but the file is missing')
      continue
    }
    await lintModule(tree, entry, asked, pattern, report)
  }
}

/** Whether the module folder's tables can be read at all; says which cannot. */
function tablesFit(tree: MergedTree, path: string, report: Report): boolean {
  let fit = true
  for (const name of ['modules.dep', 'modules.builtin', 'modules.order']) {
    const entry = tree.resolve(`${path}/${name}`)
    if (!isFile(entry) || entry.node.size <= TABLE_MAX) continue
    report('error', 'modules-table', `/${entry.path}`, `${entry.node.size} bytes, at most ${TABLE_MAX} are read`)
    fit = false
  }
  return fit
}

async function lintModule(
  tree: MergedTree,
  entry: TreeEntry & { node: TreeNode & { type: 'file' } },
  { version, secureBoot }: ModulesAsked,
  own: ModuleFacts | undefined,
  report: Report,
): Promise<void> {
  const at = `/${entry.path}`
  const facts = await read(tree, entry, (sentence) => report('error', 'module-damaged', at, sentence))
  if (facts === 'unread') report('warning', 'module-unread', at, 'xz is not installed here, so it was not looked into')
  if (facts === 'unread' || facts === undefined) return
  const { vermagic, machine, signed } = facts
  const built = vermagic?.split(' ')[0]
  if (vermagic === undefined)
    report('error', 'module-vermagic', at, 'it does not say for which kernel it was built (no vermagic)')
  else if (built !== version) report('error', 'module-vermagic', at, `built for kernel ${built}, not for ${version}`)
  else if (own?.vermagic !== undefined && vermagic.trim() !== own.vermagic.trim())
    report('error', 'module-vermagic', at, `built with '${vermagic.trim()}', the kernel with '${own.vermagic.trim()}'`)
  if (own !== undefined && machine !== own.machine)
    report('error', 'module-machine', at, `built for another processor (ELF machine ${machine}, not ${own.machine})`)
  if (secureBoot && !signed)
    report('error', 'module-unsigned', at, 'no signature stands behind it, and system.json declares secureBoot')
}

async function read(
  tree: MergedTree,
  entry: TreeEntry & { node: TreeNode & { type: 'file' } },
  bad: (sentence: string) => void,
): Promise<ModuleFacts | 'unread' | undefined> {
  if (entry.node.size > MAX_MODULE) {
    bad(`${entry.node.size} bytes, at most ${MAX_MODULE} are read`)
    return undefined
  }
  try {
    const bytes = unpackAnyModule(entry.path, await tree.readSmall(entry.node, MAX_MODULE))
    return bytes === undefined ? 'unread' : readModule(bytes)
  } catch (error) {
    bad(error instanceof Error ? error.message : String(error))
    return undefined
  }
}

/** What the kernel's own build looks like: one module that was built with it. */
async function ownModule(tree: MergedTree, path: string, needed: readonly string[]): Promise<ModuleFacts | undefined> {
  const order = tree.resolve(`${path}/modules.order`)
  const listed = isFile(order) ? (await text(tree, order.node)).split('\n') : []
  for (const file of [...needed, ...listed]) {
    if (!file.startsWith('kernel/')) continue
    const entry = ['', '.zst', '.gz', '.xz'].map((end) => tree.resolve(`${path}/${file}${end}`)).find(isFile)
    if (entry === undefined) continue
    const facts = await read(tree, entry, () => undefined)
    if (facts !== undefined && facts !== 'unread' && facts.inTree) return facts
  }
  return undefined
}

/** Relative to the module folder; undefined after having reported why nothing is known. */
async function neededFiles(
  tree: MergedTree,
  { version, needed }: ModulesAsked,
  report: Report,
): Promise<readonly string[] | undefined> {
  const path = `lib/modules/${version}`
  const dep = tree.resolve(`${path}/modules.dep`)
  if (!isFile(dep)) {
    report('error', 'modules-dep-missing', `/${path}/modules.dep`, `missing; run depmod ${version} in the image`)
    return undefined
  }
  const modules = parseModulesDep(await text(tree, dep.node))
  const builtinFile = tree.resolve(`${path}/modules.builtin`)
  const builtin = new Set(
    isFile(builtinFile) ? (await text(tree, builtinFile.node)).split('\n').map((line) => moduleOfPath(line)) : [],
  )
  const files = new Set<string>()
  for (const name of new Set(needed.map(moduleName))) {
    const names = namesOfModule(name)
    if (names.some((one) => builtin.has(one))) continue
    const own = names.map((one) => modules.get(one)).find((found) => found !== undefined)
    if (own === undefined)
      report('error', 'module-missing', `/${path}`, `module ${name}, needed to start, is neither there nor built in`)
    for (const file of own ?? []) files.add(file)
  }
  if (files.size > MAX_NEEDED) {
    const many = `${files.size} modules to start with, at most ${MAX_NEEDED} are read`
    report('error', 'modules-table', `/${path}/modules.dep`, many)
    return undefined
  }
  return [...files]
}

/** Modules that the kernel's own build does not list: "updates/dkms/x.ko". All outside "kernel/" where there is no list. */
async function foreignFiles(tree: MergedTree, path: string): Promise<string[]> {
  const order = tree.resolve(`${path}/modules.order`)
  const listed = new Set(isFile(order) ? (await text(tree, order.node)).split('\n').map(plainName) : [])
  return filesBelow(tree, path).filter((file) =>
    listed.size > 0 ? !listed.has(plainName(file)) : !file.startsWith('kernel/'),
  )
}

const plainName = (file: string) => file.replace(/\.(?:xz|zst|gz)$/, '')

/** Module files below a folder, relative to it. */
function filesBelow(tree: MergedTree, folder: string): string[] {
  const top = tree.resolve(folder)
  const found: string[] = []
  const visit = (path: string) => {
    for (const child of tree.children(path)) {
      if (child.node.type === 'dir') visit(child.path)
      else if (moduleOfPath(child.path) !== undefined) found.push(child.path.slice((top?.path.length ?? 0) + 1))
    }
  }
  if (top?.node.type === 'dir') visit(top.path)
  return found
}

async function text(tree: MergedTree, node: TreeNode & { type: 'file' }): Promise<string> {
  return Buffer.from(await tree.readSmall(node, TABLE_MAX)).toString('utf8')
}
