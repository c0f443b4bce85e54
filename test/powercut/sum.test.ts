import { expect, test } from 'vitest'
import { sumOf } from './sum.ts'

const MODEL =
  'power cuts: 100 states, 20 bootloader decisions, 0 unbootable, 0 floors lowered, 2/2 broken writers caught'
const UBOOT =
  'power cuts, U-Boot: 48879 states, 912 bootloader decisions, 0 unbootable or otherwise wrong, 5/5 broken writers caught'
const LIFE =
  'power cuts, recorded fall: 7 states, 5 bootloader decisions, 0 unbootable, 0 floors lowered, 0 otherwise wrong'
const KILLS = (cuts: number, stranded: number) =>
  `power cuts of an emulated device: qemu-x86-bios, seed ${cuts}, ${cuts} cuts, 3 times up again, ${stranded} stranded, 0 wrong, 1 further updates`

test('parts of runs are added up by kind; what each part has whole counts once', () => {
  const logs = [
    `power cuts: seed 1\n${MODEL}\n12 s\n`,
    `${MODEL}\n${UBOOT}\n`,
    `${UBOOT}\n${LIFE}`,
    KILLS(20, 0),
    KILLS(9, 0),
  ]
  expect(sumOf(logs)).toEqual({
    ok: true,
    lines: [
      'power cuts, 2 runs: 200 states, 40 bootloader decisions, 0 unbootable, 0 floors lowered, 4/4 broken writers caught',
      'power cuts, U-Boot, 2 runs: 48879 states, 1824 bootloader decisions, 0 unbootable or otherwise wrong, 5/5 broken writers caught',
      'power cuts, recorded fall, 1 runs: 7 states, 5 bootloader decisions, 0 unbootable, 0 floors lowered, 0 otherwise wrong',
      'power cuts of an emulated device, 2 runs: 29 cuts, 6 times up again, 0 stranded, 0 wrong, 2 further updates',
    ],
  })
})

test('one device that was stranded, one broken writer that got through, or no run at all is not well', () => {
  expect(sumOf([KILLS(20, 0), KILLS(9, 1)]).ok).toBe(false)
  expect(sumOf([MODEL.replace('2/2', '1/2')]).ok).toBe(false)
  expect(sumOf([LIFE.replace('0 otherwise', '1 otherwise')]).ok).toBe(false)
  expect(sumOf([`other: a torn record (update, 3 of 71)\n${MODEL}`]).ok).toBe(false)
  expect(sumOf([MODEL]).ok).toBe(true)
  expect(sumOf(['killed\n'])).toEqual({ lines: [], ok: false })
})
