// Makes dist/: bistable.mjs (the publisher's command line) and device/bistable.mjs (the agent), each one file with the program
// of its compression threads (squashfs-worker.mjs) and the native zstd addon beside it; device/ask.cjs, the command that asks an agent. usage: node scripts/build.mjs [FOLDER [PROGRAM.ts]]
// PROGRAM: one more that runs as the agent does, device/PROGRAM.mjs; benches have such.
import { chmod, copyFile, mkdir, readFile, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { basename, dirname, join, resolve } from 'node:path'
import { build } from 'esbuild'
import { withoutBaseTable } from './plain-base.mjs'

const root = resolve(import.meta.dirname, '..')
const dist = resolve(root, process.argv[2] ?? 'dist')
const require = createRequire(import.meta.url)
const addonLoader = require.resolve('zstd-napi/binding.js')
const addon = join(dirname(addonLoader), 'build', 'Release', 'binding.node')

/** zstd-napi looks for its addon inside its own package; in the bundle it stands beside the file. */
const addonBeside = {
  name: 'addon-beside',
  setup(builder) {
    builder.onLoad({ filter: /[/\\]zstd-napi[/\\]binding\.js$/ }, () => ({
      contents: "module.exports = require('./binding.node')",
      loader: 'js',
    }))
    builder.onResolve({ filter: /^\.\/binding\.node$/ }, ({ path }) => ({ path, external: true }))
  },
}

/**
 * Node.js's own modules by require: an ES import of one reads all its exports at once, and those of node:http and
 * node:crypto load what nobody here uses (an HTTP client with WebSockets: some 20 ms and 9 MiB at each start).
 */
const builtinsByRequire = {
  name: 'builtins-by-require',
  setup(builder) {
    builder.onResolve({ filter: /^node:/ }, ({ path, kind }) =>
      kind === 'import-statement' ? { path, namespace: 'builtin' } : { path, external: true },
    )
    builder.onLoad({ filter: /.*/, namespace: 'builtin' }, ({ path }) => ({
      contents: `module.exports = require('${path}')`,
      loader: 'js',
    }))
  },
}

/** The device verifies a few signatures at a time: see plain-base.mjs. */
const plainBase = {
  name: 'plain-base',
  setup(builder) {
    builder.onLoad({ filter: /[/\\]@noble[/\\]ed25519[/\\]index\.js$/ }, async ({ path }) => ({
      contents: withoutBaseTable(await readFile(path, 'utf8')),
      loader: 'js',
    }))
  },
}

/**
 * Of the MQTT package the client alone: the agent brings its own sockets. What it has for browsers and for old Node.js
 * (WebSockets, SOCKS, timers in a worker, a copy of Node's streams) would stay in the memory of every idle device, as would
 * the 65,536 buffers that its packets make ahead, one for each number of two bytes.
 */
const mqttClientAlone = {
  name: 'mqtt-client-alone',
  setup(builder) {
    const client = join(dirname(require.resolve('mqtt')), 'lib', 'client.js')
    const virtual = {
      mqtt: [
        "require('mqtt-packet').writeToStream.cacheNumbers = false",
        `module.exports = { MqttClient: require(${JSON.stringify(client)}).default }`,
      ].join('\n'),
      'readable-stream': "module.exports = require('node:stream')",
      'worker-timers': 'module.exports = {}',
    }
    builder.onResolve({ filter: /^(mqtt|readable-stream|worker-timers)$/ }, ({ path }) => ({
      path,
      namespace: 'mqtt-client-alone',
    }))
    builder.onLoad({ filter: /.*/, namespace: 'mqtt-client-alone' }, ({ path }) => ({
      contents: virtual[path],
      loader: 'js',
      // Its own mqtt-packet, whatever other version stands elsewhere.
      resolveDir: dirname(client),
    }))
  },
}

/** @param minify a device reads its agent from a slow medium at each start; function names in stack traces stay */
async function bundle(entry, folder, { name = 'bistable.mjs', minify = false, plugins = [] } = {}) {
  const script = name.endsWith('.cjs')
  await mkdir(folder, { recursive: true })
  await build({
    absWorkingDir: root,
    entryPoints: [entry],
    outfile: join(folder, name),
    bundle: true,
    platform: 'node',
    format: script ? 'cjs' : 'esm',
    target: 'node20.19',
    // Stack traces stay readable without a source map.
    keepNames: true,
    minify,
    legalComments: 'none',
    logLevel: 'warning',
    plugins: [addonBeside, builtinsByRequire, ...plugins],
    // Native and optional: found in node_modules when a PKCS#11 key is asked for.
    external: ['pkcs11js'],
    banner: {
      js: [
        '#!/usr/bin/env node',
        ...(script
          ? []
          : [
              "import { createRequire as bistableCreateRequire } from 'node:module'",
              'const require = bistableCreateRequire(import.meta.url)',
            ]),
      ].join('\n'),
    },
  })
  await chmod(join(folder, name), 0o755)
  await copyFile(addon, join(folder, 'binding.node'))
}

await rm(dist, { recursive: true, force: true })
await bundle('main.ts', dist)
for (const folder of [dist, join(dist, 'device')])
  await bundle('bundle/squashfs/worker.ts', folder, { name: 'squashfs-worker.mjs', minify: folder !== dist })
// Scripts that run elsewhere stand as files beside the code that packs them.
await copyFile(join(root, 'bootloader', 'grub.cfg'), join(dist, 'grub.cfg'))
await copyFile(join(root, 'bootloader', 'boot.cmd'), join(dist, 'boot.cmd'))
for (const script of ['init', 'state.sh']) await copyFile(join(root, 'initramfs', script), join(dist, script))
await bundle('device/main.ts', join(dist, 'device'), { minify: true, plugins: [plainBase, mqttClientAlone] })
// CommonJS: Node.js starts it sooner.
await bundle('device/ask.ts', join(dist, 'device'), { name: 'ask.cjs', minify: true })
const [, , , program] = process.argv
if (program !== undefined)
  await bundle(program, join(dist, 'device'), {
    name: `${basename(program, '.ts')}.mjs`,
    minify: true,
    plugins: [plainBase, mqttClientAlone],
  })
console.log('build: dist/bistable.mjs, dist/device/bistable.mjs')
