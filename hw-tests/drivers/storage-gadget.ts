import { access, mkdir, readFile, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { LabError } from '../harness/lab-error.ts'
import type { Storage } from './storage.ts'

/**
 * A USB stick played by this machine: a mass-storage gadget of the Linux kernel (configfs), on a computer whose USB port can be a
 * device (Raspberry Pi Zero or 4, BeagleBone). To plug in is to give the gadget its image, to pull is to eject it by force.
 */
export interface GadgetStorage {
  readonly driver: 'usb-gadget'
  /** The image that is the stick. */
  readonly image: string
  /** The device controller, as listed in /sys/class/udc. */
  readonly controller: string
  readonly readOnly?: boolean
  /** Where configfs is mounted; "/sys/kernel/config" unless told. */
  readonly configfs?: string
}

const GADGET = 'bistable-stick'

export function gadgetStorage(wiring: GadgetStorage): Storage {
  const folder = join(wiring.configfs ?? '/sys/kernel/config', 'usb_gadget', GADGET)
  const unit = join(folder, 'functions', 'mass_storage.0', 'lun.0')
  const write = async (path: string, value: string) => {
    try {
      await writeFile(path, `${value}\n`)
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : ''
      throw new LabError(`the USB gadget refuses "${value}" for ${path}: ${why}`, { cause })
    }
  }
  const prepare = async () => {
    const bound = await readFile(join(folder, 'UDC'), 'utf8').catch(() => '')
    if (bound.trim() === wiring.controller) return
    try {
      // Asked first: without it, the kernel refuses the folders in ways that no mkdir explains.
      await access(join(folder, '..'))
      // Linux Foundation's number for multifunction gadgets, as the kernel's own examples use it.
      await mkdir(join(folder, 'strings', '0x409'), { recursive: true })
      await mkdir(unit, { recursive: true })
      await mkdir(join(folder, 'configs', 'c.1'), { recursive: true })
    } catch (cause) {
      throw new LabError(`no USB gadget in ${folder}: is configfs mounted and libcomposite loaded?`, { cause })
    }
    await write(join(folder, 'idVendor'), '0x1d6b')
    await write(join(folder, 'idProduct'), '0x0104')
    await write(join(folder, 'strings', '0x409', 'product'), 'bistable test stick')
    await write(join(unit, 'removable'), '1')
    await write(join(unit, 'ro'), wiring.readOnly === false ? '0' : '1')
    const linked = join(folder, 'configs', 'c.1', 'mass_storage.0')
    await access(linked).catch(() => symlink(join(folder, 'functions', 'mass_storage.0'), linked))
    // Last: from here on the board sees the device.
    await write(join(folder, 'UDC'), wiring.controller)
  }
  const eject = async () => {
    // An empty `file` is refused while the board holds the medium; forced_eject is not (Linux 6.3 and newer).
    const forced = join(unit, 'forced_eject')
    const file = (await readFile(join(unit, 'file'), 'utf8').catch(() => '')).trim()
    if (file === '') return
    if (
      await access(forced).then(
        () => true,
        () => false,
      )
    )
      await write(forced, '1')
    else await write(join(unit, 'file'), '')
  }
  return {
    toHost: async () => {
      await eject()
      return wiring.image
    },
    toBoard: async () => {
      await prepare()
      await write(join(unit, 'file'), wiring.image)
    },
    pull: eject,
  }
}
