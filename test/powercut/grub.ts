import { closeSync, copyFileSync, existsSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { chooseCopy, decodeCopy, encodeCopy } from '../../bootloader/grub-env.ts'
import { FILES, layoutImage } from '../../bootloader/layout.ts'
import { type BootDecision, onBoot } from '../../bootloader/machine.ts'
import { decodeReason, encodeReason } from '../../bootloader/reason.ts'
import type { BootState } from '../../bootloader/state.ts'
import { sha256 } from '../../bundle/digest.ts'
import { type Disk, writeAt } from '../helpers/disk.ts'
import { grubDecides, loadableDisk } from '../helpers/grub-emu.ts'

/**
 * The real GRUB as an oracle over boot states: each distinct one is asked once, and its answer and its writes are held
 * against the pure machine. Both slots of its disks can be loaded: whether the chosen one really can is for its root
 * hash to say, not for GRUB.
 */

const BLOCK = 1024
/** Disks per GRUB process. */
const BATCH = 120

/** What the bootloader made of a boot state. `after`: the three files as it left them. */
export interface BootAnswer {
  readonly slot: 'a' | 'b'
  readonly boot: string
  readonly why: string
  readonly left: number
  readonly after: Buffer
}
export type Bootloader = (files: Buffer) => BootAnswer

/** `state0.env`, `state1.env` and `reason.env`, back to back: all of the partition that ever changes. */
export function bootFiles(partition: Uint8Array): Buffer {
  return Buffer.concat(FILES.map(({ offset }) => partition.subarray(offset, offset + BLOCK)))
}

const fileOf = (files: Buffer, index: 0 | 1 | 2): Buffer => files.subarray(index * BLOCK, (index + 1) * BLOCK)

/** The state that counts in these files; undefined when no copy does. */
export function stateIn(files: Buffer): BootState | undefined {
  const copies = [decodeCopy(fileOf(files, 0)), decodeCopy(fileOf(files, 1))] as const
  const counting = chooseCopy(copies)
  const copy = counting === undefined ? undefined : copies[counting]
  return copy?.kind === 'valid' ? copy.state : undefined
}

export class Grub {
  readonly dir: string
  readonly #template: Disk
  /** The partition with its three files empty. */
  readonly #partition = Buffer.from(layoutImage([new Uint8Array(BLOCK), new Uint8Array(BLOCK), new Uint8Array(BLOCK)]))
  readonly #found = Buffer.alloc(this.#partition.length)
  readonly #disks: { readonly path: string; readonly fd: number }[] = []
  readonly #answers = new Map<string, BootAnswer>()
  /** Answers that differ from the machine's. */
  readonly differences: string[] = []

  constructor() {
    this.dir = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'bistable-powercut-'))
    process.once('exit', this.#remove)
    this.#template = loadableDisk(this.dir)
    writeAt(this.#template.path, this.#template.offsets.bootstate, this.#partition)
  }

  /** Distinct boot states that were asked about. */
  get asked(): number {
    return this.#answers.size
  }

  readonly decide: Bootloader = (files) => {
    this.prepare([files])
    const answer = this.#answers.get(sha256(files))
    if (answer === undefined) throw new Error('GRUB was not asked')
    return answer
  }

  /** Asks about those that were not asked yet, many in one process. */
  prepare(all: Iterable<Buffer>): void {
    const missing = new Map<string, Buffer>()
    for (const files of all) {
      const key = sha256(files)
      if (!this.#answers.has(key)) missing.set(key, files)
    }
    const list = [...missing]
    for (let at = 0; at < list.length; at += BATCH) this.#ask(list.slice(at, at + BATCH))
  }

  #ask(batch: readonly (readonly [string, Buffer])[]): void {
    const at = this.#template.offsets.bootstate
    const disks = batch.map(([, files], n) => {
      const disk = this.#disk(n)
      for (const [i, { offset }] of FILES.entries())
        writeSync(disk.fd, fileOf(files, i as 0 | 1 | 2), 0, BLOCK, at + offset)
      return disk
    })
    const paths = disks.map(({ path }) => path)
    const decisions = grubDecides(this.dir, paths)
    for (const [n, [key, files]] of batch.entries()) {
      const partition = this.#found
      readSync(disks[n]?.fd ?? -1, partition, 0, partition.length, at)
      const after = bootFiles(partition)
      const { slot, boot = '', why = '', left } = decisions[n]?.fields ?? {}
      const answer: BootAnswer = { slot: slot === 'b' ? 'b' : 'a', boot, why, left: Number(left), after }
      this.#answers.set(key, answer)
      for (const { offset } of FILES) partition.set(this.#partition.subarray(offset, offset + BLOCK), offset)
      const elsewhere = Buffer.compare(partition, this.#partition) !== 0
      const wrong = slot === undefined ? 'no slot' : elsewhere ? 'wrote elsewhere' : differs(files, answer)
      if (wrong !== undefined)
        this.differences.push(`GRUB: ${said(answer)}; ${wrong}; on ${JSON.stringify(stateIn(files))}`)
    }
  }

  #disk(n: number): { readonly path: string; readonly fd: number } {
    const made = this.#disks[n]
    if (made !== undefined) return made
    const path = join(this.dir, `disk-${n}.img`)
    copyFileSync(this.#template.path, path)
    const disk = { path, fd: openSync(path, 'r+') }
    this.#disks[n] = disk
    return disk
  }

  readonly #remove = (): void => rmSync(this.dir, { recursive: true, force: true })

  close(): void {
    for (const { fd } of this.#disks) closeSync(fd)
    process.removeListener('exit', this.#remove)
    this.#remove()
  }
}

const said = (a: Pick<BootDecision, 'slot' | 'left'> & { readonly boot: string; readonly why: string }) =>
  `${a.slot} ${a.boot} ${a.why} ${a.left}`

/**
 * Holds an answer against the pure machine, bytes included. Whether GRUB can write depends on the copy it would write
 * to: an intact one it must. In a damaged one it may find no room (then the primary boots) or find some, and then must
 * have counted; it keeps the rest of the damage, so the bytes are compared where there was none.
 */
function differs(files: Buffer, answer: BootAnswer): string | undefined {
  const copies = [decodeCopy(fileOf(files, 0)), decodeCopy(fileOf(files, 1))] as const
  const other = chooseCopy(copies) === 0 ? 1 : 0
  const target = copies[other]
  const intact = target.kind === 'valid' && fileOf(files, other).equals(encodeCopy(target.state))
  const { starts } = decodeReason(fileOf(files, 2))
  const loadable = { a: true, b: true }
  const allowed = (intact ? [true] : [true, false]).map((writable) =>
    onBoot(stateIn(files), { starts, writable, loadable }),
  )
  const decision = allowed.find((one) => said(one) === said(answer))
  if (decision === undefined) return `the machine: ${allowed.map(said).join(' or ')}`
  const { slot, newState } = decision
  if (newState !== undefined && JSON.stringify(stateIn(answer.after)) !== JSON.stringify(newState))
    return 'the count is not what the machine wants'
  const whole = fileOf(files, 2).equals(encodeReason({ starts, failure: undefined }))
  if (slot === undefined || !whole || (newState !== undefined && !intact)) return undefined
  const after = Buffer.from(files)
  if (newState !== undefined) after.set(encodeCopy(newState), other * BLOCK)
  const more = { ...starts, [slot]: Math.min(9, starts[slot] + 1) }
  after.set(encodeReason({ starts: more, failure: undefined }), 2 * BLOCK)
  return after.equals(answer.after) ? undefined : 'other bytes than the machine wants'
}
