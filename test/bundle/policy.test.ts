import { expect, test } from 'vitest'
import { checkApplies, type DeviceFacts } from '../../bundle/policy.ts'
import { STATEMENT } from './fixture.ts'

const device: DeviceFacts = {
  product: 'demo',
  hardware: 'qemu-x86_64',
  installFloor: { epoch: 1, counter: 100 },
  securityFloor: { epoch: 1, counter: 50 },
}
/** The code of the refusal for a release of this number, or 'applies'. */
function outcome(epoch: number, counter: number, allowDowngrade?: boolean): string {
  const release = { ...STATEMENT, number: { epoch, counter } }
  try {
    checkApplies(release, device, allowDowngrade === undefined ? {} : { allowDowngrade })
  } catch (error) {
    return (error as { code: string }).code
  }
  return 'applies'
}

test('another product, other hardware', () => {
  const release = { ...STATEMENT, number: { epoch: 1, counter: 101 } }
  expect(() => checkApplies({ ...release, product: 'other' }, device)).toThrow(
    expect.objectContaining({ code: 'RELEASE_WRONG_PRODUCT' }),
  )
  expect(() => checkApplies({ ...release, hardware: ['rpi4', 'rpi5'] }, device)).toThrow(
    expect.objectContaining({ code: 'RELEASE_WRONG_HARDWARE' }),
  )
  expect(() => checkApplies({ ...release, hardware: ['rpi4', 'qemu-x86_64'] }, device)).not.toThrow()
})

test.each<[number, number, boolean | undefined, string]>([
  [1, 101, undefined, 'applies'],
  // The committed release again: a reinstall.
  [1, 100, undefined, 'applies'],
  [1, 99, undefined, 'RELEASE_BELOW_FLOOR'],
  [0, 5000, undefined, 'RELEASE_BELOW_FLOOR'],
  [1, 99, true, 'applies'],
  [1, 50, true, 'applies'],
  [1, 49, true, 'RELEASE_BELOW_FLOOR'],
  [0, 5000, true, 'RELEASE_BELOW_FLOOR'],
  [1, 10_100, undefined, 'applies'],
  [1, 10_101, undefined, 'RELEASE_TOO_FAR_AHEAD'],
  [1, Number.MAX_SAFE_INTEGER, true, 'RELEASE_TOO_FAR_AHEAD'],
  // A new epoch starts over.
  [2, 1, undefined, 'applies'],
  [2, 10_000, undefined, 'applies'],
  [2, 10_001, undefined, 'RELEASE_TOO_FAR_AHEAD'],
])('release %i.%i, downgrade %s: %s', (epoch, counter, allowDowngrade, want) => {
  expect(outcome(epoch, counter, allowDowngrade)).toBe(want)
})
