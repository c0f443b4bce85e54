import * as v from 'valibot'

/**
 * What proves that a release is healthy, beyond the executables in health.d: /usr/lib/bistable/health.json of the image.
 * Read by the publisher when it lints and by the agent when it runs. Strict: a mistyped check would be a check less.
 */

export const HEALTH_PATH = '/usr/lib/bistable/health.json'
/** Bytes; a longer file is refused before it is parsed. */
export const HEALTH_MAX_BYTES = 64 * 1024
/** Checks in the file; health.d and the file together are held to the same number when they run. */
export const MAX_CHECKS = 64

const seconds = (least: number, most: number) => v.pipe(v.number(), v.integer(), v.minValue(least), v.maxValue(most))
const words = (most: number) => v.pipe(v.string(), v.minLength(1), v.maxLength(most))

/** systemd.unit(5): a name with a type; never one that begins like an option. */
const unitName = v.pipe(
  v.string(),
  v.regex(
    /^(?!-)[A-Za-z0-9:_.@\\-]{1,200}\.(?:service|socket|target|mount|automount|timer|path|swap|device|slice|scope)$/,
    'not a systemd unit like "app.service"',
  ),
)

const host = v.pipe(v.string(), v.regex(/^[A-Za-z0-9._:-]{1,253}$/, 'not a host name or address'))

const webAddress = v.pipe(
  v.string(),
  v.maxLength(2048),
  v.check((url) => URL.canParse(url) && /^https?:$/.test(new URL(url).protocol), 'not an http address'),
)
const brokerAddress = v.pipe(
  v.string(),
  v.maxLength(2048),
  v.check((url) => URL.canParse(url) && /^mqtts?:$/.test(new URL(url).protocol), 'not an mqtt address'),
)

const common = {
  /** Shown in results; no two checks share one. */
  name: v.pipe(
    v.string(),
    v.regex(/^[A-Za-z0-9][A-Za-z0-9._@ /-]{0,63}$/, 'not a plain name of at most 64 characters'),
  ),
  /** A required check that fails gives the release up; a wanted one is reported. */
  level: v.picklist(['required', 'wanted']),
  /** Time limit of one run; `checkSeconds` of system.json without it. */
  seconds: v.exactOptional(seconds(1, 600)),
}

const check = v.variant('kind', [
  v.strictObject({
    ...common,
    kind: v.literal('program'),
    /** Exit 0 is healthy. */
    path: v.pipe(v.string(), v.regex(/^(?:\/(?!\.{1,2}(?:\/|$))[A-Za-z0-9._+-]+)+$/, 'not a plain absolute path')),
  }),
  v.strictObject({
    ...common,
    kind: v.literal('unit'),
    unit: unitName,
    /** `active` unless said; `not-failed` for what is idle most of the time. */
    want: v.exactOptional(v.picklist(['active', 'not-failed'])),
  }),
  /** No unit at all has failed. */
  v.strictObject({ ...common, kind: v.literal('no-failed-units') }),
  /** Something accepts connections. */
  v.strictObject({ ...common, kind: v.literal('tcp'), host, port: seconds(1, 65_535) }),
  v.strictObject({
    ...common,
    kind: v.literal('http'),
    url: webAddress,
    /** Answers that are healthy; any 2xx without it. Redirects are not followed. */
    status: v.exactOptional(v.pipe(v.array(seconds(100, 599)), v.minLength(1), v.maxLength(16))),
    /** Must be in the first 64 KiB of the answer. */
    contains: v.exactOptional(words(256)),
  }),
  /** The broker of the channel, or this one, lets the device in. */
  v.strictObject({ ...common, kind: v.literal('broker'), url: v.exactOptional(brokerAddress) }),
])

const schema = v.strictObject({
  /** After every required check has passed, they are asked again for this long; one failure counts. */
  soakSeconds: v.optional(seconds(0, 86_400), 0),
  /** Between two rounds while soaking or held. */
  everySeconds: v.optional(seconds(1, 3600), 10),
  /** How long a held commit waits for its person before the release is given up. */
  holdSeconds: v.optional(seconds(10, 7 * 86_400), 3600),
  checks: v.optional(v.pipe(v.array(check), v.maxLength(MAX_CHECKS), v.readonly()), []),
})

export type HealthPlan = Readonly<v.InferOutput<typeof schema>>
export type PlannedCheck = HealthPlan['checks'][number]

export const NO_PLAN: HealthPlan = { soakSeconds: 0, everySeconds: 10, holdSeconds: 3600, checks: [] }

/**
 * Validates the parsed JSON of health.json and fills in the defaults. Pure.
 * @returns the plan, or every problem found, one sentence each
 */
export function checkHealthPlan(
  value: unknown,
): { readonly plan: HealthPlan } | { readonly problems: readonly string[] } {
  const result = v.safeParse(schema, value)
  if (!result.success)
    return {
      problems: result.issues.map((issue) => `${v.getDotPath(issue) ?? 'health.json'}: ${issue.message}`),
    }
  const names = result.output.checks.map(({ name }) => name)
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  if (twice !== undefined) return { problems: [`checks: two are named ${twice}`] }
  return { plan: result.output }
}

/** True when the check asks something that is not on the device. Pure. */
export function leavesDevice(planned: PlannedCheck): boolean {
  if (planned.kind === 'broker') return planned.url === undefined || !isLoopback(new URL(planned.url).hostname)
  if (planned.kind === 'tcp') return !isLoopback(planned.host)
  return planned.kind === 'http' && !isLoopback(new URL(planned.url).hostname)
}

const isLoopback = (name: string) => /^(localhost|127(\.\d+){3}|\[?::1\]?)$/.test(name)
