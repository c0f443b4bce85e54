// Makes dist/hil: the harness for tests of one's own boards, as the package's entry points bistable/hil, bistable/hil/places,
// bistable/hil/reporter and bistable/hil/setup, with its types. vitest and serialport are the project's own. usage: node scripts/build-hil.mjs [FOLDER]
import { execFile } from 'node:child_process'
import { readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { build } from 'esbuild'

const root = resolve(import.meta.dirname, '..')
const folder = resolve(root, process.argv[2] ?? 'dist/hil')
const require = createRequire(import.meta.url)

await rm(folder, { recursive: true, force: true })
await build({
  absWorkingDir: root,
  entryPoints: {
    index: 'hw-tests/index.ts',
    places: 'hw-tests/places/entry.ts',
    reporter: 'hw-tests/report/reporter.ts',
    setup: 'hw-tests/setup-lab.ts',
  },
  outdir: folder,
  outExtension: { '.js': '.mjs' },
  bundle: true,
  // What the three share exists once.
  splitting: true,
  platform: 'node',
  format: 'esm',
  target: 'node20.19',
  keepNames: true,
  legalComments: 'none',
  logLevel: 'warning',
  external: ['vitest', 'serialport'],
})

const types = join(folder, 'types')
const tsc = join(dirname(require.resolve('typescript/package.json')), 'bin', 'tsc')
const options = ['--noEmit', 'false', '--declaration', '--emitDeclarationOnly', '--outDir', types]
await promisify(execFile)(process.execPath, [tsc, '-p', 'hw-tests/tsconfig.types.json', ...options], { cwd: root })
// Declarations name each other as the sources do; whoever reads them has only declarations.
for (const name of await readdir(types, { recursive: true })) {
  if (!name.endsWith('.d.ts')) continue
  const text = await readFile(join(types, name), 'utf8')
  await writeFile(join(types, name), text.replace(/(['"]\.{1,2}\/[^'"]+)\.ts(['"])/g, '$1.js$2'))
}
console.log('build: dist/hil')
