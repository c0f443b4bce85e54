import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { access, mkdtemp, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { QemuPlace } from '../places/index.ts'
import { copyImage } from './disk.ts'
import { Dut } from './dut.ts'
import type { Kit } from './kit.ts'
import { DutError } from './lab-error.ts'
import { MACHINES } from './machines.ts'
import { TestServer } from './server.ts'

/** A device saved once per kit and emulator: a test that needs no boot of its own starts in a second or two. */

export interface SavedState {
  readonly disk: string
  readonly memory: string
}

const BOOT_MS = 300_000
const INSTALL_MS = 600_000

/** A booted device, idle, with a shell open: release `base` runs from slot a. */
export function savedState(kit: Kit, place: QemuPlace): Promise<SavedState> {
  return saved(kit, place, 'running', async (state) => {
    await copyImage(kit.disk, state.disk)
    const dut = new Dut({
      disk: state.disk,
      profile: place.machine,
      memoryMiB: place.memoryMiB,
      httpPort: 9,
      transcript: `${state.disk}.log`,
    })
    await saving(dut, state, async () => {
      await dut.powerOn()
      await dut.next(['running'], { timeoutMs: BOOT_MS })
      // The agent has written what it writes at a start, and the shell is open.
      await dut.status()
    })
  })
}

/** The same device with a release of the kit armed in slot b: its next boot is the first try. */
export async function armedState(kit: Kit, place: QemuPlace, name: string): Promise<SavedState> {
  const running = await savedState(kit, place)
  return saved(kit, place, `armed-${name}`, async (state) => {
    await copyImage(running.disk, state.disk)
    const server = await TestServer.start(place.serverAddress)
    try {
      const dut = new Dut({
        disk: state.disk,
        profile: place.machine,
        memoryMiB: place.memoryMiB,
        httpPort: server.port,
      })
      await saving(dut, state, async () => {
        await dut.powerOn({ restore: running.memory })
        await arm(dut, kit, server, name)
      })
    } finally {
      await server.close()
    }
  })
}

/** Installs a release of the kit on a running device. @throws DutError */
export async function arm(dut: Dut, kit: Kit, server: TestServer, name: string): Promise<void> {
  const address = server.offer(`/${name}.bundle`, { from: kit.bundle(name).path })
  const { code, body } = await dut.bistable(`install ${address}`, { timeoutMs: INSTALL_MS })
  if (code !== 0) throw new DutError(`nothing can be armed: ${JSON.stringify(body)}`)
}

async function saving(dut: Dut, state: SavedState, prepare: () => Promise<void>): Promise<void> {
  try {
    await prepare()
    await dut.run('sync', { timeoutMs: 300_000 })
    await dut.save(state.memory)
  } finally {
    await dut.powerCut()
  }
}

async function saved(
  kit: Kit,
  place: QemuPlace,
  name: string,
  make: (state: SavedState) => Promise<void>,
): Promise<SavedState> {
  // A state fits only the emulator and the machine that it was saved from, as these files describe it.
  const { stdout } = await promisify(execFile)(MACHINES[place.machine].program, ['--version'])
  const text = (name: string) => readFile(join(import.meta.dirname, name), 'utf8')
  const machine = [await text('qemu.ts'), await text('machines.ts')]
  const digest = createHash('sha256')
    .update(JSON.stringify([stdout, place, machine]))
    .digest('hex')
  const folder = join(kit.folder, `${name}-${digest.slice(0, 12)}`)
  const stateIn = (where: string): SavedState => ({ disk: join(where, 'disk.img'), memory: join(where, 'memory') })
  const state = stateIn(folder)
  try {
    await access(state.memory)
    return state
  } catch {
    const partial = await mkdtemp(join(kit.folder, 'saving-'))
    try {
      await make(stateIn(partial))
      // Another run may have saved the same state meanwhile.
      await rename(partial, folder).catch(() => access(state.memory))
    } finally {
      await rm(partial, { recursive: true, force: true })
    }
    return state
  }
}
