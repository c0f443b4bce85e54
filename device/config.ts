import { join } from 'node:path'
import * as v from 'valibot'
import type { Files } from '../base/durable.ts'
import { isBistableError } from '../base/errors.ts'
import { checkHealthPlan, HEALTH_MAX_BYTES, HEALTH_PATH, type HealthPlan, NO_PLAN } from '../bundle/health-plan.ts'
import { agentSchema, checkSystem, ROOT_PATH, SYSTEM_MAX_BYTES, SYSTEM_PATH, type System } from '../bundle/system.ts'
import { CONTROL_SOCKET } from './control/place.ts'
import { deviceErrors } from './errors.ts'

/** Where everything is on a device, and what the image declares with what the device overrides. */

/** Every path the agent uses, under one prefix (`BISTABLE_ROOT` in tests, else ""). */
export interface Paths {
  readonly root: string
  readonly system: string
  readonly healthPlan: string
  /** The device's own settings: the fields of `agent` in system.json. Never product, hardware or health checks. */
  readonly override: string
  /** Slots and boot state given by path (agent/places.ts). */
  readonly places: string
  /** The running /etc, the folder with one for each slot, the device's rules for merging, and the last merge's report. */
  readonly etc: string
  readonly etcFolders: string
  readonly etcRules: string
  readonly etcReport: string
  readonly anchor: string
  readonly machineId: string
  readonly cmdline: string
  readonly data: string
  /** What outlives the slots: where `data` is, and the state. */
  readonly partition: string
  readonly run: string
  readonly control: string
  readonly status: string
  /** systemd-timesyncd's sign that the clock was set from the network. */
  readonly synchronised: string
  /** Exists when systemd runs the system. */
  readonly systemd: string
}

export function pathsUnder(root: string): Paths {
  const at = (path: string) => (root === '' ? path : join(root, path))
  return {
    root,
    system: at(SYSTEM_PATH),
    healthPlan: at(HEALTH_PATH),
    override: at('/etc/bistable/agent.json'),
    places: at('/etc/bistable/places.json'),
    etc: at('/etc'),
    etcFolders: at('/data/etc'),
    etcRules: at('/etc/bistable/etc.json'),
    etcReport: at('/data/bistable/etc-report.json'),
    anchor: at(ROOT_PATH),
    machineId: at('/etc/machine-id'),
    cmdline: at('/proc/cmdline'),
    data: at('/data/bistable'),
    partition: at('/data'),
    run: at('/run/bistable'),
    control: at(CONTROL_SOCKET),
    status: at('/run/bistable/status.sock'),
    synchronised: at('/run/systemd/timesync/synchronized'),
    systemd: at('/run/systemd/system'),
  }
}

/** What a device may set for itself: the fields of `agent`, and its name. */
const overrideSchema = v.strictObject({
  ...agentSchema.entries,
  /** What assignments call this device, instead of the id that follows from /etc/machine-id. */
  deviceId: v.exactOptional(
    v.pipe(v.string(), v.regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'not a plain name of at most 64 characters')),
  ),
})

export type DeviceConfig = System & {
  readonly deviceId?: string
  /** What of the device's own settings does not count, one sentence each. */
  readonly problems?: readonly string[]
}

/**
 * Reads system.json and the override. What is wrong with the override does not count, and is told: an image must not be
 * given up, nor a device left without its agent, for a file that a power cut emptied or that a newer release understood.
 * @throws CONFIG_MISSING without system.json; CONFIG_INVALID naming every bad field of it at once
 */
export async function readConfig(paths: Paths, files: Files): Promise<DeviceConfig> {
  const bytes = await files.read(paths.system, SYSTEM_MAX_BYTES)
  if (bytes === undefined) throw deviceErrors.CONFIG_MISSING(`${paths.system} does not exist`)
  const checked = checkSystem(parseJson(bytes, paths.system))
  if ('problems' in checked) throw invalid(paths.system, checked.problems)
  const { given, problems } = await readOverride(paths.override, files)
  const { system } = checked
  const { deviceId, ...own } = given
  const agent = { ...system.agent, ...own }
  // Without the device's word on when, nothing reboots it by itself.
  const calm = agent.apply === 'reboot' && problems.some(({ about }) => ['', 'apply', 'policy'].includes(about))
  return {
    ...system,
    agent: calm ? { ...agent, apply: 'install' } : agent,
    ...(deviceId === undefined ? {} : { deviceId }),
    ...(problems.length === 0 ? {} : { problems: problems.map(({ said }) => said) }),
  }
}

type Override = Partial<v.InferOutput<typeof overrideSchema>>

/** The fields that are as they should be, and what is wrong: with a field, or ("") with all of the file. */
async function readOverride(path: string, files: Files) {
  const problems: { readonly about: string; readonly said: string }[] = []
  const wrong = (about: string, what: string) => {
    problems.push({ about, said: `${path}: ${[about, what].filter(Boolean).join(': ')}; it does not count` })
  }
  const given: Record<string, unknown> = {}
  try {
    const bytes = await files.read(path, SYSTEM_MAX_BYTES)
    const value = bytes === undefined ? {} : parseJson(bytes, path)
    if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalid(path, ['not a JSON object'])
    const schemas = new Map<string, v.GenericSchema>(Object.entries(overrideSchema.entries))
    for (const [name, field] of Object.entries(value)) {
      const schema = schemas.get(name)
      const parsed = schema === undefined ? undefined : v.safeParse(schema, field)
      if (parsed === undefined) wrong(name.slice(0, 40), 'unknown here')
      else if (parsed.success) given[name] = parsed.output
      else wrong(name, parsed.issues.map((issue) => `${v.getDotPath(issue) ?? ''} ${issue.message}`.trim()).join(', '))
    }
  } catch (error) {
    if (!isBistableError(error)) throw error
    wrong('', error.message.replace(`${path}: `, ''))
  }
  return { given: given as Override, problems }
}

/**
 * Reads health.json of the image; a device cannot change it.
 * @throws CONFIG_INVALID naming every bad field at once
 */
export async function readHealthPlan(paths: Paths, files: Files): Promise<HealthPlan> {
  const bytes = await files.read(paths.healthPlan, HEALTH_MAX_BYTES)
  if (bytes === undefined) return NO_PLAN
  const checked = checkHealthPlan(parseJson(bytes, paths.healthPlan))
  if ('problems' in checked) throw invalid(paths.healthPlan, checked.problems)
  return checked.plan
}

function invalid(path: string, wrong: readonly string[]): Error {
  return deviceErrors.CONFIG_INVALID(`${path}: ${wrong.join('; ')}`, { details: { path, wrong } })
}

function parseJson(bytes: Uint8Array, path: string): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (error) {
    throw invalid(path, [`not JSON: ${error instanceof Error ? error.message : error}`])
  }
}
