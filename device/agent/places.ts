import * as v from 'valibot'
import { KiB } from '../../base/bytes.ts'
import type { Files } from '../../base/durable.ts'
import { deviceErrors } from '../errors.ts'

/**
 * `/etc/bistable/places.json`: slots and boot state given by path, for a device whose slots are files, whose partitions
 * have other names, or whose boot state is not in the partition `bootstate`. What it leaves out is found by GPT
 * partition name.
 */
const path = v.pipe(v.string(), v.startsWith('/'))
const images = v.strictObject({ boot: path, rootfs: path })
const seconds = v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(120))
const offset = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const part = v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(255))
/** Offsets in barebox's state, below what its length may be. */
const inState = v.pipe(offset, v.maxValue(4092))
const target = v.strictObject({ attempts: inState, priority: inState })
/** Program and arguments, run without a shell. */
const program = v.tupleWithRest([path], v.pipe(v.string(), v.maxLength(1024)))
const slotName = v.pipe(v.string(), v.regex(/^[A-Za-z0-9_-]{1,32}$/, 'not a plain name'))
/** U-Boot's counter and SWUpdate's state: none of them can be the board's name for the slot. */
const TAKEN = ['upgrade_available', 'bootcount', 'bootlimit', 'ustate', 'bootcmd', 'altbootcmd']
/** The bootloader's backend: one entry per kind (backends.ts opens them). */
const boot = v.variant('kind', [
  /** The board's own U-Boot environment: RAUC's variables, or with `slotVariable` SWUpdate's (bootloader/uboot-own-names.ts). */
  v.pipe(
    v.strictObject({
      kind: v.literal('uboot-environment'),
      config: v.optional(path, '/etc/fw_env.config'),
      names: v.optional(v.strictObject({ a: slotName, b: slotName }), { a: 'A', b: 'B' }),
      slotVariable: v.exactOptional(
        v.pipe(
          slotName,
          v.check((name) => !TAKEN.includes(name), 'has another meaning'),
        ),
      ),
      /** U-Boot's boot counter where it is not in the environment (bootloader/boot-counter.ts). */
      counter: v.exactOptional(
        v.strictObject({ read: program, reset: program, seconds: v.exactOptional(seconds, 10) }),
      ),
    }),
    v.check(
      ({ counter, slotVariable }) => counter === undefined || slotVariable !== undefined,
      'a counter goes with slotVariable',
    ),
  ),
  /** A boot state partition, by default the one named `bootstate`; it says itself which bootloader reads it. */
  v.strictObject({ kind: v.literal('partition'), path: v.exactOptional(path) }),
  /** Names of systemd-boot's entries on the EFI system partition, which is mounted at `esp`. */
  v.strictObject({ kind: v.literal('systemd-boot'), esp: path }),
  /** Load options of the UEFI firmware, by way of efivarfs. */
  v.strictObject({ kind: v.literal('efi-variables'), folder: v.exactOptional(path, '/sys/firmware/efi/efivars') }),
  /** `autoboot.txt` of a Raspberry Pi, and which partition starts which slot. */
  v.pipe(
    v.strictObject({ kind: v.literal('tryboot'), file: path, partitions: v.strictObject({ a: part, b: part }) }),
    v.check(({ partitions }) => partitions.a !== partitions.b, 'both slots are in one partition'),
  ),
  /** barebox's state with bootchooser: what the `state` node of the board's device tree says. */
  v.pipe(
    v.strictObject({
      kind: v.literal('barebox'),
      path,
      offset: v.exactOptional(offset, 0),
      stride: v.pipe(offset, v.minValue(32)),
      layout: v.strictObject({
        magic: v.pipe(offset, v.maxValue(0xffff_ffff)),
        length: v.pipe(offset, v.minValue(16), v.maxValue(4096)),
        variables: v.strictObject({ a: target, b: target }),
      }),
    }),
    v.check(
      ({ stride, layout: { length, variables } }) =>
        stride >= length + 24 &&
        Object.values(variables).every((slot) => Math.max(slot.attempts, slot.priority) + 4 <= length),
      'the variables or the buckets overlap',
    ),
  ),
  /** A program of the board's maker (docs/backends.md). */
  v.strictObject({
    kind: v.literal('command'),
    command: program,
    seconds: v.exactOptional(seconds, 10),
    maxTries: v.exactOptional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(9))),
  }),
])
const schema = v.pipe(
  v.strictObject({
    /** The same as `boot` of kind `partition`. */
    bootstate: v.exactOptional(path),
    boot: v.exactOptional(boot),
    slots: v.exactOptional(v.strictObject({ a: images, b: images })),
  }),
  v.check((places) => places.bootstate === undefined || places.boot === undefined, 'bootstate and boot say the same'),
)

export type GivenPlaces = v.InferOutput<typeof schema>

export async function readPlaces(file: string, files: Files): Promise<GivenPlaces | undefined> {
  const bytes = await files.read(file, 16 * KiB)
  if (bytes === undefined) return undefined
  let json: unknown
  try {
    json = JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch (cause) {
    throw deviceErrors.CONFIG_INVALID(`${file} is not JSON`, { cause })
  }
  const result = v.safeParse(schema, json)
  if (!result.success) {
    const wrong = result.issues.map((issue) => `${v.getDotPath(issue) ?? '(top)'}: ${issue.message}`)
    throw deviceErrors.CONFIG_INVALID(`${file}: ${wrong.join('; ')}`, { details: { path: file, wrong } })
  }
  return result.output
}
