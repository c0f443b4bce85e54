import { bundleErrors } from './errors.ts'
import { compareNumbers, formatNumber } from './fields.ts'
import type { ReleaseNumber, ReleaseStatement } from './types.ts'

/** Whether an authentic release may be installed on this device. Pure. */

/** A counter further above the install floor than this is a mistake or a stolen key burning numbers. */
export const MAX_COUNTER_STEP = 10_000

export interface DeviceFacts {
  readonly product: string
  readonly hardware: string
  /** The committed release. */
  readonly installFloor: ReleaseNumber
  /** Nothing older than this even boots. */
  readonly securityFloor: ReleaseNumber
}

/**
 * Refuses a release that is not for this device or too old for it. The committed release itself may be installed
 * again. `allowDowngrade` lowers the install floor to the security floor, never below.
 * @throws RELEASE_WRONG_PRODUCT, RELEASE_WRONG_HARDWARE, RELEASE_BELOW_FLOOR, RELEASE_TOO_FAR_AHEAD
 */
export function checkApplies(
  release: ReleaseStatement,
  device: DeviceFacts,
  options: { readonly allowDowngrade?: boolean } = {},
): void {
  const { number } = release
  if (release.product !== device.product)
    throw bundleErrors.RELEASE_WRONG_PRODUCT(`the release is for '${release.product}', this is '${device.product}'`)
  if (!release.hardware.includes(device.hardware))
    throw bundleErrors.RELEASE_WRONG_HARDWARE(
      `the release runs on ${release.hardware.join(', ')}, this is ${device.hardware}`,
    )
  if (compareNumbers(number, device.securityFloor) < 0)
    throw bundleErrors.RELEASE_BELOW_FLOOR(
      `release ${formatNumber(number)} is below the security floor ${formatNumber(device.securityFloor)}`,
    )
  if (options.allowDowngrade !== true && compareNumbers(number, device.installFloor) < 0)
    throw bundleErrors.RELEASE_BELOW_FLOOR(
      `release ${formatNumber(number)} is older than ${formatNumber(device.installFloor)}, which is committed`,
    )
  // In a new epoch counters start again at a small number.
  const from = number.epoch === device.installFloor.epoch ? device.installFloor.counter : 0
  if (number.counter - from > MAX_COUNTER_STEP)
    throw bundleErrors.RELEASE_TOO_FAR_AHEAD(
      `release ${formatNumber(number)} is more than ${MAX_COUNTER_STEP} above ${formatNumber(device.installFloor)}`,
    )
}
