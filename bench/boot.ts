import { spawn } from 'node:child_process'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { processCpuSeconds, tool, toolEnv } from './measure.ts'
import { makePlainInitrd } from './plain-initrd.ts'
import { goal, type Report, rowOf } from './report.ts'
import type { Workshop } from './workshop.ts'

/** From kernel start to init: our initramfs, against a minimal one that mounts the same SquashFS without verity. */

/** GPT places of docs/architecture.md. */
const ROOTFS_A = '/dev/vda4'
const BOOT_SECONDS = 300
const QUIET = 'quiet no_timer_check'

interface Boot {
  /** The guest's clock since the kernel started, when init ran its first line. */
  readonly seconds: number
  /** This machine's clock, from the emulator's start to that line. */
  readonly wallSeconds: number
  /** Processor time of the emulator until then: steadier than a clock on a busy machine, but blind to waiting. */
  readonly cpuSeconds: number
  readonly console: string
}

interface Machine {
  readonly kernel: string
  readonly initrd: string
  readonly append: string
  readonly disk: string
  /** False: what the guest writes is forgotten. */
  readonly keep: boolean
}

export async function benchBoot(workshop: Workshop, runs: number): Promise<Report> {
  const { build, bundle } = await workshop.release()
  const folder = join(workshop.folder, 'boot')
  await mkdir(folder)
  const from = (name: string) => join(folder, name)
  for (const name of ['vmlinuz', 'initrd.img', 'boot.cfg'])
    await tool('mcopy', ['-i', join(build, 'boot.img'), `::${name}`, from(name)])
  const disk = from('disk.img')
  await workshop.bistable(['disk', bundle, '--root', workshop.rootStatement, '--output', disk, '--data', '128M'])
  await makePlainInitrd({
    folder: from('plain'),
    ours: from('initrd.img'),
    rootfs: join(build, 'rootfs.img'),
    device: ROOTFS_A,
    output: from('plain.img'),
  })
  const args = /^bistable_args=(.*)$/m.exec(await readFile(from('boot.cfg'), 'latin1'))?.[1]
  if (args === undefined) throw new Error('boot.cfg names no arguments')
  const common = { kernel: from('vmlinuz'), disk }
  // As grub.cfg would put it for a committed slot. On a busy machine an emulated timer may tick too late for the
  // kernel's check of it, which panics: both go without that check.
  const slot = 'bistable.slot=a bistable.release=1.1 bistable.boot=committed bistable.left=0 bistable.why=ok'
  const ours = { ...common, initrd: from('initrd.img'), append: `panic=5 ${args} ${slot} ${QUIET}` }
  const plain = { ...common, initrd: from('plain.img'), append: `panic=5 console=ttyS0,115200 ${QUIET}` }

  workshop.say('boot: first boot of the release, which makes /etc and seeds /var')
  const first = await boot({ ...ours, keep: true })
  const found: { ours: Boot[]; plain: Boot[] } = { ours: [], plain: [] }
  for (let run = 0; run < runs; run++) {
    workshop.say(`boot: run ${run + 1} of ${runs}`)
    found.plain.push(await boot({ ...plain, keep: false }))
    found.ours.push(await boot({ ...ours, keep: false }))
  }
  const guest = (boots: readonly Boot[]) => boots.map(({ seconds }) => ({ seconds }))
  const wall = (boots: readonly Boot[]) =>
    boots.map(({ wallSeconds, cpuSeconds }) => ({ seconds: wallSeconds, cpuSeconds }))
  const rows = [
    rowOf('our initramfs: kernel start to init', guest(found.ours)),
    rowOf('minimal initramfs: kernel start to init', guest(found.plain)),
    rowOf('our initramfs: emulator start to init', wall(found.ours)),
    rowOf('minimal initramfs: emulator start to init', wall(found.plain)),
    rowOf('our initramfs, first boot of a release', guest([first])),
  ]
  const more = (a: number, b: number): number => (rows[a]?.seconds?.median ?? 0) - (rows[b]?.seconds?.median ?? 0)
  return {
    name: 'boot',
    runs,
    rows,
    goals: [goal('kernel start to init, more than without verity', more(0, 1), 's', 0.5)],
    notes: [
      `by the emulator's start: ${more(2, 3).toFixed(2)} s more; QEMU TCG, 1 processor`,
      `median boot, ours: ${stages(middle(found.ours).console)}`,
      `median boot, minimal: ${stages(middle(found.plain).console)}`,
    ],
  }
}

function middle(boots: readonly Boot[]): Boot {
  const found = [...boots].sort((a, b) => a.seconds - b.seconds)[Math.floor(boots.length / 2)]
  if (found === undefined) throw new RangeError('no boot')
  return found
}

/** "start 3.10, find 3.60, …": seconds since kernel start. */
function stages(console: string): string {
  const found = [...console.matchAll(/-init: stage (\w+) .*?uptime=([\d.]+)/g)]
  const init = initLine(console)
  return [...found.map(([, stage, at]) => `${stage} ${at}`), ...(init === undefined ? [] : [`init ${init}`])].join(', ')
}

const initLine = (console: string): string | undefined => /bench: init uptime=([\d.]+)/.exec(console)?.[1]

function boot(machine: Machine): Promise<Boot> {
  const args = [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-serial', 'stdio'],
    ...['-machine', 'q35,accel=tcg', '-cpu', 'max', '-smp', '1', '-m', '768'],
    ...['-kernel', machine.kernel, '-initrd', machine.initrd, '-append', machine.append],
    ...['-drive', `file=${machine.disk},format=raw,if=virtio,cache=unsafe,snapshot=${machine.keep ? 'off' : 'on'}`],
  ]
  const start = performance.now()
  return new Promise((resolve, reject) => {
    const child = spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'pipe', 'pipe'], env: toolEnv })
    let console = ''
    let wallSeconds: number | undefined
    let cpuSeconds = 0
    const hung = setTimeout(() => child.kill('SIGKILL'), BOOT_SECONDS * 1000)
    child.stdout.setEncoding('latin1').on('data', (text: string) => {
      console = (console + text).slice(-200_000)
      if (initLine(console) === undefined || wallSeconds !== undefined || child.pid === undefined) return
      wallSeconds = (performance.now() - start) / 1000
      cpuSeconds = processCpuSeconds(child.pid)
    })
    child.stderr.setEncoding('latin1').on('data', (text: string) => {
      console += text
    })
    child.once('error', reject)
    child.once('close', (code) => {
      clearTimeout(hung)
      const line = initLine(console)
      if (code !== 0 || line === undefined || wallSeconds === undefined)
        reject(new Error(`no init came up; the emulator ended with ${code}:\n${console.slice(-4000)}`))
      else resolve({ seconds: Number(line), wallSeconds, cpuSeconds, console })
    })
  })
}
