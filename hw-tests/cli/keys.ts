/** What a person types at `hil console`: bytes for the board, and orders after the escape key. Pure. */

export type Order = 'quit' | 'break' | 'power-on' | 'power-off' | 'power-cycle' | 'help'

export const ESCAPE = 0x1d // Ctrl-]

const ORDERS: Readonly<Record<string, Order>> = {
  q: 'quit',
  b: 'break',
  '1': 'power-on',
  '0': 'power-off',
  c: 'power-cycle',
  '?': 'help',
}

export const HELP = 'Ctrl-] then: q quit, 1 power on, 0 power off, c power cycle, b break, Ctrl-] itself, ? this'

/** `escaped`: the escape key came last. Returns what goes to the board, the orders in turn, and the state. */
export function readKeys(
  escaped: boolean,
  typed: Buffer,
): { readonly forward: Buffer; readonly orders: readonly Order[]; readonly escaped: boolean } {
  const forward: number[] = []
  const orders: Order[] = []
  let after = escaped
  for (const byte of typed) {
    if (!after) {
      if (byte === ESCAPE) after = true
      else forward.push(byte)
      continue
    }
    after = false
    if (byte === ESCAPE) forward.push(byte)
    else orders.push(ORDERS[String.fromCharCode(byte)] ?? 'help')
  }
  return { forward: Buffer.from(forward), orders, escaped: after }
}
