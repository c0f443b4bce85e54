import { describe, expect, test } from 'vitest'
import { have } from '../helpers/run.ts'
import { campaign, SAMPLE } from './campaign.ts'

const ready = have('grub-emu', 'sgdisk', 'mkfs.fat', 'mcopy')

describe.skipIf(!ready)('power cuts', () => {
  test('a sample of the campaign: every disk boots, nothing promised is lost, every broken writer is caught', async () => {
    const said: string[] = []
    const outcome = await campaign(SAMPLE, (line) => said.push(line))
    console.log(said.at(-1))
    expect(outcome.ok, said.join('\n')).toBe(true)
    expect(outcome.counts, said.join('\n')).toEqual({ unbootable: 0, floor: 0, other: 0 })
    expect(outcome.states).toBeGreaterThanOrEqual(5000)
    expect(outcome.decisions).toBeGreaterThan(500)
    expect(outcome.secondUpdates).toBeGreaterThan(5)
    expect([...outcome.caught].filter(([, why]) => why === undefined)).toEqual([])
    expect([...outcome.caught.keys()]).toEqual([
      'no flush',
      'wrong order',
      'both copies at once',
      'rename without fsync',
      'arm before verify',
      'counter not decremented',
      'one copy only',
    ])
    expect(outcome.line).toBe(
      `power cuts: ${outcome.states} states, ${outcome.decisions} bootloader decisions, 0 unbootable, 0 floors lowered, 7/7 broken writers caught`,
    )
  }, 300_000)
})
