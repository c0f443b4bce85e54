import type { InitramfsOptions } from '../initramfs/build.ts'
import { type InitramfsVm, makeVm } from '../test/helpers/initramfs-vm.ts'

/**
 * What declared places cost at a boot: the real initramfs on a real kernel in the emulator, from its stage `data` to its stage
 * `switch`, by the kernel's clock. The first boot of a release copies what is seeded.
 */

const INIT = '#!/bin/sh\n/bin/busybox sync\n/bin/busybox poweroff -f\n'
const RUNS = 3
const PLACES = 8

const numbered = (text: string) => Array.from({ length: PLACES }, (_, n) => `${text}${n}`)
const variants: Readonly<Record<string, InitramfsOptions>> = {
  nothing: {},
  [`${PLACES} data`]: { mounts: numbered('/opt/p').map((path) => ({ path, policy: 'data' })) },
  [`${PLACES} image in one overlay`]: {
    mounts: [
      { path: '/opt', policy: 'overlay' },
      ...numbered('/opt/p').map((path) => ({ path, policy: 'image' }) as const),
    ],
  },
  [`${PLACES} tmpfs`]: { mounts: numbered('/opt/p').map((path) => ({ path, policy: 'tmpfs', sizeMiB: 1 })) },
  [`${PLACES} overlay`]: { mounts: numbered('/opt/p').map((path) => ({ path, policy: 'overlay' })) },
}

/** Milliseconds between the two stages of one boot. */
async function boot(vm: InitramfsVm, slot: ReturnType<InitramfsVm['fill']>): Promise<number> {
  const console = await vm.boot('a', slot, {})
  const at = (stage: string) => {
    const found = new RegExp(`stage ${stage} .*uptime=([0-9.]+)`).exec(console)?.[1]
    if (found === undefined) throw new Error(`no stage ${stage} in:\n${console}`)
    return Number(found) * 1000
  }
  return Math.round(at('switch') - at('data'))
}

// usage: npm run bench-mounts -- [WORD]: only those whose name has it
const wanted = process.argv[2] ?? ''
for (const [name, options] of Object.entries(variants).filter(([name]) => name.includes(wanted))) {
  const vm = await makeVm(options)
  try {
    const files = Object.fromEntries(numbered('opt/p').map((path) => [`${path}/file`, 'content\n']))
    const slot = vm.fill('a', { 'sbin/init': INIT, ...files })
    const first = await boot(vm, slot)
    const later: number[] = []
    for (let n = 0; n < RUNS; n++) later.push(await boot(vm, slot))
    later.sort((a, b) => a - b)
    const median = later[Math.floor(RUNS / 2)]
    process.stdout.write(
      `${name.padEnd(24)} first boot ${first} ms, then ${median} ms (${later[0]} .. ${later.at(-1)})\n`,
    )
  } finally {
    vm.remove()
  }
}
