/** What the link and the power supply of a device are, read from the kernel's own files. Pure. */

/** `/proc/net/route`, `/proc/net/ipv6_route`: names of the interfaces that carry a default route, best first. */
export function defaultLinks(route4: string, route6: string): readonly string[] {
  const found: { name: string; metric: number }[] = []
  for (const line of route4.split('\n').slice(1)) {
    const [name, destination, , flags, , , metric, mask] = line.split('\t')
    if (name === undefined || destination !== '00000000' || mask !== '00000000') continue
    if ((Number.parseInt(flags ?? '0', 16) & 1) === 1) found.push({ name, metric: Number(metric) })
  }
  for (const line of route6.split('\n')) {
    const fields = line.trim().split(/\s+/)
    const [destination, length, , , , metric, , , flags, name] = fields
    if (name === undefined || name === 'lo' || !/^0{32}$/.test(destination ?? '') || length !== '00') continue
    // RTF_UP, and not the kernel's own "unreachable" entry (RTF_REJECT).
    const bits = Number.parseInt(flags ?? '0', 16)
    if ((bits & 1) === 1 && (bits & 0x200) === 0) found.push({ name, metric: Number.parseInt(metric ?? '0', 16) })
  }
  found.sort((a, b) => a.metric - b.metric)
  return [...new Set(found.map(({ name }) => name))]
}

/** Whether a name fits a pattern in which `*` stands for anything. */
export function fits(name: string, pattern: string): boolean {
  const parts = pattern.split('*').map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'))
  return new RegExp(`^${parts.join('.*')}$`).test(name)
}

/** The files `type`, `online`, `capacity`, `scope` of one entry under /sys/class/power_supply; "" where missing. */
export interface SupplyFiles {
  readonly type: string
  readonly online: string
  readonly capacity: string
  readonly scope: string
}

export interface Power {
  /** On mains, or no supply says anything: a board without a battery has none. */
  readonly mains: boolean
  /** Of the fullest battery; undefined without one. */
  readonly batteryPercent: number | undefined
}

export function judgePower(supplies: readonly SupplyFiles[]): Power {
  // A mouse's battery says nothing of this device.
  const own = supplies.filter(({ scope }) => scope.trim() !== 'Device')
  const batteries = own.filter(({ type }) => type.trim() === 'Battery')
  const lines = own.filter(({ type }) => ['Mains', 'USB', 'Wireless'].includes(type.trim()))
  const levels = batteries.map(({ capacity }) => capacity.trim()).filter((text) => /^\d{1,3}$/.test(text))
  return {
    mains: batteries.length === 0 || lines.some(({ online }) => /^[1-9]/.test(online.trim())),
    batteryPercent: levels.length === 0 ? undefined : Math.max(...levels.map(Number)),
  }
}
