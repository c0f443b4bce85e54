import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { LabError } from '../harness/lab-error.ts'

/** Places: what a test can run on. The default is an emulated one, so the suites pass on a laptop. */

export interface QemuPlace {
  readonly kind: 'qemu'
  readonly memoryMiB: number
  /** Programs of this machine that the place needs. */
  readonly tools: readonly string[]
  /** How the device reaches the test's web server. */
  readonly serverAddress: string
  /** Tests start from a saved state of the booted device where they need no boot of their own. */
  readonly savedStates: boolean
}

export const PLACES = {
  'qemu-x86-grub': {
    kind: 'qemu',
    memoryMiB: 512,
    serverAddress: 'http://10.0.2.100',
    tools: ['qemu-system-x86_64', 'socat', 'mke2fs'],
    savedStates: true,
  },
} satisfies Readonly<Record<string, QemuPlace>>

export interface Place extends QemuPlace {
  readonly name: string
}

/** The name in `HIL_PLACE`, or else the emulated PC with GRUB. */
export function choosePlaceName(name: string | undefined): string {
  return name === undefined || name === '' ? 'qemu-x86-grub' : name
}

/** The place of that name. @throws LabError for an unknown name */
export function choosePlace(name: string | undefined): Place {
  const wanted = choosePlaceName(name)
  const found = Object.entries(PLACES).find(([known]) => known === wanted)
  if (found === undefined)
    throw new LabError(`there is no place ${wanted}; there are: ${Object.keys(PLACES).join(', ')}`)
  return { name: found[0], ...found[1] }
}

/** Those of the tools that are in no folder of `path` (as in $PATH). */
export function missingTools(tools: readonly string[], path: string): readonly string[] {
  const folders = [...path.split(':'), '/usr/sbin', '/sbin'].filter((folder) => folder !== '')
  return tools.filter((tool) => !folders.some((folder) => existsSync(join(folder, tool))))
}
