import { readdir, readFile, realpath } from 'node:fs/promises'
import { basename, join } from 'node:path'

/** What the kernel tells about disks, under one prefix: "" on a device, a made-up tree in tests. */
export interface SysFs {
  /** Names in a directory, sorted; none when it does not exist. */
  list(path: string): Promise<readonly string[]>
  /** A small file, or undefined. */
  read(path: string): Promise<string | undefined>
  /** The name of the directory that a link of /sys leads to, and of the one around it. */
  resolve(path: string): Promise<{ readonly name: string; readonly parent: string } | undefined>
  /** All of the path that a link of /sys leads to. */
  follow(path: string): Promise<string | undefined>
}

export function nodeSys(prefix = ''): SysFs {
  const at = (path: string): string => (prefix === '' ? path : join(prefix, path))
  return {
    async list(path) {
      try {
        return (await readdir(at(path))).sort()
      } catch {
        return []
      }
    },
    async read(path) {
      try {
        return await readFile(at(path), 'utf8')
      } catch {
        return undefined
      }
    },
    async resolve(path) {
      try {
        const target = await realpath(at(path))
        return { name: basename(target), parent: basename(join(target, '..')) }
      } catch {
        return undefined
      }
    },
    async follow(path) {
      try {
        return await realpath(at(path))
      } catch {
        return undefined
      }
    },
  }
}
