import { chmodSync, copyFileSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { build } from 'esbuild'

const root = resolve(import.meta.dirname, '../..')

/**
 * Puts `bistable`, made from these sources, into a folder, for shells that have it first in their PATH. One thing is
 * changed: passphrases are stretched at a small cost, since pages open dozens of keys.
 */
export async function installProgram(folder: string): Promise<void> {
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'))
  // Laid out as the package is: what the program reads beside itself and above.
  copyFileSync(join(root, 'package.json'), join(folder, 'package.json'))
  const dist = join(folder, 'dist')
  const outfile = join(dist, 'bistable.mjs')
  const shared = { absWorkingDir: root, bundle: true, platform: 'node', format: 'esm', logLevel: 'error' } as const
  await build({
    ...shared,
    entryPoints: ['bundle/squashfs/worker.ts'],
    outfile: join(dist, 'squashfs-worker.mjs'),
    external: ['zstd-napi'],
  })
  await build({
    ...shared,
    entryPoints: ['main.ts'],
    outfile,
    external: ['zstd-napi', 'pkcs11js'],
    banner: {
      js: "import { createRequire as makeRequire } from 'node:module'\nconst require = makeRequire(import.meta.url)",
    },
    plugins: [{ name: 'quick-scrypt', setup: (made) => made.onLoad({ filter: /keys\/file-signer\.ts$/ }, quick) }],
  })
  for (const script of ['initramfs/init', 'initramfs/state.sh', 'bootloader/grub.cfg'])
    copyFileSync(join(root, script), join(dist, basename(script)))
  writeFileSync(join(folder, 'bistable'), `#!/bin/sh\nexec '${process.execPath}' '${outfile}' "$@"\n`)
  chmodSync(join(folder, 'bistable'), 0o755)
}

function quick({ path }: { path: string }) {
  const source = readFileSync(path, 'utf8')
  const contents = source.replace('SCRYPT_LOG_N = 17', 'SCRYPT_LOG_N = 4')
  if (contents === source) throw new Error('keys/file-signer.ts has no SCRYPT_LOG_N = 17 any more')
  return { contents, loader: 'ts' as const }
}
