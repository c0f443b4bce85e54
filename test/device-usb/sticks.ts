import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Stick } from '../../device/usb/find.ts'
import type { Sticks } from '../../device/usb/sticks.ts'

/** Sticks whose file system is a folder of this machine: all that the kernel's mount would do, but for the mount. */
export class FolderSticks implements Sticks {
  readonly folder: string
  /** What is plugged in. */
  there: Stick[] = [{ name: 'sdz1', identity: 'sdz1 7 2048' }]
  /** Mounts and unmounts, in order. */
  readonly log: string[] = []
  /** Thrown by a mount in this mode. */
  refuse: { readonly mode: 'ro' | 'rw'; readonly error: Error } | undefined

  constructor(folder: string) {
    this.folder = folder
    mkdirSync(folder, { recursive: true })
  }

  put(name: string, bytes: Uint8Array): string {
    const path = join(this.folder, name)
    writeFileSync(path, bytes)
    return path
  }

  async list(): Promise<readonly Stick[]> {
    return this.there
  }

  async named(path: string): Promise<Stick> {
    return { name: path, identity: path }
  }

  async fileSystem(): Promise<'vfat'> {
    return 'vfat'
  }

  async mount(stick: Stick, _type: string, mode: 'ro' | 'rw'): Promise<string> {
    this.log.push(`mount ${stick.name} ${mode}`)
    if (this.refuse?.mode === mode) throw this.refuse.error
    return this.folder
  }

  async unmount(): Promise<void> {
    this.log.push('unmount')
  }
}
