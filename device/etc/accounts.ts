/**
 * passwd, group and their shadows are tables keyed by name: merged line by line, so that the device keeps its passwords
 * and people, and the image can add a service's user.
 */

export const ACCOUNT_FILES: readonly string[] = ['passwd', 'group', 'shadow', 'gshadow', 'subuid', 'subgid']
/** Files whose third field is a number that no two names may share. */
const NUMBERED: readonly string[] = ['passwd', 'group']

export interface AccountsMerge {
  readonly text: string
  /** Names whose lines the image added or changed. */
  readonly taken: readonly string[]
  /** Sentences: a name with two numbers, a number with two names. */
  readonly collisions: readonly string[]
}

/**
 * Merges one table. A line that the device added, changed or deleted stays so; else the image's counts. A name that
 * only the old image had stays: files in /var may be its own. The order is the device's, new names at the end. Pure.
 * @param file "passwd", "group", …
 */
export function mergeAccounts(file: string, old: string, local: string, image: string): AccountsMerge {
  const [was, mine, theirs] = [tableOf(old), tableOf(local), tableOf(image)]
  const taken: string[] = []
  const collisions: string[] = []
  const merged = new Map<string, string>()
  for (const [name, line] of mine) {
    const now = theirs.get(name)
    const follows = line === was.get(name) && now !== undefined && now !== line
    if (NUMBERED.includes(file) && now !== undefined && numberOf(now) !== numberOf(line) && !follows)
      collisions.push(`${name} is ${numberOf(line)} on the device and ${numberOf(now)} in the image`)
    if (follows) taken.push(name)
    merged.set(name, follows ? now : line)
  }
  for (const [name, line] of theirs) {
    // Known to the old image and not to the device: it was deleted here.
    if (mine.has(name) || was.has(name)) continue
    merged.set(name, line)
    taken.push(name)
  }
  if (NUMBERED.includes(file)) collisions.push(...sharedNumbers(merged, mine, theirs))
  return { text: [...merged.values()].map((line) => `${line}\n`).join(''), taken, collisions }
}

/** Numbers with several names, where the device and the image each for itself had only one. */
function sharedNumbers(
  merged: ReadonlyMap<string, string>,
  mine: ReadonlyMap<string, string>,
  theirs: ReadonlyMap<string, string>,
): string[] {
  const names = new Map<string, string[]>()
  for (const [name, line] of merged) names.set(numberOf(line), [...(names.get(numberOf(line)) ?? []), name])
  return [...names]
    .filter(([, sharing]) => sharing.length > 1)
    .filter(([number, sharing]) => ![mine, theirs].some((table) => sharing.every((n) => has(table, n, number))))
    .map(([number, sharing]) => `${sharing.join(' and ')} would both be ${number}`)
}

const has = (table: ReadonlyMap<string, string>, name: string, number: string) => {
  const line = table.get(name)
  return line !== undefined && numberOf(line) === number
}

const numberOf = (line: string) => line.split(':')[2] ?? ''

/** Name to line; the first of two equal names counts, as for the C library. */
function tableOf(text: string): Map<string, string> {
  const table = new Map<string, string>()
  for (const line of text.split('\n')) {
    const name = line.split(':')[0] ?? ''
    if (name !== '' && !table.has(name)) table.set(name, line)
  }
  return table
}
