import { randomBytes } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { nodeFiles, storageFailure, writeFileDurably } from '../base/durable.ts'
import { isBistableError } from '../base/errors.ts'
import { compareNumbers, formatNumber } from '../bundle/fields.ts'
import { fileSource } from '../bundle/file-source.ts'
import {
  type AnnouncedDelta,
  encodeFreshness,
  FRESHNESS_PAYLOAD_TYPE,
  type FreshnessStatement,
  parseFreshness,
} from '../bundle/freshness.ts'
import { HINTS_SUFFIX } from '../bundle/hints/format.ts'
import { inspectBundle } from '../bundle/reader.ts'
import type { BundleHead } from '../bundle/types.ts'
import { readAttachment, verifyBundle } from '../bundle/verify.ts'
import { decodeEnvelope, encodeEnvelope, MAX_ENVELOPE_BYTES } from '../keys/dsse.ts'
import { parseRoot } from '../keys/root.ts'
import { signStatement } from '../keys/statement.ts'
import { verifyEnvelope } from '../keys/threshold.ts'
import type { Envelope, Signer, TrustedRoots } from '../keys/types.ts'
import { publishDeltas } from './delta/published.ts'
import { publisherErrors } from './errors.ts'
import { makeHints, writeHints } from './hints.ts'
import { sweepLeftovers } from './leftovers.ts'
import { checkProvenance } from './provenance.ts'
import { publishRoots } from './roots.ts'
import { aloneIn } from './site-lock.ts'

/** Publishing: bundles are copied first, with hints beside them; the channel file that points to one of them is written last. */

export interface PublishRequest {
  readonly bundles: readonly string[]
  /** The publish folder. */
  readonly to: string
  readonly channel: string
  readonly signers: readonly Signer[]
  /** What is trusted before the bundles are read; without it each bundle's own chain, which must list the signers. */
  readonly trusted?: TrustedRoots
  /** Milliseconds since 1970. */
  readonly now: number
  /** How long devices may believe this statement. */
  readonly validSeconds: number
  /** Patches to the newest release from so many before it; none unless told. */
  readonly deltas?: number
}

export interface PublishEdge {
  readonly say: (line: string) => void
  readonly signal?: AbortSignal
}

/** "demo-1.7-0123456789ab.bundle" */
export function bundleName(head: BundleHead): string {
  return `${head.statement.product}-${formatNumber(head.statement.number)}-${head.digest.slice(0, 12)}.bundle`
}

/**
 * Verifies and copies the bundles, then points the channel to the newest of them. Until the last rename nothing that
 * devices look at has changed. Publishers of one folder come to the channel one after the other.
 * @throws PUBLISH_*, ROOT_FORK, the errors of `verifyBundle`, FILE_*
 */
export async function publish(request: PublishRequest, edge: PublishEdge): Promise<FreshnessStatement> {
  const folder = join(request.to, 'bundles')
  await nodeFiles.makeDir(folder)
  await nodeFiles.makeDir(join(request.to, 'channels'))
  await sweepLeftovers(folder)
  let newest: BundleHead | undefined
  for (const path of request.bundles) {
    const head = await copyBundle(path, folder, request.trusted, edge)
    if (newest !== undefined && newest.statement.product !== head.statement.product)
      throw publisherErrors.PUBLISH_PRODUCT(`${path} is of ${head.statement.product}, not ${newest.statement.product}`)
    if (newest === undefined || compareNumbers(head.statement.number, newest.statement.number) > 0) newest = head
  }
  if (newest === undefined) throw new RangeError('nothing to publish')
  const head = newest
  const { to, channel } = request
  // Refused before patches are made, which takes long. What counts is asked below, when nobody else can write.
  await issueTime(request, head)
  const bundle = join(folder, bundleName(head))
  const deltas = await publishDeltas({ to, count: request.deltas ?? 0, bundle, head }, edge)
  return await aloneIn(to, edge, async () => {
    const statement = freshness(head, { ...request, now: await issueTime(request, head) }, deltas)
    const payload = encodeFreshness(statement)
    const envelope = await signAsFleet(FRESHNESS_PAYLOAD_TYPE, payload, request.signers, head.trusted)
    // Before the channel file: a device that cannot verify it any more finds the root that lists its key.
    await publishRoots(head.trusted, join(to, 'roots'))
    await writeFileDurably(channelFile(request), encodeEnvelope(envelope))
    edge.say(`channel ${channel}: ${formatNumber(statement.number)} until ${statement.expires}`)
    return statement
  })
}

const channelFile = ({ to, channel }: PublishRequest): string => join(to, 'channels', `${channel}.json`)

/** When the next channel file is issued, by what stands there. @throws PUBLISH_* */
async function issueTime(request: PublishRequest, next: BundleHead): Promise<number> {
  const present = await readChannel(channelFile(request), next.trusted)
  if (present === undefined) return request.now
  checkSuccessor(present, next, request.channel)
  return issuedAfter(present, next.trusted, request.now)
}

/** Less than this behind, by another publisher's clock or the time that patches took, is made up for. */
const CLOCK_BEHIND_MS = 60 * 60 * 1000

/**
 * A time that devices take for no older than the channel file they know: they refuse what was issued before it. Pure.
 * @param now milliseconds since 1970
 * @throws PUBLISH_CLOCK
 */
export function issuedAfter(present: FreshnessStatement, trusted: TrustedRoots, now: number): number {
  const before = Date.parse(present.issued)
  if (before <= now || isForgotten(present, trusted)) return now
  if (before - now <= CLOCK_BEHIND_MS) return before
  throw publisherErrors.PUBLISH_CLOCK(`the channel file was issued at ${present.issued}, it is ${isoTime(now)} here`)
}

/** Devices forget what the fleet role said once all of its keys are replaced. */
function isForgotten({ rootVersion }: FreshnessStatement, { envelopes, current }: TrustedRoots): boolean {
  const bytes = envelopes[rootVersion - (current.version - envelopes.length + 1)]
  if (bytes === undefined) return false
  const { keys } = parseRoot(decodeEnvelope(bytes).payload).roles.fleet
  return !current.roles.fleet.keys.some((key) => keys.includes(key))
}

/** Signs for the fleet role, and refuses what devices would refuse. @throws PUBLISH_KEY */
export async function signAsFleet(
  payloadType: string,
  payload: Uint8Array,
  signers: readonly Signer[],
  trusted: TrustedRoots,
): Promise<Envelope> {
  const envelope = await signStatement(payloadType, payload, signers)
  try {
    verifyEnvelope(envelope, 'fleet', trusted)
  } catch (cause) {
    if (!isBistableError(cause)) throw cause
    throw publisherErrors.PUBLISH_KEY(`root ${trusted.current.version} does not accept it: ${cause.message}`, { cause })
  }
  return envelope
}

/** "2026-11-21T00:00:00Z", from milliseconds since 1970. */
export const isoTime = (ms: number): string => new Date(ms).toISOString().replace(/\.\d{3}Z$/, 'Z')

/** What the channel will say. Pure. */
export function freshness(
  head: BundleHead,
  request: PublishRequest,
  deltas: readonly AnnouncedDelta[] = [],
): FreshnessStatement {
  return {
    type: 'freshness',
    product: head.statement.product,
    channel: request.channel,
    number: head.statement.number,
    release: head.digest,
    path: `bundles/${bundleName(head)}`,
    size: head.size,
    rootVersion: head.trusted.current.version,
    issued: isoTime(request.now),
    expires: isoTime(request.now + request.validSeconds * 1000),
    ...(deltas.length === 0 ? {} : { deltas }),
  }
}

/**
 * Refuses to point a channel back. The same release again renews its expiry. Pure.
 * @throws PUBLISH_PRODUCT, PUBLISH_LOWER, PUBLISH_ROOTS
 */
export function checkSuccessor(present: FreshnessStatement, next: BundleHead, channel: string): void {
  const { product, number } = next.statement
  if (present.product !== product || present.channel !== channel)
    throw publisherErrors.PUBLISH_PRODUCT(
      `the channel file is of ${present.product}/${present.channel}, the bundle goes to ${product}/${channel}`,
    )
  const { version } = next.trusted.current
  if (version < present.rootVersion)
    throw publisherErrors.PUBLISH_ROOTS(
      `the channel announces root ${present.rootVersion}, the newest root given is ${version}`,
    )
  const order = compareNumbers(number, present.number)
  if (order < 0 || (order === 0 && next.digest !== present.release))
    throw publisherErrors.PUBLISH_LOWER(
      `the channel announces ${formatNumber(present.number)}, the bundle is ${order < 0 ? '' : 'another '}${formatNumber(number)}`,
    )
}

async function readChannel(path: string, trusted: TrustedRoots): Promise<FreshnessStatement | undefined> {
  const bytes = await nodeFiles.read(path, MAX_ENVELOPE_BYTES)
  if (bytes === undefined) return undefined
  try {
    const envelope = decodeEnvelope(bytes)
    if (envelope.payloadType !== FRESHNESS_PAYLOAD_TYPE) throw new TypeError(`a ${envelope.payloadType}`)
    // Signed by keys that were fleet keys once: a rotation must not lose the channel's number.
    verifyOnce(envelope, trusted)
    return parseFreshness(envelope.payload)
  } catch (cause) {
    const sentence = cause instanceof Error ? cause.message : String(cause)
    throw publisherErrors.PUBLISH_CHANNEL_INVALID(`${path}: ${sentence}`, { cause })
  }
}

function verifyOnce(envelope: ReturnType<typeof decodeEnvelope>, trusted: TrustedRoots): void {
  const keys = [...new Set([...trusted.everListed.fleet, ...trusted.current.roles.fleet.keys])]
  const fleet = { threshold: 1, keys }
  verifyEnvelope(envelope, 'fleet', {
    ...trusted,
    current: { ...trusted.current, roles: { ...trusted.current.roles, fleet } },
  })
}

/** Copies a bundle durably. What is verified is the copy: the original may change meanwhile. @throws FILE_*, as `verifyBundle` */
export async function copyBundle(
  path: string,
  folder: string,
  trusted: TrustedRoots | undefined,
  edge: PublishEdge,
): Promise<BundleHead> {
  const source = await fileSource(path)
  await source.close()
  // A name that no other publisher has: in containers all may be process 1.
  const copy = join(folder, `.${process.pid}-${randomBytes(8).toString('hex')}.new`)
  const signal = edge.signal === undefined ? {} : { signal: edge.signal }
  try {
    const into = createWriteStream(copy, { flags: 'wx', flush: true })
    await pipeline(createReadStream(path), into, signal).catch((cause) => {
      throw storageFailure('copy', `${path} to ${folder}`, cause)
    })
    const { head, hints } = await verifyCopy(copy, trusted, signal)
    if (head.assignment !== undefined)
      throw publisherErrors.PUBLISH_DIRECTED(`${path} is for device ${head.assignment.statement.device} only`)
    const name = bundleName(head)
    // First: who finds the bundle finds them.
    await writeHints(join(folder, `${name}${HINTS_SUFFIX}`), hints, `${copy}.hints`)
    await rename(copy, join(folder, name))
    await nodeFiles.syncDir(folder)
    edge.say(`bundle ${name}: verified, ${head.size} bytes`)
    return head
  } finally {
    for (const left of [copy, `${copy}.hints`]) await rm(left, { force: true })
  }
}

async function verifyCopy(
  path: string,
  trusted: TrustedRoots | undefined,
  options: { readonly signal?: AbortSignal },
): Promise<{ readonly head: BundleHead; readonly hints: Uint8Array }> {
  const source = await fileSource(path)
  try {
    const trust = trusted ?? (await inspectBundle(source, options)).head.trusted
    const head = await verifyBundle(source, { trusted: trust }, options)
    await checkProvenance(head.statement, ({ name }) => readAttachment(source, head, name, options))
    return { head, hints: await makeHints(source, head) }
  } finally {
    await source.close()
  }
}
