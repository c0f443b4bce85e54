import { createHmac } from 'node:crypto'

/**
 * The name that assignments call this device by: 32 hexadecimal digits that follow from the machine id and the product,
 * so that the machine id itself, which is not to be shown to others (machine-id(5)), is not told.
 * @param machineId the content of /etc/machine-id
 * @returns undefined when that holds no id (missing, empty, "uninitialized")
 */
export function deviceIdFrom(machineId: string, product: string): string | undefined {
  const id = machineId.trim()
  if (!/^[0-9a-f]{32}$/.test(id) || /^0+$/.test(id)) return undefined
  return createHmac('sha256', id).update(`bistable device ${product}`).digest('hex').slice(0, 32)
}
