/**
 * System users and groups that systemd-sysusers makes at boot (sysusers.d(5)), against the tables that are there already.
 * A number that is taken is silently replaced by another one then, and files of the image belong to somebody else.
 */

export const SYSUSERS_FOLDERS = ['etc/sysusers.d', 'usr/lib/sysusers.d'] as const
/** Bytes of one file; a longer one is not read. */
export const SYSUSERS_MAX_BYTES = 256 * 1024
/** Files beyond these are not read. */
export const SYSUSERS_MAX_FILES = 256

export interface SystemAccount {
  readonly table: 'passwd' | 'group'
  readonly name: string
  /** Undefined: chosen on the device. */
  readonly id: number | undefined
}

export interface AccountTables {
  readonly passwd: string
  readonly group: string
}

/** One line's accounts: a user comes with a group of its name, unless it names another. Lines of other kinds are passed over. Pure. */
export function parseSysusers(text: string): readonly SystemAccount[] {
  const found: SystemAccount[] = []
  for (const line of text.split('\n')) {
    const [kind, name, id = '-'] = line.trim().split(/\s+/)
    // A name may hold a specifier ("%b"), which only the device can fill in.
    if (kind === undefined || name === undefined || !/^[A-Za-z_][A-Za-z0-9_.-]{0,63}$/.test(name)) continue
    if (/^u!?$/.test(kind)) {
      const [uid = '', gid] = id.split(':')
      found.push({ table: 'passwd', name, id: numberIn(uid) })
      if (gid === undefined) found.push({ table: 'group', name, id: numberIn(uid) })
    } else if (kind === 'g') found.push({ table: 'group', name, id: numberIn(id) })
  }
  return found
}

/** A path means "the owner of that file", "-" any free number. */
const numberIn = (text: string) => (/^\d{1,10}$/.test(text) ? Number(text) : undefined)

/** Sentences: a name with two numbers, a number with two names. Sorted, each once. Pure. */
export function accountCollisions(accounts: readonly SystemAccount[], tables: AccountTables): readonly string[] {
  const said = new Set<string>()
  for (const table of ['passwd', 'group'] as const) {
    const what = table === 'passwd' ? 'user' : 'group'
    const known = readTable(tables[table])
    const owners = new Map<number, string>([...known].map(([name, id]) => [id, name] as const).reverse())
    const wanted = new Map<string, number>()
    for (const { name, id } of accounts.filter((account) => account.table === table)) {
      if (id === undefined) continue
      const own = known.get(name)
      const before = wanted.get(name)
      if (before !== undefined && before !== id) said.add(`${what} ${name} is ${before} and ${id} in sysusers.d`)
      wanted.set(name, before ?? id)
      if (own !== undefined && own !== id) said.add(`${what} ${name} is ${id} in sysusers.d and ${own} in ${table}`)
      if (own !== undefined) continue
      const owner = owners.get(id)
      if (owner !== undefined && owner !== name)
        said.add(`${what} ${name} is to be ${id} by sysusers.d, but in ${table} that is ${owner}`)
    }
    const names = new Map<number, string>()
    for (const [name, id] of wanted) {
      const other = names.get(id)
      if (other !== undefined) said.add(`${what}s ${other} and ${name} are both ${id} in sysusers.d`)
      names.set(id, other ?? name)
    }
  }
  return [...said].sort()
}

/** Accounts without a number of their own, which no table has yet. Pure. */
export function unnumbered(accounts: readonly SystemAccount[], tables: AccountTables): readonly SystemAccount[] {
  const known = { passwd: readTable(tables.passwd), group: readTable(tables.group) }
  const numbered = new Set(accounts.filter(({ id }) => id !== undefined).map(({ table, name }) => `${table} ${name}`))
  return accounts.filter(
    ({ table, name, id }) => id === undefined && !known[table].has(name) && !numbered.has(`${table} ${name}`),
  )
}

/** Name to number; the first of two equal names counts, as for the C library. */
function readTable(text: string): ReadonlyMap<string, number> {
  const table = new Map<string, number>()
  for (const line of text.split('\n')) {
    const [name = '', , id = ''] = line.split(':')
    if (name !== '' && /^\d{1,10}$/.test(id) && !table.has(name)) table.set(name, Number(id))
  }
  return table
}
