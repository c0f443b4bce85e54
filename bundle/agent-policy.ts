import * as v from 'valibot'

/**
 * What a device does by itself, and when: one policy each for asking, for fetching and filling, and for arming and
 * rebooting. Part of the agent's settings (system.ts); docs/operations.md explains every field.
 */

const seconds = (most: number) => v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(most))
/** "22:00-05:00", "Mon-Fri 22:00-05:00", "Sat,Sun 00:00-24:00"; device/policy/windows.ts reads it. */
const TIME = '(?:[01]\\d|2[0-3]):[0-5]\\d'
const DAY = '(?:[Mm]on|[Tt]ue|[Ww]ed|[Tt]hu|[Ff]ri|[Ss]at|[Ss]un)'
const WINDOW = new RegExp(`^(?:${DAY}(?:-${DAY})?(?:,${DAY}(?:-${DAY})?)* )?${TIME}-(?:${TIME}|24:00)$`)
const window = v.pipe(v.string(), v.maxLength(64), v.regex(WINDOW, 'not a window like "Mon-Fri 22:00-05:00"'))
const windows = v.optional(v.pipe(v.array(window), v.maxLength(32), v.readonly()), [])
const metered = v.optional(v.picklist(['allow', 'refuse']), 'allow')
const power = {
  /** Only while on mains. A device without a battery always is. */
  mains: v.optional(v.boolean(), false),
  /** Only with at least this much charge, or on mains. */
  minBatteryPercent: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(100)), 0),
}

const WEEK = 7 * 86_400

export const policySchema = v.strictObject({
  /** IANA name; without it the device's own time zone. */
  timezone: v.exactOptional(v.pipe(v.string(), v.maxLength(64), v.check(isZone, 'not a time zone'))),
  /** Interface names, `*` for anything, that cost by the byte. */
  meteredLinks: v.optional(v.pipe(v.array(v.pipe(v.string(), v.maxLength(32))), v.maxLength(32), v.readonly()), [
    'wwan*',
    'ppp*',
  ]),
  /** All hooks of one step together. */
  hookSeconds: v.optional(v.pipe(seconds(3600), v.minValue(1)), 60),
  check: v.optional(v.strictObject({ windows, metered }), {}),
  download: v.optional(
    v.strictObject({
      windows,
      metered,
      ...power,
      /** Devices start at a place of their own in this span, after the window opened or the release was first seen. */
      spreadSeconds: v.optional(seconds(WEEK), 0),
      bytesPerSecond: v.exactOptional(v.pipe(v.number(), v.integer(), v.minValue(1024))),
      /** A release that takes more is not fetched. */
      maxBytes: v.exactOptional(v.pipe(v.number(), v.integer(), v.minValue(0))),
      /** CPU, as of nice(1). */
      nice: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(19)), 0),
      /** Disk, as of ionice(1): `low` is best effort 7. */
      io: v.optional(v.picklist(['normal', 'low', 'idle']), 'normal'),
    }),
    {},
  ),
  apply: v.optional(v.strictObject({ windows, ...power, spreadSeconds: v.optional(seconds(WEEK), 0) }), {}),
})

export type Policy = Readonly<v.InferOutput<typeof policySchema>>

function isZone(name: string): boolean {
  try {
    new Intl.DateTimeFormat('en', { timeZone: name })
    return true
  } catch {
    return false
  }
}
