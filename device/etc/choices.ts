import { dirname } from 'node:path'
import * as v from 'valibot'
import { type Files, writeFileDurably } from '../../base/durable.ts'
import type { Squashfs } from '../../bundle/squashfs/image.ts'
import { etcSchema, SYSTEM_MAX_BYTES, SYSTEM_PATH } from '../../bundle/system.ts'
import { etcErrors } from './errors.ts'
import type { EtcChoices, EtcPolicy, EtcRule } from './types.ts'

/**
 * Who decides: first the device's own rules (/etc/bistable/etc.json), then those of the new image (`etc` in system.json).
 * Owned paths are those of either image.
 */

export type DeviceRules = v.InferOutput<typeof etcSchema>

const MAX_BYTES = 64 * 1024

/** @throws ETC_RULES_INVALID naming every wrong field */
export async function readDeviceRules(path: string, files: Files): Promise<DeviceRules> {
  const bytes = await files.read(path, MAX_BYTES)
  if (bytes === undefined) return { rules: [], pinned: [] }
  let json: unknown
  try {
    json = JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch (cause) {
    throw etcErrors.ETC_RULES_INVALID(`${path} is not JSON`, { cause })
  }
  const parsed = v.safeParse(etcSchema, json)
  if (parsed.success) return parsed.output
  const wrong = parsed.issues.map((issue) => `${v.getDotPath(issue) ?? '(top)'}: ${issue.message}`)
  throw etcErrors.ETC_RULES_INVALID(`${path}: ${wrong.join('; ')}`, { details: { path, wrong } })
}

/** Puts a rule before all others; a rule for the same path is replaced. Durable. */
export async function addDeviceRule(path: string, rule: EtcRule, files: Files): Promise<void> {
  const before = await readDeviceRules(path, files)
  const rules = [rule, ...before.rules.filter((other) => other.path !== rule.path)]
  const parsed = v.safeParse(etcSchema, { ...before, rules })
  if (!parsed.success) throw etcErrors.ETC_RULES_INVALID(parsed.issues.map((issue) => issue.message).join('; '))
  await files.makeDir(dirname(path))
  await writeFileDurably(path, Buffer.from(`${JSON.stringify({ ...before, rules }, null, 2)}\n`), files)
}

/**
 * What the new image declares about its /etc. A declaration of a later version that is not understood is passed over: it
 * must not keep a device from updating.
 */
export async function declaredBy(image: Squashfs): Promise<{ etc: DeviceRules; owned: readonly string[] }> {
  const none = { etc: { rules: [], pinned: [] }, owned: [] }
  const entry = await image.lookup(SYSTEM_PATH)
  if (entry?.type !== 'file' || entry.size > SYSTEM_MAX_BYTES) return none
  const pieces: Uint8Array[] = []
  for await (const piece of image.read(entry)) pieces.push(Uint8Array.from(piece))
  let json: unknown
  try {
    json = JSON.parse(Buffer.concat(pieces).toString('utf8'))
  } catch {
    return none
  }
  const parsed = v.safeParse(
    v.object({ etc: v.optional(etcSchema, {}), owned: v.optional(v.array(v.string()), []) }),
    json,
  )
  return parsed.success ? parsed.output : none
}

/** The device's word before the image's. Pure. */
export function choicesOf(device: DeviceRules, image: DeviceRules, owned: readonly string[]): EtcChoices {
  return {
    mode: device.mode ?? image.mode ?? 'merge',
    rules: [...device.rules, ...image.rules],
    pinned: [...device.pinned, ...image.pinned],
    owned,
  }
}

export const isPolicy = (word: string | undefined): word is EtcPolicy =>
  word === 'local' || word === 'image' || word === 'refuse'
