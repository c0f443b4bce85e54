/** Numbers from a seed, so that a run can be done again: mulberry32. Returns 0 <= value < 1. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** The seed and count of a random campaign: `HIL_SEED` and `HIL_CUTS`, or else today's clock and `count`. */
export function campaign(
  env: Readonly<Record<string, string | undefined>>,
  now: number,
  count: number,
): { readonly seed: number; readonly count: number } {
  const number = (name: string, otherwise: number) => {
    const text = env[name]
    if (text === undefined || text === '') return otherwise
    if (!/^\d{1,10}$/.test(text)) throw new TypeError(`${name} is "${text}", a whole number was wanted`)
    return Number(text)
  }
  return { seed: number('HIL_SEED', now % 2 ** 31), count: number('HIL_CUTS', count) }
}
