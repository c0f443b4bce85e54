import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import type { Place } from '../places/index.ts'
import { LabError } from './lab-error.ts'

/** What the suites install: bundles and a disk image, prepared once and never changed. */

export interface KitBundle {
  readonly path: string
  /** "EPOCH.COUNTER" */
  readonly release: string
}

export interface Kit {
  readonly folder: string
  readonly product: string
  /** A disk image with release `base` in slot a. */
  readonly disk: string
  /** @throws LabError when the kit has no such bundle */
  bundle(name: string): KitBundle
  /** Path of an add-on. @throws LabError when the kit has no such add-on */
  addon(name: string): string
}

interface KitFile {
  /** By bootloader, or the only one. */
  readonly disks?: Readonly<Record<string, string>>
  readonly disk?: string
  readonly product: string
  readonly addons?: Readonly<Record<string, string>>
  readonly bundles: Readonly<Record<string, { readonly file: string; readonly release: string }>>
}

const root = resolve(import.meta.dirname, '..', '..')

/** The kit in the folder `HIL_KIT`, or else one made from this checkout (under a minute, once per state of the sources). */
export async function openKit({
  kit = 'x86',
  bootloader = 'grub',
}: Pick<Place, 'kit' | 'bootloader'> = {}): Promise<Kit> {
  const folder = process.env['HIL_KIT'] ?? (await makeKit(kit))
  const text = await readFile(join(folder, 'kit.json'), 'utf8').catch((cause: unknown) => {
    throw new LabError(`no test kit in ${folder}`, { cause })
  })
  const file = JSON.parse(text) as KitFile
  const disk = file.disks?.[bootloader] ?? file.disk
  if (disk === undefined) throw new LabError(`the test kit in ${folder} has no disk for ${bootloader}`)
  return {
    folder,
    product: file.product,
    disk: join(folder, disk),
    bundle: (name) => {
      const found = file.bundles[name]
      if (found === undefined) throw new LabError(`the test kit has no bundle ${name}`)
      return { path: join(folder, found.file), release: found.release }
    },
    addon: (name) => {
      const found = file.addons?.[name]
      if (found === undefined) throw new LabError(`the test kit has no add-on ${name}`)
      return join(folder, found)
    },
  }
}

async function makeKit(name: string): Promise<string> {
  const script = join(root, 'scripts', 'hil-kit.ts')
  if (!existsSync(script)) throw new LabError('no test kit: set HIL_KIT to its folder')
  try {
    const options = { cwd: root, maxBuffer: 4 * 1024 * 1024 }
    const { stdout } = await promisify(execFile)(process.execPath, ['--import', 'tsx', script, name], options)
    return stdout.trim().split('\n').at(-1) ?? ''
  } catch (cause) {
    throw new LabError(`the test kit could not be made: ${cause instanceof Error ? cause.message : ''}`, { cause })
  }
}
