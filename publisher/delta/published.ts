import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { nodeFiles } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { readExactly } from '../../base/source.ts'
import { readDeltaHead } from '../../bundle/delta/head.ts'
import { sha256 } from '../../bundle/digest.ts'
import { compareNumbers, formatNumber } from '../../bundle/fields.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { type AnnouncedDelta, MAX_DELTAS } from '../../bundle/freshness.ts'
import { inspectBundle } from '../../bundle/reader.ts'
import type { BundleHead, ReleaseNumber } from '../../bundle/types.ts'
import { sweepLeftovers } from '../leftovers.ts'
import { type DeltaEdge, makeDelta } from './make.ts'

/** The patches of a publish folder: `deltas/PRODUCT-FROM-TO-DIGEST-DIGEST.delta`, from the last releases to the newest. */

export interface PublishDeltas {
  /** The publish folder. */
  readonly to: string
  /** From so many of the releases before it; 0 to 8. */
  readonly count: number
  /** Where the newest release's bundle is. */
  readonly bundle: string
  readonly head: BundleHead
}

/**
 * Makes what is missing, and says what a channel is to name, newest first. A patch that saves nothing is not named, and one
 * whose old bundle cannot be read is told and left out: devices take chunks instead.
 */
export async function publishDeltas(
  { to, count, bundle, head }: PublishDeltas,
  edge: DeltaEdge,
): Promise<readonly AnnouncedDelta[]> {
  if (count === 0) return []
  await nodeFiles.makeDir(join(to, 'deltas'))
  await sweepLeftovers(join(to, 'deltas'))
  const named: AnnouncedDelta[] = []
  for (const { name } of earlierBundles(await readdir(join(to, 'bundles')), head).slice(
    0,
    Math.min(count, MAX_DELTAS),
  )) {
    edge.signal?.throwIfAborted()
    try {
      const made = await deltaFrom(join(to, 'bundles', name), { to, bundle, head }, edge)
      if (made !== undefined) named.push(made)
    } catch (error) {
      // An old bundle that is damaged must not keep a new release back.
      if (!isBistableError(error)) throw error
      edge.say(`no patch from ${name}: ${error.message}`)
    }
  }
  return named
}

async function deltaFrom(
  old: string,
  { to, bundle, head }: Omit<PublishDeltas, 'count'>,
  edge: DeltaEdge,
): Promise<AnnouncedDelta | undefined> {
  const source = await fileSource(old)
  try {
    const from = (await inspectBundle(source)).head
    const path = `deltas/${deltaName(from, head)}`
    const file = join(to, path)
    if (!(await leadsTo(file, from, head))) {
      const next = await fileSource(bundle)
      try {
        await makeDelta({ source, head: from }, { source: next, head }, file, { ...edge, say: () => undefined })
      } finally {
        await next.close()
      }
    }
    const announced = await announce(file)
    if (announced === undefined) return undefined
    edge.say(`patch ${path}: ${announced.size} bytes`)
    return { from: from.digest, path, ...announced }
  } finally {
    await source.close()
  }
}

/** "demo-1.6-1.7-0123456789ab-cdef01234567.delta" */
export function deltaName(from: BundleHead, to: BundleHead): string {
  const numbers = [from, to].map(({ statement }) => formatNumber(statement.number)).join('-')
  const digests = [from, to].map(({ digest }) => digest.slice(0, 12)).join('-')
  return `${to.statement.product}-${numbers}-${digests}.delta`
}

/** Bundles of earlier releases of the same product by their names, newest first. Pure. */
export function earlierBundles(names: readonly string[], { statement }: BundleHead) {
  const found: { readonly name: string; readonly number: ReleaseNumber }[] = []
  for (const name of names) {
    if (!name.startsWith(`${statement.product}-`)) continue
    const [, epoch, counter] =
      /^-(\d{1,15})\.(\d{1,15})-[0-9a-f]{12}\.bundle$/.exec(name.slice(statement.product.length)) ?? []
    const number = { epoch: Number(epoch), counter: Number(counter) }
    if (epoch !== undefined && compareNumbers(number, statement.number) < 0) found.push({ name, number })
  }
  return found.sort((a, b) => compareNumbers(b.number, a.number) || (a.name < b.name ? -1 : 1))
}

/** Whether a patch made earlier is there and whole. */
async function leadsTo(file: string, from: BundleHead, to: BundleHead): Promise<boolean> {
  try {
    const source = await fileSource(file)
    try {
      const head = await readDeltaHead(source)
      return head.from === from.digest && head.to === to.digest
    } finally {
      await source.close()
    }
  } catch (error) {
    if (!isBistableError(error)) throw error
    return false
  }
}

async function announce(file: string): Promise<Pick<AnnouncedDelta, 'size' | 'head'> | undefined> {
  const source = await fileSource(file)
  try {
    const { length, units, size } = await readDeltaHead(source)
    const bytes = await readExactly(source, 0, length)
    return units.length === 0 ? undefined : { size, head: { length, sha256: sha256(bytes) } }
  } finally {
    await source.close()
  }
}
