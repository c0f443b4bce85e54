import { isBistableError } from '../../base/errors.ts'
import { mountsOf } from '../../bundle/mounts.ts'
import { SYSTEM_PATH, type System } from '../../bundle/system.ts'
import { BLOCK } from '../../bundle/tree.ts'
import type { Root } from '../../keys/types.ts'
import { bootCfg } from '../boot-image.ts'
import { publisherErrors } from '../errors.ts'
import { declaredModules } from '../initramfs-options.ts'
import { initOf, startsAgent } from '../inits.ts'
import type { MergedTree } from '../tree.ts'
import { lintRoot, lintSystem } from './declaration.ts'
import { lintHealth } from './health.ts'
import { isFile, type Kernel, lintKernel } from './kernel.ts'
import { lintModules } from './modules.ts'
import { lintPackages } from './packages.ts'
import { type Problem, problemLine, type Report } from './report.ts'
import { lintState } from './state.ts'
import { lintUsers } from './users.ts'

/** The fitness check: everything that would keep an image from working as a release, listed at once. */

/** Folders that something is mounted on at start; a read-only root file system cannot make them later. */
export const MOUNT_POINTS = ['data', 'proc', 'sys', 'dev', 'run', 'tmp', 'etc', 'var'] as const

/** What the initramfs needs from the image. */
export interface InitramfsNeeds {
  readonly modules: readonly string[]
  /** Each inner list: paths without leading slash, of which one must be there. */
  readonly programs: readonly (readonly string[])[]
}

export interface LintResult {
  readonly problems: readonly Problem[]
  /** Known when the check for it passed. */
  readonly kernel: Kernel | undefined
  readonly system: System | undefined
  readonly root: Root | undefined
}

/** Checks a merged tree. Reads it only; never throws for what the image holds. */
export async function lintTree(tree: MergedTree, needs: InitramfsNeeds): Promise<LintResult> {
  const problems: Problem[] = []
  const report: Report = (severity, id, path, sentence) => problems.push({ id, severity, path, sentence })

  const system = await lintSystem(tree, report)
  if (system !== undefined) lintKernelArgs(system, tree.config.architecture, report)
  const root = await lintRoot(tree, system?.product, report)
  const kernel = await lintKernel(tree, report)
  if (kernel !== undefined) {
    const needed = [...needs.modules, ...declaredModules(system)]
    await lintModules(tree, { version: kernel.version, needed, secureBoot: system?.secureBoot === true }, report)
  }
  lintPrograms(tree, needs, report)
  await lintInit(tree, report)
  lintFolders(tree, system, report)
  lintState(tree, system, report)
  lintVar(tree, report)
  lintPackages(tree, report)
  await lintHealth(tree, system, report)
  await lintUsers(tree, report)
  for (const finding of tree.findings) report('fact', finding.kind, `/${finding.path}`, finding.detail)
  return { problems, kernel, system, root }
}

/** What does not fit in the kernel's command line with the shortest release there is fits with none. */
function lintKernelArgs({ kernelArgs }: System, architecture: string, report: Report): void {
  const least = { epoch: 0, counter: 0 }
  const facts = { number: least, securityFloor: least, root: '0'.repeat(64), length: BLOCK, kernelArgs, architecture }
  try {
    bootCfg(facts)
  } catch (error) {
    if (!isBistableError(error, 'BOOT_CFG_INVALID')) throw error
    report('error', 'args-too-long', SYSTEM_PATH, error.message)
  }
}

/** The programs that the agent in the image consists of. */
const AGENT_FILES = ['usr/lib/bistable/agent/bistable.mjs', 'usr/lib/bistable/agent/node', 'usr/bin/bistable'] as const

function lintPrograms(tree: MergedTree, needs: InitramfsNeeds, report: Report): void {
  const init = tree.resolve('sbin/init')
  if (!isFile(init)) report('error', 'init-missing', '/sbin/init', 'missing, or a link that leads nowhere')
  else if ((init.node.mode & 0o111) === 0) report('error', 'init-not-executable', `/${init.path}`, 'not executable')
  for (const choices of needs.programs)
    if (!choices.some((path) => isFile(tree.resolve(path))))
      report('error', 'program-missing', `/${choices[0]}`, 'missing; the initramfs needs it')
  for (const path of AGENT_FILES)
    if (!isFile(tree.resolve(path)))
      report('error', 'agent-missing', `/${path}`, 'missing; install the agent in the image or build with --agent')
}

/** Warnings only: an image may have its own way of starting things. A release whose agent never starts falls back. */
async function lintInit(tree: MergedTree, report: Report): Promise<void> {
  if (!isFile(tree.resolve('sbin/init'))) return
  const init = initOf(tree)
  if (init === undefined)
    report(
      'warning',
      'init-unknown',
      '/sbin/init',
      'neither systemd, OpenRC, sysvinit nor busybox: it has to start the agent by itself, and add-ons before it',
    )
  else if (!(await startsAgent(tree, init)))
    report('warning', 'agent-not-started', '/sbin/init', `${init} starts no agent, as far as its files say`)
}

function lintFolders(tree: MergedTree, system: System | undefined, report: Report): void {
  for (const name of MOUNT_POINTS)
    if (tree.get(name)?.node.type !== 'dir')
      report(
        'error',
        'mount-point-missing',
        `/${name}`,
        'missing, or not a folder; something is mounted there at start',
      )
  for (const { path, policy } of system === undefined ? [] : mountsOf(system)) {
    const entry = tree.get(path.slice(1))
    const declared = policy === 'data' ? 'declared writable' : `declared as ${policy}`
    if (entry === undefined)
      report('error', 'writable-missing', path, `${declared}, but not in the image, or behind a link`)
    else if (entry.node.type !== 'dir')
      report('error', 'writable-not-folder', path, `${declared}, but a ${entry.node.type}; only folders can be`)
  }
}

/** Parts of /var that a build leaves behind by accident; they would be seeded to every device. */
const VAR_LITTER = ['var/log', 'var/cache', 'var/tmp', 'var/lib/apt/lists', 'var/lib/systemd/random-seed'] as const

function lintVar(tree: MergedTree, report: Report): void {
  const top = tree.children('var')
  if (top.length > 0)
    report('fact', 'var-seed', '/var', `${countFiles(tree, 'var')} files seed /var, each path once per device`)
  for (const path of VAR_LITTER) {
    const files = countFiles(tree, path)
    if (files > 0)
      report('warning', 'var-litter', `/${path}`, `${files} files that seed every device; most often left by accident`)
  }
}

function countFiles(tree: MergedTree, path: string): number {
  const own = tree.get(path)
  if (own === undefined) return 0
  if (own.node.type !== 'dir') return 1
  return tree.children(path).reduce((sum, child) => sum + countFiles(tree, child.path), 0)
}

/**
 * The parts that a build needs, or a refusal that lists every error.
 * @throws IMAGE_NO_KERNEL when the kernel is all that is wrong, else IMAGE_UNFIT
 */
export function requireFit(result: LintResult): {
  readonly kernel: Kernel
  readonly system: System
  readonly root: Root
} {
  const errors = result.problems.filter((problem) => problem.severity === 'error')
  const { kernel, system, root } = result
  if (errors.length === 0 && kernel !== undefined && system !== undefined && root !== undefined)
    return { kernel, system, root }
  const lines = errors.map(problemLine)
  const raise = errors.every((error) => error.id.startsWith('kernel-')) ? 'IMAGE_NO_KERNEL' : 'IMAGE_UNFIT'
  const count = errors.length === 1 ? '1 thing is' : `${errors.length} things are`
  throw publisherErrors[raise](`${count} wrong with the image:\n  ${lines.join('\n  ')}`, {
    details: { problems: errors },
  })
}
