import * as v from 'valibot'
import { policySchema } from './agent-policy.ts'
import { mountProblems, mountSchema, writablePlace } from './mounts.ts'
import { plainPath as path } from './plain-path.ts'
import { stateProblems, stateSchema } from './state.ts'

/**
 * What an image declares about itself in /usr/lib/bistable/system.json: read by the publisher when it builds and by the
 * agent when it runs. Strict: an unknown key is refused, because a mistyped "writeable" must not lose data silently.
 */

export const SYSTEM_PATH = '/usr/lib/bistable/system.json'
export const ROOT_PATH = '/usr/lib/bistable/root.json'
/** Bytes; a longer file is refused before it is parsed. */
export const SYSTEM_MAX_BYTES = 64 * 1024

/** Product and hardware names: they become file names and topic names. */
const name = v.pipe(
  v.string(),
  v.regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'not a plain name of at most 64 characters'),
)

const owned = v.pipe(
  path,
  v.check((p) => p.startsWith('/etc/'), 'is not under /etc'),
)

/** GRUB keeps the arguments in a double-quoted string: nothing that it would expand may be in them. */
const kernelArg = v.pipe(
  v.string(),
  v.maxLength(256),
  v.regex(/^[A-Za-z0-9_.,:;=/@%+-]+$/, 'has a character that is not plain in a boot script'),
  v.check((arg) => !arg.startsWith('bistable.'), 'begins with "bistable.", which is reserved'),
)

const list = <T extends v.GenericSchema>(item: T, most: number) =>
  v.optional(v.pipe(v.array(item), v.maxLength(most), v.readonly()), [])

/** "CVE-2026-12345", "ticket-77". */
export const fixName = v.pipe(
  v.string(),
  v.regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'not a plain name of at most 64 characters'),
)

const address = v.pipe(
  v.string(),
  v.maxLength(2048),
  v.regex(/^(https?|mqtts?):\/\/[^\s]+$/, 'not an http or mqtt address'),
)

const seconds = (least: number, most: number) => v.pipe(v.number(), v.integer(), v.minValue(least), v.maxValue(most))

/** A path under /etc with "*" and "?" within a name and "**" across names. */
const etcGlob = v.pipe(path, v.startsWith('/etc/'))

/** How /etc follows a new image: in system.json, and on the device in /etc/bistable/etc.json. */
export const etcSchema = v.strictObject({
  /** `merge` unless said; `image`: the image's, with owned paths; `transient`: the same, anew at every boot. */
  mode: v.exactOptional(v.picklist(['merge', 'image', 'transient'])),
  /** Where both sides changed a path; the first that matches counts. */
  rules: list(v.strictObject({ path: etcGlob, policy: v.picklist(['local', 'image', 'refuse']) }), 256),
  /** The device's value stays, also when it equals the old default. */
  pinned: list(etcGlob, 256),
})

/** The agent's settings, which a device may override in /etc/bistable/agent.json. */
export const agentSchema = v.strictObject({
  channel: v.optional(address),
  /** Addresses of the same channel file elsewhere; asked in this order when one does not give what holds. */
  mirrors: list(address, 8),
  tls: v.optional(
    v.pipe(
      v.strictObject({
        /** PEM file: the only authorities that may vouch for a server. */
        ca: v.optional(path),
        /** PEM files: shown to servers that ask. */
        cert: v.optional(path),
        key: v.optional(path),
      }),
      v.check(({ cert, key }) => (cert === undefined) === (key === undefined), 'has one of cert and key'),
    ),
  ),
  /** Sticks; see docs/operations.md. */
  usb: v.optional(
    v.strictObject({
      /** `poll`: the agent looks by itself. `event`: udev says so. `off`: only by hand. */
      watch: v.optional(v.picklist(['off', 'poll', 'event']), 'off'),
      apply: v.optional(v.picklist(['check', 'install', 'reboot']), 'install'),
      /** Write what became of it to the stick. */
      result: v.optional(v.boolean(), true),
      /** Program that is told: EVENT PERCENT CODE. */
      hook: v.optional(path),
    }),
    {},
  ),
  pollSeconds: v.optional(seconds(1, 7 * 86_400), 3600),
  apply: v.optional(v.picklist(['manual', 'install', 'reboot']), 'manual'),
  /** Where the agent's lines are copied to, beside standard output. */
  console: v.optional(v.pipe(path, v.startsWith('/dev/'))),
  /** An install that makes no progress for this long is stopped. */
  stallSeconds: v.optional(seconds(10, 86_400), 120),
  policy: v.optional(policySchema, {}),
  /** Between two counts of what differs from the release; 0: never by itself. */
  driftHours: v.optional(seconds(0, 720), 24),
  /** How lines are written: with a priority in front for the journal, or as they are. `auto`: as systemd's environment says. */
  log: v.optional(v.picklist(['auto', 'journal', 'plain']), 'auto'),
})

const schema = v.strictObject({
  product: name,
  hardware: v.pipe(v.array(name), v.minLength(1), v.maxLength(16), v.readonly()),
  kernelArgs: list(kernelArg, 64),
  /** Short for `mounts` with the policy `data`. */
  writable: list(writablePlace, 256),
  mounts: list(mountSchema, 256),
  state: v.optional(stateSchema, { schema: 0 }),
  owned: list(owned, 256),
  etc: v.optional(etcSchema, {}),
  modules: list(v.pipe(v.string(), v.regex(/^[A-Za-z0-9_-]{1,64}$/, 'not a module name')), 256),
  health: v.optional(
    v.strictObject({
      deadlineSeconds: v.optional(seconds(1, 86_400), 120),
      required: v.optional(v.pipe(v.array(path), v.maxLength(64), v.readonly()), [
        '/usr/lib/bistable/health.d/required/*',
      ]),
      wanted: v.optional(v.pipe(v.array(path), v.maxLength(64), v.readonly()), ['/usr/lib/bistable/health.d/wanted/*']),
      /** Time limit of one run of one check. */
      checkSeconds: v.optional(seconds(1, 600), 30),
    }),
    {},
  ),
  agent: v.optional(agentSchema, {}),
  /** Fixes that this release contains, by the names that add-ons give them: those add-ons are not needed any more. */
  fixes: list(fixName, 256),
  /** For people who develop: `bistable unlock` works on it. Never on what is shipped. */
  development: v.optional(v.boolean(), false),
  /** The devices run under Secure Boot: the kernel takes no unsigned module. */
  secureBoot: v.optional(v.boolean(), false),
  watchdog: v.optional(v.pipe(path, v.startsWith('/dev/'))),
  /** The hardware resets the device when it is not fed for this long. */
  watchdogSeconds: v.optional(seconds(5, 3600), 60),
})

export type System = Readonly<v.InferOutput<typeof schema>>

/**
 * Validates the parsed JSON of system.json and fills in the defaults.
 * @returns the declaration, or every problem found, one sentence each
 */
export function checkSystem(value: unknown): { readonly system: System } | { readonly problems: readonly string[] } {
  const result = v.safeParse(schema, value)
  if (!result.success) {
    return {
      problems: result.issues.map((issue) => {
        const where = v.getDotPath(issue) ?? 'system.json'
        return `${where}: ${issue.message}`
      }),
    }
  }
  const problems = [...mountProblems(result.output), ...stateProblems(result.output)]
  if (problems.length > 0) return { problems }
  return { system: result.output }
}
