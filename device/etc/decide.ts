import { ACCOUNT_FILES, mergeAccounts } from './accounts.ts'
import { type MergedAttributes, mergeAttributes, sameAttributes } from './attributes.ts'
import { firstMatch, matchesGlob } from './globs.ts'
import { shapePlan } from './shape.ts'
import { MAX_TEXT_BYTES, mergeText } from './text.ts'
import type { EtcChoices, EtcEntry, EtcFinding, EtcFindingKind, EtcPlan, EtcPlanned, EtcTree } from './types.ts'

/**
 * The three-way merge of /etc: what the old image had, what the device made of it, what the new image has. Content and
 * each attribute are decided on their own; text is merged line by line where no line is in doubt; accounts by name.
 */

export interface EtcTrees {
  readonly old: EtcTree
  readonly local: EtcTree
  readonly image: EtcTree
}

/** Made by the agent itself in each slot's /etc. */
const OURS = ['.bistable-release', '.bistable-merged']
const SPECIAL = ['char', 'block', 'fifo', 'socket']

interface Sides {
  readonly path: string
  readonly old: EtcEntry | undefined
  readonly local: EtcEntry | undefined
  readonly image: EtcEntry | undefined
}

/** One path's outcome: nothing, or whose body it has. */
type Body = { readonly from: 'local' | 'image' } | { readonly from: 'made'; readonly content: Uint8Array } | undefined

export async function decideEtc(trees: EtcTrees, choices: EtcChoices): Promise<EtcPlan> {
  const paths = new Set([...trees.old.entries.keys(), ...trees.local.entries.keys(), ...trees.image.entries.keys()])
  for (const path of OURS) paths.delete(path)
  const findings: EtcFinding[] = []
  const planned: EtcPlanned[] = []
  // A folder's path is a prefix of all that is in it: it comes first.
  for (const path of [...paths].sort()) {
    const given = { path, old: trees.old.entries.get(path), local: trees.local.entries.get(path) }
    const sides = withoutStamp(withoutSpecial({ ...given, image: trees.image.entries.get(path) }, findings))
    const body = await new Choice(trees, sides, choices, findings).body()
    const entry = body === undefined ? undefined : plannedOf(sides, body, choices, findings)
    if (entry !== undefined) planned.push(entry)
  }
  return shapePlan(planned, findings, trees, choices)
}

/** Fifos, sockets and devices that a program made here are not carried: it makes them again. */
function withoutSpecial(sides: Sides, findings: EtcFinding[]): Sides {
  const { local, old, path } = sides
  if (local === undefined || !SPECIAL.includes(local.type) || local.type === old?.type) return sides
  const finding = { path: `/etc/${path}`, kind: 'special-dropped', level: 'note', taken: 'none' } as const
  findings.push({ ...finding, rule: 'default', local: local.type })
  return { ...sides, local: old }
}

/**
 * systemd notes in /etc/.updated which /usr it has brought /etc up to date with, by a time that images made the same way have in
 * common. Carried along, it would keep systemd from making the users of the new image, and the like.
 */
function withoutStamp(sides: Sides): Sides {
  return sides.path === '.updated' ? { ...sides, local: sides.old } : sides
}

/** What a path is, without its attributes: equal texts are equal bodies. */
export function bodyOf(entry: EtcEntry | undefined): string {
  if (entry === undefined) return 'absent'
  if (entry.type === 'file') return `file ${entry.digest}`
  return entry.type === 'symlink' ? `symlink ${entry.target}` : entry.type
}

class Choice {
  readonly #trees: EtcTrees
  readonly #sides: Sides
  readonly #choices: EtcChoices
  readonly #findings: EtcFinding[]
  readonly #absolute: string

  constructor(trees: EtcTrees, sides: Sides, choices: EtcChoices, findings: EtcFinding[]) {
    this.#trees = trees
    this.#sides = sides
    this.#choices = choices
    this.#findings = findings
    this.#absolute = `/etc/${sides.path}`
  }

  async body(): Promise<Body> {
    const { old, local, image, path } = this.#sides
    const { owned, pinned, mode } = this.#choices
    const [was, mine, theirs] = [bodyOf(old), bodyOf(local), bodyOf(image)]
    const isOwned = firstMatch(owned, this.#absolute) !== undefined
    if (path === '') return { from: image === undefined ? 'local' : 'image' }
    if (ACCOUNT_FILES.includes(path) && (isOwned || (mode === 'merge' && mine !== was && theirs !== was))) {
      const merged = await this.#accounts()
      if (merged !== undefined) return merged
    }
    if (isOwned) return this.#follow()
    if (mode !== 'merge') return image && { from: 'image' }
    if (firstMatch(pinned, this.#absolute) !== undefined) return local && { from: 'local' }
    if (mine === was) {
      // Only its attributes were the device's; they go with it, but not in silence.
      if (image === undefined && old !== undefined && local !== undefined && !sameAttributes(old, local))
        this.#find('changed-here-deleted-in-image', 'note', 'image', 'default', 'only attributes were changed')
      return image && { from: 'image' }
    }
    if (theirs === mine) {
      if (theirs !== was && mine !== 'absent' && old !== undefined) this.#find('converged', 'note', 'both')
      return image && { from: 'image' }
    }
    if (theirs === was) {
      if (local !== undefined && old !== undefined && local.type !== old.type)
        this.#find('type-changed-here', 'note', 'local')
      return local && { from: 'local' }
    }
    return this.#bothChanged()
  }

  /** A device-owned path: the device's, also its absence, unless it never had it. */
  #follow(): Body {
    const { old, local, image } = this.#sides
    if (local !== undefined) return { from: 'local' }
    return old === undefined && image !== undefined ? { from: 'image' } : undefined
  }

  async #bothChanged(): Promise<Body> {
    const { old, local, image } = this.#sides
    const rule = this.#choices.rules.find(({ path }) => matchesGlob(path, this.#absolute))
    if (local !== undefined && image !== undefined && (local.type === 'dir') !== (image.type === 'dir')) {
      // A folder against something else: no default is safe, since one side's files would have no place.
      if (rule === undefined || rule.policy === 'refuse') return this.#refuse('type-conflict', rule?.path)
      return this.#decided('type-conflict', rule.policy, rule.path)
    }
    if (rule?.policy === undefined && old?.type === 'file' && local?.type === 'file' && image?.type === 'file') {
      const merged = await this.#text(old, local, image)
      if (merged !== undefined) return merged
    }
    const kind = kindOf(this.#sides)
    if (rule?.policy === 'refuse') return this.#refuse(kind, rule.path)
    return this.#decided(kind, rule?.policy ?? 'local', rule?.path ?? 'default')
  }

  #decided(kind: EtcFindingKind, policy: 'local' | 'image', rule: string): Body {
    this.#find(kind, 'conflict', policy, rule)
    return this.#sides[policy] && { from: policy }
  }

  #refuse(kind: EtcFindingKind, rule = 'default', detail?: string): Body {
    this.#find(kind, 'refused', 'none', rule, detail)
    return this.#sides.local && { from: 'local' }
  }

  async #text(...sides: readonly [EtcEntry, EtcEntry, EtcEntry]): Promise<Body> {
    if (sides.some(({ size = 0 }) => size > MAX_TEXT_BYTES)) return undefined
    const [old, local, image] = await this.#contents()
    const content = mergeText(old, local, image)
    if (content === undefined) return undefined
    this.#find('text-merged', 'note', 'both')
    return { from: 'made', content }
  }

  async #accounts(): Promise<Body> {
    const { old, local, image, path } = this.#sides
    if (local?.type !== 'file' || image?.type !== 'file') return undefined
    if ([old, local, image].some((side) => (side?.size ?? 0) > MAX_TEXT_BYTES)) return undefined
    const [was, mine, theirs] = (await this.#contents()).map((bytes) => Buffer.from(bytes).toString('latin1'))
    const { text, taken, collisions } = mergeAccounts(path, was ?? '', mine ?? '', theirs ?? '')
    if (collisions.length > 0) return this.#refuse('account-collision', 'default', collisions.join('; '))
    if (text === mine) return { from: 'local' }
    this.#find('accounts-merged', 'note', 'both', 'default', `from the image: ${taken.join(', ')}`)
    return { from: 'made', content: Buffer.from(text, 'latin1') }
  }

  async #contents(): Promise<[Uint8Array, Uint8Array, Uint8Array]> {
    const { path, old } = this.#sides
    const was = old?.type === 'file' ? await readWhole(this.#trees.old, path) : new Uint8Array(0)
    return [was, await readWhole(this.#trees.local, path), await readWhole(this.#trees.image, path)]
  }

  #find(
    kind: EtcFindingKind,
    level: EtcFinding['level'],
    taken: EtcFinding['taken'],
    rule = 'default',
    detail?: string,
  ): void {
    this.#findings.push({
      path: this.#absolute,
      kind,
      level,
      taken,
      rule,
      ...(this.#sides.old && { old: factOf(this.#sides.old) }),
      ...(this.#sides.local && { local: factOf(this.#sides.local) }),
      ...(this.#sides.image && { image: factOf(this.#sides.image) }),
      ...(detail !== undefined && { detail }),
    })
  }
}

function kindOf({ old, local, image }: Sides): EtcFindingKind {
  if (old === undefined) return 'both-added'
  if (local === undefined) return 'deleted-here-changed-in-image'
  return image === undefined ? 'changed-here-deleted-in-image' : 'both-changed'
}

const factOf = (entry: EtcEntry): string => entry.digest ?? entry.target ?? entry.type

async function readWhole(tree: EtcTree, path: string): Promise<Uint8Array> {
  const pieces: Uint8Array[] = []
  let length = 0
  for await (const piece of tree.read(path)) {
    length += piece.length
    // It was at most this long when it was listed.
    if (length > MAX_TEXT_BYTES) break
    pieces.push(Uint8Array.from(piece))
  }
  return Buffer.concat(pieces)
}

/** The path with merged attributes; undefined only where a side that was chosen is not there. */
function plannedOf(
  sides: Sides,
  body: NonNullable<Body>,
  choices: EtcChoices,
  findings: EtcFinding[],
): EtcPlanned | undefined {
  const { path, old, local, image } = sides
  const winner = sides[body.from === 'made' ? 'local' : body.from]
  if (winner === undefined) return undefined
  const absolute = `/etc/${path}`
  const owned = firstMatch(choices.owned, absolute) !== undefined
  const attributes =
    choices.mode === 'merge' && !owned
      ? judged(mergeAttributes(old, local, image, winner, policyOf(choices, absolute)), sides, choices, findings)
      : mergeAttributes(undefined, local, image, winner, 'image')
  const { mode, uid, gid, xattrs } = attributes
  return {
    path,
    type: winner.type,
    from: body.from,
    ...(body.from === 'made' && { content: body.content }),
    ...(winner.target !== undefined && { target: winner.target }),
    ...(body.from !== 'made' && winner.digest !== undefined && { digest: winner.digest }),
    mode,
    uid,
    gid,
    xattrs,
  }
}

const policyOf = ({ rules }: EtcChoices, path: string): 'local' | 'image' =>
  rules.find((rule) => matchesGlob(rule.path, path))?.policy === 'image' ? 'image' : 'local'

/** Says what a person should know of merged attributes: those kept beside changed content, those in doubt. */
function judged(
  merged: MergedAttributes,
  { path, old, image }: Sides,
  choices: EtcChoices,
  findings: EtcFinding[],
): MergedAttributes {
  const { kept, differing } = merged
  const absolute = `/etc/${path}`
  const rule = choices.rules.find((r) => matchesGlob(r.path, absolute))
  if (differing.length > 0)
    findings.push({
      path: absolute,
      kind: 'attributes-differ',
      level: rule?.policy === 'refuse' ? 'refused' : 'conflict',
      taken: rule?.policy === 'image' ? 'image' : 'local',
      rule: rule?.path ?? 'default',
      detail: differing.join(', '),
    })
  if (kept.length > 0 && bodyOf(old) !== bodyOf(image))
    findings.push({
      path: absolute,
      kind: 'attributes-kept',
      level: 'note',
      taken: 'both',
      rule: 'default',
      detail: kept.join(', '),
    })
  return merged
}
