import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { BootModeWiring } from '../drivers/boot-mode.ts'
import type { ConsoleWiring } from '../drivers/console.ts'
import type { PowerWiring } from '../drivers/power.ts'
import type { StorageWiring } from '../drivers/storage.ts'
import { LabError } from '../harness/lab-error.ts'
import type { MachineName } from '../harness/machines.ts'

/** Places: what a test can run on. The default is an emulated one, so the suites pass on a laptop. */

/** What some places can and others cannot; a test that needs more than its place has is skipped with that reason. */
export type Feature =
  /** The medium can be read from outside while the device runs. */
  | 'live-medium'
  /** The medium can be changed while the device is off. */
  | 'medium'
  /** A stick can be plugged in and pulled. */
  | 'stick'
  /** The medium can be made to fail: emulated disks only. */
  | 'bad-medium'
  /** The system is Debian with systemd; it is the small busybox system where neither this nor the next is. */
  | 'systemd'
  /** The system is Debian with sysvinit or OpenRC. */
  | 'init-scripts'

interface AnyPlace {
  /** Which test kit: what its bundles and its disk are built for (x86). */
  readonly kit?: 'x86' | 'arm64' | 'debian' | 'sysvinit' | 'openrc'
  /** Which of the kit's disks (grub). */
  readonly bootloader?: 'grub' | 'grub-bios' | 'uboot'
  /** Programs of this machine that the place needs. */
  readonly tools: readonly string[]
  /** How the device reaches the test's web server. */
  readonly serverAddress: string
  readonly features: readonly Feature[]
}

export interface QemuPlace extends AnyPlace {
  readonly kind: 'qemu'
  readonly machine: MachineName
  readonly memoryMiB: number
  /** Tests start from a saved state of the booted device where they need no boot of their own. */
  readonly savedStates: boolean
}

/** A board on a bench. Its file says how it is wired; `npm run hil -- doctor PLACE` checks that. */
export interface BoardPlace extends AnyPlace {
  readonly kind: 'board'
  readonly console: ConsoleWiring
  readonly power: PowerWiring
  /** How long the power must be off to be off, in milliseconds (2000). */
  readonly offMs?: number
  /** The medium that the board boots from. */
  readonly storage?: StorageWiring
  readonly stick?: StorageWiring
  readonly bootMode?: BootModeWiring
  /** The boot mode that is set before power-on. */
  readonly mode?: string
  readonly login?: { readonly user: string; readonly password: string }
  /** The address of this machine that the test's web server listens on, for the board to reach. */
  readonly serverListen: string
}

export type AnyKindOfPlace = QemuPlace | BoardPlace

const withInitScripts = (kit: 'sysvinit' | 'openrc'): QemuPlace => ({
  ...{ kind: 'qemu', machine: 'x86-bios', kit, bootloader: 'grub-bios', memoryMiB: 512, savedStates: true },
  serverAddress: 'http://10.0.2.100',
  tools: ['qemu-system-x86_64', 'socat', 'mke2fs'],
  features: ['live-medium', 'medium', 'stick', 'bad-medium', 'init-scripts'],
})

export const PLACES = {
  'qemu-x86-grub': {
    kind: 'qemu',
    machine: 'x86-uefi',
    kit: 'x86',
    bootloader: 'grub',
    memoryMiB: 512,
    serverAddress: 'http://10.0.2.100',
    tools: ['qemu-system-x86_64', 'socat', 'mke2fs'],
    savedStates: true,
    features: ['live-medium', 'medium', 'stick', 'bad-medium'],
  },
  'qemu-x86-bios': {
    kind: 'qemu',
    machine: 'x86-bios',
    kit: 'x86',
    bootloader: 'grub-bios',
    memoryMiB: 512,
    serverAddress: 'http://10.0.2.100',
    tools: ['qemu-system-x86_64', 'socat', 'mke2fs'],
    savedStates: true,
    features: ['live-medium', 'medium', 'stick', 'bad-medium'],
  },
  'qemu-x86-debian': {
    kind: 'qemu',
    machine: 'x86-bios',
    kit: 'debian',
    bootloader: 'grub-bios',
    memoryMiB: 1024,
    serverAddress: 'http://10.0.2.100',
    tools: ['qemu-system-x86_64', 'socat', 'mke2fs'],
    savedStates: true,
    features: ['live-medium', 'medium', 'stick', 'bad-medium', 'systemd'],
  },
  'qemu-x86-sysvinit': withInitScripts('sysvinit'),
  'qemu-x86-openrc': withInitScripts('openrc'),
  'qemu-x86-uboot': {
    kind: 'qemu',
    machine: 'x86-uboot',
    kit: 'x86',
    bootloader: 'uboot',
    memoryMiB: 512,
    serverAddress: 'http://10.0.2.100',
    tools: ['qemu-system-x86_64', 'socat', 'mke2fs'],
    savedStates: true,
    features: ['live-medium', 'medium', 'stick', 'bad-medium'],
  },
  'qemu-arm64-grub': {
    kind: 'qemu',
    machine: 'arm64-uefi',
    kit: 'arm64',
    bootloader: 'grub',
    memoryMiB: 512,
    serverAddress: 'http://10.0.2.100',
    tools: ['qemu-system-aarch64', 'aarch64-linux-gnu-g++', 'socat', 'mke2fs'],
    savedStates: true,
    features: ['live-medium', 'medium', 'stick', 'bad-medium'],
  },
  'qemu-arm64-uboot': {
    kind: 'qemu',
    machine: 'arm64-uboot',
    kit: 'arm64',
    bootloader: 'uboot',
    memoryMiB: 512,
    serverAddress: 'http://10.0.2.100',
    tools: ['qemu-system-aarch64', 'aarch64-linux-gnu-g++', 'socat', 'mke2fs'],
    savedStates: true,
    features: ['live-medium', 'medium', 'stick', 'bad-medium'],
  },
} satisfies Readonly<Record<string, QemuPlace>>

export type Place = AnyKindOfPlace & { readonly name: string }

/** The name in `HIL_PLACE`, or else the emulated PC with GRUB. */
export function choosePlaceName(name: string | undefined): string {
  return name === undefined || name === '' ? 'qemu-x86-grub' : name
}

/** The place of that name among `known`, or else the emulated ones. @throws LabError for an unknown name */
export function choosePlace(name: string | undefined): QemuPlace & { readonly name: string }
export function choosePlace(name: string | undefined, known: Readonly<Record<string, AnyKindOfPlace>>): Place
export function choosePlace(name: string | undefined, known: Readonly<Record<string, AnyKindOfPlace>> = PLACES): Place {
  const wanted = choosePlaceName(name)
  const found = Object.entries(known).find(([one]) => one === wanted)
  if (found === undefined)
    throw new LabError(`there is no place ${wanted}; there are: ${Object.keys(known).join(', ')}`)
  return { name: found[0], ...found[1] }
}

/**
 * The emulated places, and those of the bench: what the file `HIL_PLACES` exports as `PLACES`, or else
 * `hw-tests/places/local.ts`, which no repository holds. @throws LabError when the file does not load
 */
export async function allPlaces(env: NodeJS.ProcessEnv): Promise<Readonly<Record<string, AnyKindOfPlace>>> {
  const local = join(import.meta.dirname, 'local.ts')
  const file = env['HIL_PLACES'] ?? (existsSync(local) ? local : undefined)
  if (file === undefined) return PLACES
  try {
    const module = await loaded(resolve(file))
    if (typeof module.PLACES !== 'object') throw new TypeError('it exports no PLACES')
    return { ...PLACES, ...module.PLACES }
  } catch (cause) {
    throw new LabError(`the places in ${file}: ${cause instanceof Error ? cause.message : ''}`, { cause })
  }
}

type PlacesFile = { readonly PLACES?: Readonly<Record<string, AnyKindOfPlace>> }

/** Older versions of Node.js read no TypeScript themselves: then vitest's vite does. */
async function loaded(file: string): Promise<PlacesFile> {
  try {
    return (await import(pathToFileURL(file).href)) as PlacesFile
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_UNKNOWN_FILE_EXTENSION') throw error
    const vitest = createRequire(import.meta.url).resolve('vitest/package.json')
    const vite = (await import(pathToFileURL(createRequire(vitest).resolve('vite')).href)) as {
      readonly runnerImport?: (path: string) => Promise<{ readonly module: PlacesFile }>
    }
    if (vite.runnerImport === undefined) throw error
    return (await vite.runnerImport(file)).module
  }
}

/** Those of the tools that are in no folder of `path` (as in $PATH). */
export function missingTools(tools: readonly string[], path: string): readonly string[] {
  const folders = [...path.split(':'), '/usr/sbin', '/sbin'].filter((folder) => folder !== '')
  return tools.filter((tool) => !folders.some((folder) => existsSync(join(folder, tool))))
}
