import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { copyImage } from '../../hw-tests/harness/disk.ts'
import { Dut } from '../../hw-tests/harness/dut.ts'
import { type Kit, openKit } from '../../hw-tests/harness/kit.ts'
import { DutError } from '../../hw-tests/harness/lab-error.ts'
import { TestServer } from '../../hw-tests/harness/server.ts'
import { choosePlace } from '../../hw-tests/places/index.ts'
import { NOTHING_TOLD, type Told } from './disk.ts'
import { countEntries } from './log-writes.ts'

/** Every write and flush of an emulated device's disk, through what it does in a life. */

export interface Recording {
  readonly name: RecordingName
  readonly kit: Kit
  /** The disk before the first write. */
  readonly start: string
  readonly log: string
  /** From this entry of the log on, so much had been promised. */
  readonly promises: readonly Promised[]
}

interface Promised {
  readonly entry: number
  readonly told: Told
}

type Say = (line: string) => void

const WAIT_MS = 300_000

/** What happens on the device, by the name of the recording. The second one goes on from the disk of the first. */
const LIVES = {
  /** First boot, install, arming, the first try with the count by the real GRUB, the commit, and the boot behind it. */
  update: async (bench: Bench) => {
    await bench.dut.powerOn()
    await bench.dut.next(['running'], { timeoutMs: WAIT_MS })
    await bench.promised('base')
    await bench.update('next')
    await bench.reboot('running')
  },
  /** A way back to the first release, a release that its health check refuses, and one more update. */
  return: async (bench: Bench) => {
    await bench.dut.powerOn()
    await bench.dut.next(['running'], { timeoutMs: WAIT_MS })
    await bench.promised('next')
    await bench.does('rollback')
    await bench.reboot('committed')
    await bench.install('unhealthy')
    await bench.reboot('fell-back')
    await bench.update('next')
  },
} as const satisfies Record<string, (bench: Bench) => Promise<void>>

export type RecordingName = keyof typeof LIVES
export const RECORDINGS = Object.keys(LIVES) as RecordingName[]

class Bench {
  readonly dut: Dut
  readonly promises: Promised[] = []
  readonly #kit: Kit
  readonly #server: TestServer
  readonly #log: string
  readonly #say: Say

  constructor(dut: Dut, kit: Kit, server: TestServer, log: string, say: Say) {
    this.dut = dut
    this.#kit = kit
    this.#server = server
    this.#log = log
    this.#say = say
  }

  async promised(name: string): Promise<void> {
    const { release } = this.#kit.bundle(name)
    const installFloor = Number(release.split('.')[1])
    this.promises.push({ entry: await countEntries(this.#log), told: { ...NOTHING_TOLD, installFloor } })
    this.#say(`recording: release ${release} runs, ${this.promises.at(-1)?.entry} writes and flushes`)
  }

  async does(command: string): Promise<void> {
    const { code, body } = await this.dut.bistable(command, { timeoutMs: WAIT_MS })
    if (code !== 0) throw new DutError(`${command} failed: ${JSON.stringify(body)}`)
  }

  async install(name: string): Promise<void> {
    const address = this.#server.offer(`/${name}.bundle`, { from: this.#kit.bundle(name).path })
    await this.does(`install ${address}`)
  }

  async reboot(until: 'running' | 'committed' | 'fell-back'): Promise<void> {
    await this.dut.reboot()
    const fatal = (['panic', 'initramfs-failed', 'fell-back'] as const).filter((kind) => kind !== until)
    await this.dut.next([until], { timeoutMs: WAIT_MS, fatal })
  }

  async update(name: string): Promise<void> {
    await this.install(name)
    await this.reboot('committed')
    // The line comes when boot state, record and floor are on the medium.
    await this.promised(name)
  }
}

const disks = (kit: Kit, folder: string, name: RecordingName) => ({
  start: name === 'update' ? kit.disk : join(folder, 'update.img'),
  disk: join(folder, `${name}.img`),
  log: join(folder, `${name}.log`),
  promises: join(folder, `${name}.json`),
})

/** @param name `return` wants `update` in the same folder */
export async function record(folder: string, name: RecordingName, say: Say): Promise<Recording> {
  const place = choosePlace(undefined)
  const kit = await openKit()
  await mkdir(folder, { recursive: true })
  const { start, disk, log, promises } = disks(kit, folder, name)
  await copyImage(start, disk)
  await writeFile(log, '')
  const server = await TestServer.start(place.serverAddress)
  const transcript = join(folder, `${name}.console`)
  const dut = new Dut({ disk, writeLog: log, memoryMiB: place.memoryMiB, httpPort: server.port, transcript })
  const bench = new Bench(dut, kit, server, log, say)
  try {
    await LIVES[name](bench)
    await dut.run('sync')
  } finally {
    await dut.powerCut()
    await server.close()
  }
  await writeFile(promises, JSON.stringify(bench.promises))
  return { name, kit, start, log, promises: bench.promises }
}

/** A recording that was made before, into the same folder and with the same kit; undefined when there is none. */
export async function openRecording(folder: string, name: RecordingName): Promise<Recording | undefined> {
  const kit = await openKit()
  const { start, log, promises } = disks(kit, folder, name)
  const text = await readFile(promises, 'utf8').catch(() => undefined)
  if (text === undefined) return undefined
  return { name, kit, start, log, promises: JSON.parse(text) as Recording['promises'] }
}
