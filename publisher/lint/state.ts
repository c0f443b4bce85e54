import { mountsOf } from '../../bundle/mounts.ts'
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
  lintCopies(tree, system, report)
  if (system.state.btrfs && !BTRFS_TOOL.paths.some((path) => isFile(tree.resolve(path))))
    report('error', 'program-missing', `/${BTRFS_TOOL.paths[1]}`, 'missing; a btrfs data partition needs it')
}

/** On ext4 the initramfs copies `state.paths` before migrations, with the image's own cp where that is GNU's. */
function lintCopies(tree: MergedTree, system: System, report: Report): void {
  const { migrations, paths } = system.state
  const cp = tree.resolve('bin/cp') ?? tree.resolve('usr/bin/cp')
  if (migrations.length === 0 || cp?.path.endsWith('/cp')) return
  const overlay = mountsOf(system).find(({ policy, path }) => policy === 'overlay' && paths.includes(path))
  if (overlay !== undefined)
    report(
      'error',
      'copy-incomplete',
      overlay.path,
      'an overlay in state.paths needs GNU cp, which keeps what it marks',
    )
  else report('warning', 'copy-incomplete', paths[0] ?? '', 'without GNU cp no extended attributes come back to it')
}
