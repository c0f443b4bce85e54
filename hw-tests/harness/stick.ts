import { copyFile, mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { makeStick } from './disk.ts'
import type { Dut } from './dut.ts'
import { DutError } from './lab-error.ts'

const MOUNT_POINT = '/mnt'

/** Names the disk that is not among `known`, when it comes within half a minute. */
const newDisk = (known: readonly string[]) =>
  `for i in $(seq 150); do for d in $(ls /sys/block); do case " ${known.join(' ')} " in *" $d "*) ;; *) echo $d; exit 0;; esac; done; sleep 0.2; done; exit 1`

/** A stick with files of this machine. Tests that use it say `hil.override('needs', ['stick'])`. */
export class Stick {
  readonly #dut: Dut
  readonly #folder: string
  /** As the device calls it. */
  #name = ''

  constructor(dut: Dut, folder: string) {
    this.#dut = dut
    this.#folder = join(folder, 'stick')
  }

  /** Plugged in and mounted, read-only; `files`: paths here by their names there. Returns where the device has them. */
  async plug(files: Readonly<Record<string, string>>): Promise<string> {
    await rm(this.#folder, { recursive: true, force: true })
    await mkdir(this.#folder)
    for (const [name, from] of Object.entries(files)) await copyFile(from, join(this.#folder, name))
    const image = `${this.#folder}.img`
    await makeStick(image, this.#folder, 128)
    await this.#dut.run(`umount -l ${MOUNT_POINT} 2>/dev/null`)
    const known = (await this.#dut.run('ls /sys/block')).output.trim().split('\n')
    await this.#dut.plug(image)
    const found = await this.#dut.run(newDisk(known), { timeoutMs: 120_000 })
    if (found.code !== 0) throw new DutError(`the stick is plugged in, and the device sees no disk but ${known}`)
    this.#name = found.output.trim()
    const mounted = await this.#dut.run(`mount -t ext4 -o ro /dev/${this.#name} ${MOUNT_POINT}`)
    if (mounted.code !== 0) throw new DutError(`the device cannot mount the stick: ${mounted.output}`)
    return MOUNT_POINT
  }

  /** Pulled without a word before; ends when the device has noticed. What it had read ahead is forgotten. */
  async pull(): Promise<void> {
    await this.#dut.unplug()
    const gone = `for i in $(seq 150); do [ -e /sys/block/${this.#name} ] || { echo 3 >/proc/sys/vm/drop_caches; exit 0; }; sleep 0.2; done; exit 1`
    const { code } = await this.#dut.run(gone, { timeoutMs: 120_000 })
    if (code !== 0) throw new DutError(`the stick was pulled, and the device still has ${this.#name}`)
  }
}
