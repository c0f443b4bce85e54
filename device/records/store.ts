import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { KiB, type Sha256 } from '../../base/bytes.ts'
import { type Files, writeFileDurably } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { decodeFloor, encodeFloor } from '../../bootloader/floor.ts'
import { compareNumbers } from '../../bundle/fields.ts'
import type { ReleaseNumber } from '../../bundle/types.ts'
import { deviceErrors } from '../errors.ts'
import {
  decodeRecord,
  EMPTY_BODY,
  encodeRecord,
  MAX_RECORD_BYTES,
  newest,
  type RecordBody,
  type StateRecord,
} from './record.ts'

/** The two alternating records on the data partition, the stored roots, and the floor file for the initramfs. */

/** What the kernel command line says of the running release: it bounds the floors when records are lost. */
export interface RunningRelease {
  readonly number: ReleaseNumber
  readonly securityFloor: ReleaseNumber
  /** False in a try: a release that is not committed must not raise a floor. */
  readonly committed: boolean
}

export interface RecordStore {
  /** The body in force. */
  readonly body: RecordBody
  /** What was wrong when it was opened, for people. */
  readonly problems: readonly string[]
  /** True when a record or the floor file is missing, damaged or behind: save once to repair. */
  readonly needsSave: boolean
  /** Writes the next generation over the older of the two files; returns once it is durable and read back. */
  save(body: RecordBody): Promise<void>
  /** Stores root envelopes and returns the `trust` for a body that names them. Save that body afterwards. */
  saveRoots(roots: readonly { readonly version: number; readonly envelope: Uint8Array }[]): Promise<RecordBody['trust']>
  /** The stored root envelopes, in order, each checked against the digest in the record. */
  roots(): Promise<readonly Uint8Array[]>
}

const MAX_ROOT_BYTES = 16 * KiB
const FLOOR_FILE = 'floor'
const KEEP_ROOTS = 1024
const NO_FLOOR: ReleaseNumber = { epoch: 0, counter: 0 }

/**
 * Opens the records under `folder` (/data/bistable). Never fails for what the files hold: a device whose records are
 * lost goes on with floors from the running release, from the floor file and from whichever record is still good.
 */
export async function openRecords(
  folder: string,
  running: RunningRelease | undefined,
  files: Files,
  options: { readonly readOnly?: boolean } = {},
): Promise<RecordStore> {
  const paths = [0, 1].map((n) => join(folder, 'records', String(n)))
  const rootsFolder = join(folder, 'records', 'roots')
  const problems: string[] = []
  let ready = options.readOnly === true || (await attempt(() => files.makeDir(rootsFolder).then(() => true), problems))
  const found: (StateRecord | undefined)[] = []
  for (const path of paths) found.push(await readOne(path, files, problems))
  const [first, second] = found
  const best = (first?.generation ?? 0) >= (second?.generation ?? 0) ? first : second
  const floorFile = await readFloor(join(folder, FLOOR_FILE), files, problems)
  // A new device has neither; a floor without records means that they were lost.
  if (best === undefined && problems.length === 0 && compareNumbers(floorFile, NO_FLOOR) > 0)
    problems.push('RECORD_INVALID: both state records are missing')
  const good = [first?.body, second?.body].filter((body) => body !== undefined)
  let body: RecordBody = {
    ...(best?.body ?? EMPTY_BODY),
    installFloor: newest(...good.map((b) => b.installFloor), ...(running?.committed ? [running.number] : [])),
    securityFloor: newest(
      ...good.map((b) => b.securityFloor),
      floorFile,
      ...(running?.committed ? [running.securityFloor] : []),
    ),
  }
  const needsSave = best === undefined || problems.length > 0 || compareNumbers(floorFile, body.securityFloor) !== 0
  let generation = best?.generation ?? 0
  // The file to overwrite next is the one that does not hold `best`.
  let next = best === undefined || best === second ? 0 : 1

  const writeFloor = async (floor: ReleaseNumber) => {
    await writeFileDurably(join(folder, FLOOR_FILE), encodeFloor(floor), files)
  }

  return {
    get body() {
      return body
    },
    problems,
    needsSave,
    async save(given) {
      // Floors only rise, whatever a caller computed.
      const wanted: RecordBody = {
        ...given,
        installFloor: newest(given.installFloor, body.installFloor),
        securityFloor: newest(given.securityFloor, body.securityFloor),
      }
      const path = paths[next]
      if (path === undefined) throw new RangeError('there are two records')
      if (ready !== true) await files.makeDir(rootsFolder)
      ready = true
      await writeFileDurably(path, encodeRecord({ generation: generation + 1, body: wanted }), files)
      generation++
      next = 1 - next
      body = wanted
      // After the record: the initramfs must not refuse a slot under a floor that no record holds.
      const onDisk = await readFloor(join(folder, FLOOR_FILE), files, [])
      if (compareNumbers(onDisk, wanted.securityFloor) !== 0) await writeFloor(wanted.securityFloor)
    },
    async saveRoots(roots) {
      const kept = new Map(body.trust.roots.map((r) => [r.version, r.sha256]))
      for (const { version, envelope } of roots) {
        const sha256 = digestOf(envelope)
        const path = join(rootsFolder, `${version}.json`)
        // Compared with the file, not with the record: a damaged file is repaired.
        const present = await files.read(path, MAX_ROOT_BYTES).catch(() => undefined)
        if (present === undefined || digestOf(present) !== sha256) await writeFileDurably(path, envelope, files)
        kept.set(version, sha256)
      }
      const list = [...kept].map(([version, sha256]) => ({ version, sha256 })).sort((a, b) => a.version - b.version)
      return {
        version: Math.max(body.trust.version, ...roots.map((r) => r.version)),
        roots: list.slice(-KEEP_ROOTS),
      }
    },
    async roots() {
      const out: Uint8Array[] = []
      for (const { version, sha256 } of body.trust.roots) {
        const path = join(rootsFolder, `${version}.json`)
        const bytes = await files.read(path, MAX_ROOT_BYTES)
        if (bytes === undefined) throw deviceErrors.RECORD_ROOTS(`${path} is missing`)
        if (digestOf(bytes) !== sha256) throw deviceErrors.RECORD_ROOTS(`${path} does not have the digest recorded`)
        out.push(bytes)
      }
      return out
    },
  }
}

async function readOne(path: string, files: Files, problems: string[]): Promise<StateRecord | undefined> {
  return await attempt(async () => {
    const bytes = await files.read(path, MAX_RECORD_BYTES)
    return bytes === undefined ? undefined : decodeRecord(bytes, path)
  }, problems)
}

/** A failure with a code is a problem to tell, and undefined. */
async function attempt<T>(work: () => Promise<T>, problems: string[]): Promise<T | undefined> {
  try {
    return await work()
  } catch (error) {
    if (!isBistableError(error)) throw error
    problems.push(`${error.code}: ${error.message}`)
    return undefined
  }
}

async function readFloor(path: string, files: Files, problems: string[]): Promise<ReleaseNumber> {
  const found = await attempt(async () => {
    const bytes = await files.read(path, 256)
    return bytes === undefined ? NO_FLOOR : decodeFloor(bytes)
  }, problems)
  return found ?? NO_FLOOR
}

function digestOf(bytes: Uint8Array): Sha256 {
  return createHash('sha256').update(bytes).digest('hex') as Sha256
}
