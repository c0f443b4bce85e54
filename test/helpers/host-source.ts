import { readdirSync, realpathSync, statSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { InitramfsSource } from '../../initramfs/build.ts'

/** An initramfs from this machine's programs and another folder's kernel. */
export function hostSource(kernelFolder: string): InitramfsSource {
  // Resolved paths are cut by its length: it may stand behind a link.
  const kernelRoot = realpathSync(kernelFolder)
  const rootOf = (path: string): string =>
    /^(?:boot|lib\/modules|usr\/lib\/modules)(?:\/|$)/.test(path) ? kernelRoot : '/'
  return {
    resolve(path) {
      const root = rootOf(path)
      try {
        return realpathSync(join(root, path)).slice(root === '/' ? 1 : root.length + 1)
      } catch {
        return undefined
      }
    },
    read: (path) => readFile(join(rootOf(path), path)),
    list(path) {
      const full = join(rootOf(path), path)
      return statSync(full).isDirectory() ? readdirSync(full).sort() : []
    },
  }
}
