import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import type { Timeline } from './timeline.ts'

// The release engineer's side, through the command line as anyone would use it.

const root = resolve(import.meta.dirname, '..')

export class CommandFailed extends Error {}

/** Runs `bistable …`; returns standard output. */
export async function bistable(args: readonly string[], signal?: AbortSignal): Promise<string> {
  const child = spawn(process.execPath, [join(root, 'bistable.mjs'), ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(signal && { signal }),
  })
  let out = ''
  let err = ''
  child.stdout.on('data', (b: Buffer) => {
    out += b.toString()
  })
  child.stderr.on('data', (b: Buffer) => {
    err = (err + b.toString()).slice(-16_384)
  })
  const [code] = (await once(child, 'close')) as [number | null]
  if (code !== 0) throw new CommandFailed(`bistable ${args.join(' ')} ended with ${code}:\n${err}${out.slice(-4096)}`)
  return out
}

export interface Workshop {
  readonly folder: string
  readonly site: string
  readonly keys: string
  readonly rootStatement: string
  /** lint, build, sign, pack: from an image reference to a bundle file. */
  makeBundle(image: string, release: { readonly version: string; readonly counter: number }): Promise<string>
  publish(bundle: string): Promise<void>
  makeDisk(
    bundle: string,
    output: string,
    sizes: { readonly rootfs: string; readonly boot: string; readonly data: string },
    bootloader: readonly string[],
  ): Promise<void>
}

export async function openWorkshop(
  folder: string,
  timeline: Timeline,
  { level, deltas }: { readonly level: number; readonly deltas: number },
): Promise<Workshop> {
  const keys = join(folder, 'keys')
  const site = join(folder, 'site')
  const secret = join(folder, 'passphrase')
  await writeFile(secret, 'a passphrase of the demo\n', { mode: 0o600 })
  await bistable(['keys', 'init', keys, '--product', 'demo-appliance', '--passphrase-file', secret])
  timeline.say('publisher', 'keys made: root (2 of 3), release, fleet; root statement 1 signed')
  const key = (name: string) => ['--key', join(keys, `${name}.key`), '--passphrase-file', secret]
  return {
    folder,
    site,
    keys,
    rootStatement: join(keys, 'root.json'),
    makeBundle: async (image, { version, counter }) => {
      const build = join(folder, `${version}.build`)
      const bundle = join(folder, `${version}.bundle`)
      await bistable([
        'build',
        image,
        '--output',
        build,
        '--version',
        version,
        '--counter',
        String(counter),
        '--level',
        String(level),
      ])
      timeline.say(
        'publisher',
        `release 1.${counter} (${version}) built from ${image.split(':').at(-1)}, no key in sight`,
      )
      await bistable(['sign', build, ...key('release-1')])
      await bistable(['pack', build, '--roots', join(keys, 'roots'), '--output', bundle])
      timeline.say('publisher', `release 1.${counter} signed and packed`)
      return bundle
    },
    publish: async (bundle) => {
      await bistable([
        'publish',
        bundle,
        '--to',
        site,
        '--channel',
        'stable',
        '--root',
        join(keys, 'root.json'),
        '--deltas',
        String(deltas),
        ...key('fleet-1'),
      ])
      timeline.say('publisher', `published ${bundle.split('/').at(-1)} to channel stable`)
    },
    makeDisk: async (bundle, output, sizes, bootloader) => {
      await bistable([
        'disk',
        bundle,
        '--root',
        join(keys, 'root.json'),
        '--output',
        output,
        '--slot-rootfs',
        sizes.rootfs,
        '--slot-boot',
        sizes.boot,
        '--data',
        sizes.data,
        ...bootloader,
      ])
      timeline.say('publisher', 'flashable disk image made: ESP, boot state, two slots, data')
    },
  }
}

export interface SiteServer {
  readonly port: number
  close(): Promise<void>
}

/** `bistable serve` on a free loopback port. */
export async function serveSite(folder: string): Promise<SiteServer> {
  const child = spawn(
    process.execPath,
    [join(root, 'bistable.mjs'), 'serve', folder, '--port', '0', '--host', '127.0.0.1'],
    {
      stdio: ['ignore', 'pipe', 'ignore'],
    },
  )
  const lines = createInterface({ input: child.stdout })
  const port = await new Promise<number>((ready, reject) => {
    lines.on('line', (line) => {
      const found = /http:\/\/127\.0\.0\.1:(\d+)/.exec(line)?.[1]
      if (found !== undefined) ready(Number(found))
    })
    child.on('close', (code) => reject(new CommandFailed(`bistable serve ended with ${code}`)))
  })
  return {
    port,
    close: async () => {
      child.kill('SIGTERM')
      if (child.exitCode === null) await once(child, 'close')
    },
  }
}
