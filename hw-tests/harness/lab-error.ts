/** The lab failed, not the product: console lost, emulator gone, power driver silent. Never mixed with an assertion. */
export class LabError extends Error {
  override readonly name = 'LabError'
}

/** The device under test did not do what was waited for; carries the last console lines. */
export class DutError extends Error {
  override readonly name = 'DutError'
  /** Only time has passed: nothing was seen that could not be followed by what was waited for. */
  readonly late: boolean

  constructor(message: string, { late = false, ...options }: ErrorOptions & { readonly late?: boolean } = {}) {
    super(message, options)
    this.late = late
  }
}
