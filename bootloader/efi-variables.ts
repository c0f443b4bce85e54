import { access, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { systemCode, systemReason } from '../base/errors.ts'
import type { BackendReading, BootBackend } from './backend.ts'
import { type BootCfg, decodeBootCfg } from './boot-cfg.ts'
import { decodeLoadOption, encodeLoadOption } from './efi-option.ts'
import { bootErrors } from './errors.ts'
import { type BootImage, fatBytes } from './fat-read.ts'
import type { GptPartition } from './gpt.ts'
import { checkState } from './machine.ts'
import type { ReasonPlace } from './reason-place.ts'
import { type BootState, otherSlot, SLOTS, type Slot } from './state.ts'

/**
 * The UEFI firmware itself as the bootloader: each slot is a load option that starts the kernel in its boot partition.
 * In `BootOrder` stand the slots that may be booted for good, the primary first; a slot on trial has an option that is
 * not in it, and `BootNext` names it for one boot. The firmware takes `BootNext` away before it starts it, so there is
 * one try and the count needs nobody.
 */

export interface EfiOptions {
  /** `/sys/firmware/efi/efivars` */
  readonly folder: string
  readonly bootImage: (slot: Slot) => Promise<BootImage>
  readonly partition: (slot: Slot) => Promise<GptPartition>
  readonly reasons: ReasonPlace
}

/** Of the global variables, UEFI specification 3.3. */
const GLOBAL = '8be4df61-93ca-11d2-aa0d-00e098032b8c'
/** Non-volatile, for boot services and at run time. */
const ATTRIBUTES = 7
/** Numbers of our options: high, where firmware does not count its own up to. */
const OPTION: Readonly<Record<Slot, number>> = { a: 0xb15a, b: 0xb15b }

const optionName = (slot: Slot): string => `Boot${OPTION[slot].toString(16).toUpperCase()}`

export function efiBackend({ folder, bootImage, partition, reasons }: EfiOptions): BootBackend {
  const path = (name: string) => join(folder, `${name}-${GLOBAL}`)
  /** Without its attributes; undefined when there is no such variable. */
  const get = async (name: string): Promise<Buffer | undefined> => {
    try {
      return (await readFile(path(name))).subarray(4)
    } catch (cause) {
      if (systemCode(cause) === 'ENOENT') return undefined
      throw bootErrors.BOOT_STATE_READ(`${path(name)}: ${systemReason(cause)}`, { cause })
    }
  }
  /** One write call, as efivarfs wants it, and read back. */
  const set = async (name: string, value: Uint8Array): Promise<void> => {
    if ((await get(name))?.equals(value) === true) return
    const head = Buffer.alloc(4)
    head.writeUInt32LE(ATTRIBUTES)
    try {
      await writeFile(path(name), Buffer.concat([head, value]))
    } catch (cause) {
      throw bootErrors.BOOT_STATE_WRITE(`${path(name)}: ${systemReason(cause)}`, { cause })
    }
    if ((await get(name))?.equals(value) !== true)
      throw bootErrors.BOOT_STATE_NOT_STORED(`the firmware stores another ${name} than was written`)
  }
  const unset = async (name: string): Promise<void> => {
    await rm(path(name), { force: true }).catch((cause: unknown) => {
      throw bootErrors.BOOT_STATE_WRITE(`${path(name)}: ${systemReason(cause)}`, { cause })
    })
  }
  const order = async (): Promise<readonly number[]> => numbers(await get('BootOrder'))
  const wordsOf = async (slot: Slot) => decodeLoadOption((await get(optionName(slot))) ?? Buffer.alloc(0))?.arguments

  const read = async (): Promise<BackendReading> => {
    await access(folder).catch((cause: unknown) => {
      throw bootErrors.BOOT_STATE_READ(`${folder}: ${systemReason(cause)}`, { cause })
    })
    const listed = (await order()).flatMap((number) => SLOTS.find((slot) => OPTION[slot] === number) ?? [])
    const [primary] = listed
    if (primary === undefined) return { state: undefined, torn: false }
    const other = otherSlot(primary)
    const spare = listed.includes(other)
    const trial = !spare && (await get(optionName(other))) !== undefined
    const next = numbers(await get('BootNext'))[0] === OPTION[other]
    const state = { generation: 0, primary, trial: trial ? other : undefined, left: trial && next ? 1 : 0, spare }
    // A cut in a commit: the option of the primary still has the words of a try.
    return { state, torn: !(await wordsOf(primary))?.includes(' bistable.boot=committed ') }
  }

  const setOption = async (slot: Slot, boot: 'try' | 'committed'): Promise<void> => {
    const image = await bootImage(slot)
    try {
      const cfg = decodeBootCfg(await fatBytes(image.read, 'boot.cfg', 16 * 1024))
      const option = { description: `bistable ${slot}`, partition: await partition(slot), file: '\\vmlinuz' }
      await set(optionName(slot), encodeLoadOption({ ...option, arguments: commandLine(slot, cfg, boot) }))
    } finally {
      await image.close()
    }
  }
  const setOrder = async (slots: readonly Slot[]): Promise<void> => {
    const foreign = (await order()).filter((number) => !SLOTS.some((slot) => OPTION[slot] === number))
    await set('BootOrder', bytesOf([...slots.map((slot) => OPTION[slot]), ...foreign]))
  }

  const write = async (state: BootState): Promise<void> => {
    const before = await read()
    const { primary, trial, left, spare } = checkState(state)
    const other = otherSlot(primary)
    if (before.state?.primary !== primary || before.torn) await setOption(primary, 'committed')
    if (trial === undefined || left === 0) await unset('BootNext')
    // Armed, and taken back: its option has the words of a try.
    if (spare && before.state?.trial === other) await setOption(other, 'committed')
    await setOrder(spare ? [primary, other] : [primary])
    if (trial === undefined && !spare) await unset(optionName(other))
    if (trial !== undefined && before.state?.trial !== trial) await setOption(trial, 'try')
    // The last write: it alone makes the next boot a try.
    if (trial !== undefined && left > 0) await set('BootNext', bytesOf([OPTION[trial]]))
    const back = (await read()).state
    if (JSON.stringify(back) !== JSON.stringify({ ...state, generation: 0, trial, left: Math.min(left, 1) }))
      throw bootErrors.BOOT_STATE_NOT_STORED(`the firmware reads back as ${JSON.stringify(back)}`)
  }
  return {
    describe: () => ({ name: 'efi-variables', place: `load options of the firmware, ${folder}`, maxTries: 1 }),
    read,
    write,
    reason: () => reasons.reason(),
    clearReason: (up) => reasons.clearReason(up),
    close: async () => undefined,
  }
}

function numbers(bytes: Buffer | undefined): readonly number[] {
  return Array.from({ length: Math.floor((bytes?.length ?? 0) / 2) }, (_, n) => bytes?.readUInt16LE(n * 2) ?? 0)
}

function bytesOf(values: readonly number[]): Uint8Array {
  return Uint8Array.from(values.flatMap((value) => [value & 0xff, value >> 8]))
}

/** The EFI stub of the kernel loads the initramfs that stands beside it. */
function commandLine(slot: Slot, cfg: BootCfg, boot: 'try' | 'committed'): string {
  const words = `bistable.slot=${slot} bistable.release=${cfg.release} bistable.boot=${boot} bistable.left=0 bistable.why=ok`
  return `initrd=\\initrd.img panic=5 ${cfg.args} ${words}`
}
