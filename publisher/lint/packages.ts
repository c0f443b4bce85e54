import { isUnread, UNREAD_DATABASES } from '../../bundle/packages.ts'
import type { MergedTree } from '../tree.ts'
import type { Report } from './report.ts'

/** Package databases that the bill of materials cannot be made from: a gap in it must not go unseen. */
export function lintPackages(tree: MergedTree, report: Report): void {
  for (const path of UNREAD_DATABASES) {
    const node = tree.get(path)?.node
    if (node?.type === 'file' && isUnread(path, node.size))
      report(
        'warning',
        'packages-unread',
        `/${path}`,
        'an rpm database that is not read; the SBOM will lack its packages',
      )
  }
}
