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
  const cp = tree.resolve('bin/cp') ?? tree.resolve('usr/bin/cp')
  // A link to busybox is none.
  const whole = cp?.path.endsWith('/cp') === true
  if (!whole) lintCopies(system, report)
  lintSeeds(tree, system, whole, report)
  if (system.state.btrfs && !BTRFS_TOOL.paths.some((path) => isFile(tree.resolve(path))))
    report('error', 'program-missing', `/${BTRFS_TOOL.paths[1]}`, 'missing; a btrfs data partition needs it')
}

/** On ext4 the initramfs copies `state.paths` before migrations, with the image's own cp where that is GNU's. */
function lintCopies(system: System, report: Report): void {
  const { migrations, paths } = system.state
  if (migrations.length === 0) return
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

/** What a device makes from the image: an /etc, its /var and data places by the same cp, places in memory by busybox's. */
function lintSeeds(tree: MergedTree, system: System, whole: boolean, report: Report): void {
  const places = mountsOf(system)
    .filter(({ policy }) => policy === 'tmpfs' || (policy === 'data' && !whole))
    .map(({ path }) => path.slice(1))
  const seeds = whole ? places : ['etc', 'var', ...places]
  const lost = [...tree.entries()].filter(
    ({ path, node }) => node.xattrs.size > 0 && seeds.some((seed) => path === seed || path.startsWith(`${seed}/`)),
  )
  const [first] = lost
  if (first === undefined) return
  const others = lost.length === 1 ? '' : `, and so do ${lost.length - 1} more`
  const why = whole ? 'it is copied into memory' : 'the image has no GNU cp'
  report('warning', 'attributes-lost', `/${first.path}`, `loses its extended attributes on a device${others}: ${why}`)
}
