import { mkdir, open, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { FILES } from '../../bootloader/layout.ts'
import { copyImage, partitionStart } from '../../hw-tests/harness/disk.ts'
import { Dut } from '../../hw-tests/harness/dut.ts'
import { type Kit, openKit } from '../../hw-tests/harness/kit.ts'
import { DutError } from '../../hw-tests/harness/lab-error.ts'
import { TestServer } from '../../hw-tests/harness/server.ts'
import { choosePlace } from '../../hw-tests/places/index.ts'
import { NOTHING_TOLD, type Told } from './disk.ts'
import { countEntries } from './log-writes.ts'
import { rankOf } from './releases.ts'

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

interface Life {
  /** The recording from whose last disk this one goes on; undefined: the kit's. */
  readonly from?: string
  /** Both copies of the boot state are damaged before the power comes. */
  readonly damaged?: boolean
  readonly lives: (bench: Bench) => Promise<void>
}

/** What happens on the device, by the name of the recording. */
const LIVES = {
  /** First boot, install, arming, the first try with the count by the real GRUB, the commit, and the boot behind it. */
  update: {
    lives: async (bench) => {
      await bench.start('base')
      await bench.update('next')
      await bench.reboot('running')
    },
  },
  /** A way back to the first release, and a release that its health check refuses. */
  return: {
    from: 'update',
    lives: async (bench) => {
      await bench.start('next')
      await bench.does('rollback')
      await bench.reboot('committed')
      await bench.install('unhealthy')
      await bench.reboot('fell-back')
    },
  },
  /** Behind that, one more update: to the release that was rolled back, which takes a word of its own. */
  again: {
    from: 'return',
    lives: async (bench) => {
      await bench.start('next')
      await bench.update('next', { force: true })
    },
  },
  /** A release that never comes up: the bootloader counts its three tries and goes back. */
  fall: {
    from: 'update',
    lives: async (bench) => {
      await bench.start('next')
      await bench.install('panics')
      await bench.reboot('fell-back')
    },
  },
  /** Both copies of the boot state are lost, and `bistable repair`; then an update that brings new keys. */
  repair: {
    from: 'update',
    damaged: true,
    lives: async (bench) => {
      await bench.start('next')
      await bench.does('repair')
      await bench.reboot('running')
      await bench.update('rotated', { rootVersion: 2 })
    },
  },
} as const satisfies Record<string, Life>

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

  /** Power on. @param floor the highest release that was committed before */
  async start(floor: string): Promise<void> {
    await this.dut.powerOn()
    await this.dut.next(['running'], { timeoutMs: WAIT_MS })
    await this.#promised(floor, NOTHING_TOLD.rootVersion)
  }

  async #promised(name: string, rootVersion: number): Promise<void> {
    const { release } = this.#kit.bundle(name)
    const [epoch = 0, counter = 0] = release.split('.').map(Number)
    const told = { ...NOTHING_TOLD, installFloor: rankOf({ epoch, counter }), rootVersion }
    this.promises.push({ entry: await countEntries(this.#log), told })
    this.#say(`recording: the floor is ${release}, ${this.promises.at(-1)?.entry} writes and flushes`)
  }

  async does(command: string): Promise<void> {
    const { code, body } = await this.dut.bistable(command, { timeoutMs: WAIT_MS })
    if (code !== 0) throw new DutError(`${command} failed: ${JSON.stringify(body)}`)
  }

  async install(name: string, force = false): Promise<void> {
    const address = this.#server.offer(`/${name}.bundle`, { from: this.#kit.bundle(name).path })
    await this.does(`install ${force ? '--force ' : ''}${address}`)
  }

  async reboot(until: 'running' | 'committed' | 'fell-back'): Promise<void> {
    await this.dut.reboot()
    const fatal = until === 'fell-back' ? [] : (['panic', 'initramfs-failed', 'fell-back'] as const)
    await this.dut.next([until], { timeoutMs: WAIT_MS, fatal })
  }

  async update(
    name: string,
    { force = false, rootVersion = NOTHING_TOLD.rootVersion }: { force?: boolean; rootVersion?: number } = {},
  ): Promise<void> {
    await this.install(name, force)
    await this.reboot('committed')
    // The line comes when boot state, record and floor are on the medium.
    await this.#promised(name, rootVersion)
  }
}

const life = (name: RecordingName): Life => LIVES[name]

const disks = (folder: string, name: RecordingName) => ({
  start: join(folder, `${name}.start.img`),
  disk: join(folder, `${name}.img`),
  log: join(folder, `${name}.log`),
  promises: join(folder, `${name}.json`),
})

/**
 * @param name one that goes on from another wants that one in the same folder
 * @param where an emulated place; the PC with GRUB and UEFI without it
 */
export async function record(folder: string, name: RecordingName, say: Say, where?: string): Promise<Recording> {
  const place = choosePlace(where)
  const kit = await openKit(place)
  await mkdir(folder, { recursive: true })
  const { start, disk, log, promises } = disks(folder, name)
  const { from, damaged, lives } = life(name)
  await copyImage(from === undefined ? kit.disk : join(folder, `${from}.img`), start)
  if (damaged === true) await loseBootState(start)
  await copyImage(start, disk)
  await writeFile(log, '')
  const server = await TestServer.start(place.serverAddress)
  const transcript = join(folder, `${name}.console`)
  const { machine: profile, memoryMiB } = place
  const dut = new Dut({ disk, profile, writeLog: log, memoryMiB, httpPort: server.port, transcript })
  const bench = new Bench(dut, kit, server, log, say)
  try {
    await lives(bench)
    await dut.run('sync')
  } finally {
    await dut.powerCut()
    await server.close()
  }
  await writeFile(promises, JSON.stringify(bench.promises))
  return { name, kit, start, log, promises: bench.promises }
}

async function loseBootState(disk: string): Promise<void> {
  const start = await partitionStart(disk, 'bootstate')
  const file = await open(disk, 'r+')
  try {
    for (const { offset } of FILES.slice(0, 2)) await file.write(Buffer.alloc(512, 0xa5), 0, 512, start + offset)
  } finally {
    await file.close()
  }
}

/** A recording that was made before, into the same folder and with the same kit; undefined when there is none. */
export async function openRecording(folder: string, name: RecordingName): Promise<Recording | undefined> {
  const kit = await openKit()
  const { start, log, promises } = disks(folder, name)
  const text = await readFile(promises, 'utf8').catch(() => undefined)
  if (text === undefined) return undefined
  return { name, kit, start, log, promises: JSON.parse(text) as Recording['promises'] }
}
