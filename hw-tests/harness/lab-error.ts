/** The lab failed, not the product: console lost, emulator gone, power driver silent. Never mixed with an assertion. */
export class LabError extends Error {
  override readonly name = 'LabError'
}

/** The device under test did not do what was waited for; carries the last console lines. */
export class DutError extends Error {
  override readonly name = 'DutError'
}
