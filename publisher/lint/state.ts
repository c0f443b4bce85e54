import type { System } from '../../bundle/system.ts'
import { BTRFS_TOOL } from '../../initramfs/tools.ts'
import type { MergedTree } from '../tree.ts'
import { isFile } from './kernel.ts'
import type { Report } from './report.ts'

/** What the field `state` of system.json promises, looked for in the image. */
export function lintState(tree: MergedTree, system: System | undefined, report: Report): void {
  if (system === undefined) return
  for (const { to, run } of system.state.migrations) {
    const program = tree.resolve(run)
    if (!isFile(program)) report('error', 'migration-missing', run, `missing; it leads to schema ${to}`)
    else if ((program.node.mode & 0o111) === 0)
      report('error', 'migration-not-executable', run, `not executable; it leads to schema ${to}`)
  }
  if (system.state.btrfs && !BTRFS_TOOL.paths.some((path) => isFile(tree.resolve(path))))
    report('error', 'program-missing', `/${BTRFS_TOOL.paths[1]}`, 'missing; a btrfs data partition needs it')
}
