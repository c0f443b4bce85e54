import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { encodeBootCfg } from '../bootloader/boot-cfg.ts'
import {
  compareUboot,
  flagCases,
  lostCases,
  notedCases,
  startCases,
  stateCases,
  tornCases,
} from '../test/helpers/uboot-cases.ts'
import { UBOOT_MACHINES, ubootDecides, ubootLab } from '../test/helpers/uboot-qemu.ts'

// npm run uboot: every boot state of the enumeration, asked of the real U-Boot on each processor and of the pure machine.

const args = `bistable.root=${'5'.repeat(64)} console=ttyS0`
const cfg = encodeBootCfg({ release: '0.1', args })
const flags = [0, 1, 2, 15, 16, 31, 127, 128, 129, 239, 240, 253, 254, 255]
const cases = [...stateCases(), ...flagCases(flags), ...tornCases(1), ...startCases(), ...lostCases(), ...notedCases()]
/** Cases for one start of the emulator. */
const BATCH = 500
let differing = 0

for (const [name, machine] of Object.entries(UBOOT_MACHINES)) {
  const dir = await mkdtemp(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'bistable-uboot-'))
  try {
    const lab = await ubootLab(machine, dir, cfg, BATCH)
    const start = Date.now()
    for (let from = 0; from < cases.length; from += BATCH) {
      const batch = cases.slice(from, from + BATCH)
      const got = ubootDecides(lab, batch)
      for (const [n, each] of batch.entries()) {
        const answer = got[n]
        if (answer === undefined) throw new Error(`no answer about ${each.name}`)
        try {
          compareUboot(each, answer, args)
        } catch (error) {
          differing++
          console.log(`uboot: ${name}: ${error instanceof Error ? error.message : error}`)
        }
      }
    }
    const seconds = ((Date.now() - start) / 1000).toFixed(0)
    console.log(`uboot: ${name}: ${cases.length} boot states in ${seconds} s`)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}
console.log(`uboot: ${cases.length} boot states, 2 processors, ${differing} decisions differ from the machine`)
process.exitCode = differing === 0 ? 0 : 1
