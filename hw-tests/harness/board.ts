import { copyFile, stat } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { openBootMode } from '../drivers/boot-mode.ts'
import { type ConsolePort, openConsolePort } from '../drivers/console.ts'
import { openPower } from '../drivers/power.ts'
import { noStorage, openStorage } from '../drivers/storage.ts'
import { runTool } from '../drivers/tool.ts'
import type { BoardPlace } from '../places/index.ts'
import { LabError } from './lab-error.ts'
import type { Machine } from './machine.ts'

/** A board made of metal: its drivers put together. Nothing is touched without the lease. */
export interface Board {
  /** Writes an image to the board's medium and gives it back to the board. The board must be off. */
  provision(image: string): Promise<void>
  /** Has the medium at this machine meanwhile. The board must be off. */
  withMedium<T>(act: (device: string) => Promise<T>): Promise<T>
  powerOn(): Promise<Machine>
  close(): Promise<void>
}

/** Throws when the lease is lost. */
export interface LeaseCheck {
  check(): void
}

const WRITE_MS = 1_800_000
const DEFAULT_OFF_MS = 2_000

export function openBoard(name: string, place: BoardPlace, lease: LeaseCheck): Board {
  const power = openPower(place.power)
  const medium = place.storage === undefined ? noStorage(name) : openStorage(place.storage)
  const stick = place.stick === undefined ? noStorage(`${name} (stick)`) : openStorage(place.stick)
  const bootMode = place.bootMode === undefined ? undefined : openBootMode(place.bootMode)
  let offSince = 0

  const off = async () => {
    lease.check()
    await power.off()
    offSince = Date.now()
  }
  const powerOn = async (): Promise<Machine> => {
    lease.check()
    const opened = await openConsolePort(place.console)
    let told = false
    try {
      if (place.mode !== undefined) await bootMode?.set(place.mode)
      // Somebody may have left it on. Capacitors need their time, or the board never saw a cut.
      if ((await power.state()) === true) await off()
      const left = offSince + (place.offMs ?? DEFAULT_OFF_MS) - Date.now()
      if (left > 0) await sleep(left)
      lease.check()
      told = true
      await power.on()
      return machineOf(opened)
    } catch (error) {
      opened.port.destroy()
      // It may have come on, whatever its outlet says; nobody would turn it off.
      if (told) await off().catch(() => {})
      throw error
    }
  }
  const machineOf = ({ port, modem }: ConsolePort): Machine => ({
    port,
    ...(modem && { modem }),
    cut: async () => {
      port.destroy()
      await off()
    },
    reset: async () => {
      await off()
      await sleep(place.offMs ?? DEFAULT_OFF_MS)
      lease.check()
      await power.on()
    },
    plug: async (image) => {
      lease.check()
      await write(image, await stick.toHost())
      await stick.toBoard()
    },
    unplug: async () => {
      lease.check()
      await stick.pull()
    },
  })
  const withMedium = async <T>(act: (device: string) => Promise<T>): Promise<T> => {
    lease.check()
    const device = await medium.toHost()
    try {
      return await act(device)
    } finally {
      lease.check()
      await medium.toBoard()
    }
  }
  return {
    powerOn,
    withMedium,
    provision: async (image) => {
      await off()
      await withMedium((device) => write(image, device))
    },
    close: async () => {
      await power.close()
      await bootMode?.close()
    },
  }
}

/** Writes a whole image, flushed, and compares what is there then. @throws LabError */
async function write(image: string, device: string): Promise<void> {
  const target = await stat(device).catch(() => undefined)
  if (target?.isBlockDevice() !== true) {
    // A gadget's stick is a file.
    await copyFile(image, device)
    return
  }
  // Past the page cache, or the comparison would only see the cache.
  await runTool(
    ['dd', `if=${image}`, `of=${device}`, 'bs=1M', 'oflag=direct', 'conv=fsync,nocreat', 'status=none'],
    WRITE_MS,
  )
  const { size } = await stat(image)
  await runTool(['cmp', '-n', String(size), image, device], WRITE_MS).catch((cause: unknown) => {
    throw new LabError(`${device} does not hold what was written to it`, { cause })
  })
}
