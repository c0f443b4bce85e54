import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { access, mkdtemp, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Place } from '../places/index.ts'
import { copyImage } from './disk.ts'
import { Dut } from './dut.ts'
import type { Kit } from './kit.ts'

/** A booted device, saved once per kit and emulator: a test that needs no boot of its own starts in a second or two. */

export interface SavedState {
  readonly disk: string
  readonly memory: string
}

const BOOT_MS = 300_000

export async function savedState(kit: Kit, place: Place): Promise<SavedState> {
  // A state fits only the emulator and the machine that it was saved from, as qemu.ts describes it.
  const { stdout } = await promisify(execFile)('qemu-system-x86_64', ['--version'])
  const machine = await readFile(join(import.meta.dirname, 'qemu.ts'), 'utf8')
  const digest = createHash('sha256')
    .update(JSON.stringify([stdout, place, machine]))
    .digest('hex')
  const folder = join(kit.folder, `running-${digest.slice(0, 12)}`)
  const state = { disk: join(folder, 'disk.img'), memory: join(folder, 'memory') }
  try {
    await access(state.memory)
    return state
  } catch {
    const partial = await mkdtemp(join(kit.folder, 'saving-'))
    try {
      await save(kit, place, partial)
      // Another run may have saved the same state meanwhile.
      await rename(partial, folder).catch(() => access(state.memory))
    } finally {
      await rm(partial, { recursive: true, force: true })
    }
    return state
  }
}

async function save(kit: Kit, place: Place, folder: string): Promise<void> {
  const disk = join(folder, 'disk.img')
  await copyImage(kit.disk, disk)
  const dut = new Dut({ disk, memoryMiB: place.memoryMiB, httpPort: 9, transcript: join(folder, 'console.log') })
  try {
    await dut.powerOn()
    await dut.next(['running'], { timeoutMs: BOOT_MS })
    // The agent has written what it writes at a start, and the shell is open.
    await dut.status()
    await dut.run('sync', { timeoutMs: 60_000 })
    await dut.save(join(folder, 'memory'))
  } finally {
    await dut.powerCut()
  }
}
