import type { SquashEntry, Squashfs } from '../../bundle/squashfs/image.ts'
import {
  type AccountTables,
  accountCollisions,
  parseSysusers,
  SYSUSERS_FOLDERS,
  SYSUSERS_MAX_BYTES,
  SYSUSERS_MAX_FILES,
  type SystemAccount,
} from '../../bundle/sysusers.ts'
import type { EtcTrees } from './decide.ts'
import { MAX_TEXT_BYTES } from './text.ts'
import type { EtcFinding, EtcPlan } from './types.ts'

/** System users that the new image would make at its first boot, against the accounts that this device will have then. */

/**
 * Collisions that the image has with this device and not with itself. What collided in the same way with the running
 * image is a conflict that the device lives with already; anything new is refused.
 */
export async function systemUserFindings(
  images: { readonly old: Squashfs; readonly image: Squashfs },
  trees: EtcTrees,
  plan: EtcPlan,
): Promise<readonly EtcFinding[]> {
  const wanted = await accountsOf(images.image)
  if (wanted.length === 0) return []
  const own = new Set(accountCollisions(wanted, await tablesOf((file) => textOf(trees.image, file))))
  const found = accountCollisions(wanted, await tablesOf((file) => plannedText(trees, plan, file)))
  const foreign = found.filter((sentence) => !own.has(sentence))
  if (foreign.length === 0) return []
  const running = await tablesOf((file) => textOf(trees.local, file))
  const before = new Set(accountCollisions(await accountsOf(images.old), running))
  return foreign.map((detail) => {
    const known = before.has(detail)
    const path = detail.startsWith('user') ? '/etc/passwd' : '/etc/group'
    const kind = 'account-collision' as const
    return {
      path,
      kind,
      level: known ? 'conflict' : 'refused',
      taken: known ? 'local' : 'none',
      rule: 'default',
      detail,
    }
  })
}

/** Of two files with one name the first folder's counts. */
async function accountsOf(image: Squashfs): Promise<readonly SystemAccount[]> {
  const files = new Map<string, SquashEntry>()
  for (const folder of SYSUSERS_FOLDERS) {
    const entry = await image.lookup(folder)
    if (entry?.type !== 'dir') continue
    for (const name of await image.names(entry)) {
      if (!name.endsWith('.conf') || files.has(name) || files.size >= SYSUSERS_MAX_FILES) continue
      const file = await image.lookup(`${folder}/${name}`)
      if (file !== undefined) files.set(name, file)
    }
  }
  const accounts: SystemAccount[] = []
  for (const [, file] of [...files].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (file.type !== 'file' || file.size > SYSUSERS_MAX_BYTES) continue
    for (const account of parseSysusers(await whole(image.read(file)))) accounts.push(account)
  }
  return accounts
}

async function tablesOf(text: (file: 'passwd' | 'group') => Promise<string>): Promise<AccountTables> {
  return { passwd: await text('passwd'), group: await text('group') }
}

async function plannedText(trees: EtcTrees, { entries }: EtcPlan, file: string): Promise<string> {
  const planned = entries.find(({ path }) => path === file)
  if (planned === undefined) return ''
  if (planned.from === 'made') return Buffer.from(planned.content ?? '').toString('latin1')
  return await textOf(trees[planned.from], file)
}

async function textOf(tree: EtcTrees['local'], file: string): Promise<string> {
  const entry = tree.entries.get(file)
  return entry?.type === 'file' && (entry.size ?? 0) <= MAX_TEXT_BYTES ? await whole(tree.read(file)) : ''
}

async function whole(pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<string> {
  const kept: Uint8Array[] = []
  for await (const piece of pieces) kept.push(Uint8Array.from(piece))
  return Buffer.concat(kept).toString('latin1')
}
