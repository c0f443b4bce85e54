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

/**
 * Every write and flush of an emulated device's disk, from its first boot through a whole update: the install in the
 * guest, arming, the first try with the count by the real GRUB, the commit, and the boot behind it.
 */

export interface Recording {
  readonly kit: Kit
  readonly log: string
  /** From this entry of the log on, so much had been promised. */
  readonly promises: readonly { readonly entry: number; readonly told: Told }[]
}

const WAIT_MS = 300_000

export async function recordUpdate(folder: string, say: (line: string) => void): Promise<Recording> {
  const place = choosePlace(undefined)
  const kit = await openKit()
  const [disk, log] = [join(folder, 'disk.img'), join(folder, 'writes.log')]
  await mkdir(folder, { recursive: true })
  await copyImage(kit.disk, disk)
  await writeFile(log, '')
  const server = await TestServer.start(place.serverAddress)
  const transcript = join(folder, 'console.log')
  const dut = new Dut({ disk, writeLog: log, memoryMiB: place.memoryMiB, httpPort: server.port, transcript })
  const promises: { entry: number; told: Told }[] = []
  try {
    const address = server.offer('/next.bundle', { from: kit.bundle('next').path })
    const promised = async (release: string) => {
      const installFloor = Number(release.split('.')[1])
      promises.push({ entry: await countEntries(log), told: { ...NOTHING_TOLD, installFloor } })
      say(`recording: release ${release} runs, ${promises.at(-1)?.entry} writes and flushes`)
    }
    await dut.powerOn()
    await dut.next(['running'], { timeoutMs: WAIT_MS })
    await promised(kit.bundle('base').release)
    const { code, body } = await dut.bistable(`install ${address}`, { timeoutMs: WAIT_MS })
    if (code !== 0) throw new DutError(`the install failed: ${JSON.stringify(body)}`)
    await dut.reboot()
    await dut.next(['committed'], { timeoutMs: WAIT_MS, fatal: ['panic', 'initramfs-failed', 'fell-back'] })
    // The line comes when boot state, record and floor are on the medium.
    await promised(kit.bundle('next').release)
    await dut.reboot()
    await dut.next(['running'], { timeoutMs: WAIT_MS, fatal: ['panic', 'initramfs-failed', 'fell-back'] })
    await dut.run('sync')
  } finally {
    await dut.powerCut()
    await server.close()
  }
  await writeFile(join(folder, 'promises.json'), JSON.stringify(promises))
  return { kit, log, promises }
}

/** A recording that was made before, into the same folder and with the same kit. */
export async function openRecording(folder: string): Promise<Recording> {
  const promises = JSON.parse(await readFile(join(folder, 'promises.json'), 'utf8')) as Recording['promises']
  return { kit: await openKit(), log: join(folder, 'writes.log'), promises }
}
