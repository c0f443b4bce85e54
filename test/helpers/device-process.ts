import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { join, resolve } from 'node:path'
import { build } from 'esbuild'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { freshState } from '../../bootloader/machine.ts'
import { signedRoot } from '../keys/helpers.ts'
import { type Followed, follow } from './process.ts'

/**
 * The device's program as a process of its own, on a made-up device: a folder with everything the program looks for, slots
 * and boot state as files. Only the kernel command line is written by hand.
 */

const REPO = resolve(import.meta.dirname, '../..')
const MiB = 1 << 20

/** Puts the device's command, one bundled file made from these sources, into a folder. @returns its path */
export async function deviceProgram(folder: string): Promise<string> {
  const outfile = join(folder, 'bistable.mjs')
  const modules = join(folder, 'node_modules')
  if (!existsSync(modules)) symlinkSync(join(REPO, 'node_modules'), modules)
  await build({
    absWorkingDir: REPO,
    entryPoints: ['device/main.ts'],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20.19',
    external: ['zstd-napi'],
    banner: {
      js: "import { createRequire as makeRequire } from 'node:module'\nconst require = makeRequire(import.meta.url)",
    },
    logLevel: 'error',
  })
  return outfile
}

export interface MadeUp {
  /** More fields of system.json. */
  readonly system?: Readonly<Record<string, unknown>>
  readonly anchor?: Uint8Array
}

/** Makes a device that runs release 0.2 in slot a, for `BISTABLE_ROOT`. */
export async function madeUpDevice(root: string, { system = {}, anchor }: MadeUp = {}): Promise<void> {
  const at = (path: string) => join(root, path)
  for (const folder of ['usr/lib/bistable', 'usr/bin', 'proc', 'etc/bistable', 'disk', 'data', 'run'])
    mkdirSync(at(folder), { recursive: true })
  writeFileSync(
    at('usr/lib/bistable/system.json'),
    JSON.stringify({ product: 'demo', hardware: ['qemu-x86_64'], ...system }),
  )
  writeFileSync(at('usr/lib/bistable/root.json'), anchor ?? (await signedRoot({}, [1, 2])))
  writeFileSync(at('etc/machine-id'), '0123456789abcdef0123456789abcdef\n')
  const slots = (slot: string) => ({ boot: at(`disk/boot-${slot}`), rootfs: at(`disk/rootfs-${slot}`) })
  const places = { bootstate: at('disk/bootstate'), slots: { a: slots('a'), b: slots('b') } }
  writeFileSync(at('etc/bistable/places.json'), JSON.stringify(places))
  writeFileSync(places.bootstate, await bootstateImage(freshState('a')))
  for (const place of Object.values(places.slots).flatMap((slot) => Object.values(slot))) {
    writeFileSync(place, '')
    truncateSync(place, MiB)
  }
  bootsInto(root, 'a', '0.2', 'committed')
}

/** What the bootloader says of the next start. */
export function bootsInto(root: string, slot: string, release: string, boot: string, left = 0): void {
  const line = `quiet bistable.floor=0.1 bistable.slot=${slot} bistable.release=${release} bistable.boot=${boot} bistable.left=${left} bistable.why=ok`
  writeFileSync(join(root, 'proc/cmdline'), `${line}\n`)
}

/** Flags of `node` and environment. */
interface Launch {
  readonly flags: readonly string[]
  readonly env: Readonly<Record<string, string>>
}

/** What the launcher on a device gives its agent. */
export const AS_LAUNCHED = asLaunched(readFileSync(join(REPO, 'device/bin/bistable'), 'utf8'))

function asLaunched(launcher: string): Launch {
  const flags = / "\$agent\/node" (--.*) "\$agent\/bistable\.mjs"/.exec(launcher)?.[1]
  const exported = /^ *export (.*)$/m.exec(launcher)?.[1]
  if (flags === undefined || exported === undefined) throw new Error('device/bin/bistable is not as expected')
  const pairs = exported.split(' ').map((text) => text.split('=') as [string, string])
  return { flags: flags.split(' '), env: Object.fromEntries(pairs) }
}

/** Starts the agent. @param as by default without any flag @param more environment */
export function startAgent(
  program: string,
  root: string,
  {
    as = { flags: [], env: {} },
    more = {},
    node = process.execPath,
  }: { as?: Launch; more?: Readonly<Record<string, string>>; node?: string } = {},
): Followed {
  const env = { ...process.env, ...as.env, ...more, BISTABLE_ROOT: root }
  return follow(spawn(node, [...as.flags, program, 'agent'], { env }))
}

/** Asks the agent over its socket. @returns what it answers, all lines */
export function askAgent(root: string, verb: string, args: object = {}): Promise<string> {
  return new Promise((done, failed) => {
    const call = request(
      { socketPath: join(root, 'run/bistable/agent.sock'), method: 'POST', path: `/v1/${verb}` },
      (answer) => {
        let text = ''
        answer.setEncoding('utf8')
        answer.on('data', (piece: string) => {
          text += piece
        })
        answer.on('end', () => done(text))
        answer.on('error', failed)
      },
    )
    call.on('error', failed)
    call.end(JSON.stringify(args))
  })
}
