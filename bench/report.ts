/** What a bench found, as a table for people and as plain data. Pure. */

export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
}

export interface Row {
  readonly what: string
  /** To transfer. */
  readonly bytes?: number
  readonly seconds?: Spread
  /** User and system time; median. */
  readonly cpuSeconds?: number
  /** Largest over all runs. */
  readonly peakMiB?: number
}

export interface Goal {
  readonly what: string
  readonly value: number
  readonly unit: '' | 's' | 'MiB'
  /** The value is to be at most this. */
  readonly atMost: number
  readonly reached: boolean
}

export interface Report {
  readonly name: string
  readonly runs: number
  /** Why it did not run. */
  readonly skipped?: string
  readonly rows: readonly Row[]
  readonly goals: readonly Goal[]
  /** Sentences that belong to the figures. */
  readonly notes: readonly string[]
}

/** @throws RangeError when there is no value */
export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b)
  const at = (index: number): number => {
    const value = sorted[index]
    if (value === undefined) throw new RangeError('no value')
    return value
  }
  const middle = (sorted.length - 1) / 2
  return {
    median: (at(Math.floor(middle)) + at(Math.ceil(middle))) / 2,
    min: at(0),
    max: at(sorted.length - 1),
  }
}

export function goal(what: string, value: number, unit: Goal['unit'], atMost: number): Goal {
  return { what, value, unit, atMost, reached: value <= atMost }
}

/** One row of several runs. */
export function rowOf(
  what: string,
  runs: readonly { readonly seconds: number; readonly cpuSeconds?: number; readonly peakMiB?: number }[],
): Row {
  const known = (values: readonly (number | undefined)[]): number[] => values.filter((value) => value !== undefined)
  const cpu = known(runs.map((run) => run.cpuSeconds))
  const peaks = known(runs.map((run) => run.peakMiB))
  return {
    what,
    seconds: spread(runs.map((run) => run.seconds)),
    ...(cpu.length === 0 ? {} : { cpuSeconds: spread(cpu).median }),
    ...(peaks.length === 0 ? {} : { peakMiB: Math.max(...peaks) }),
  }
}

export function reportText(report: Report): string {
  const lines = [`${report.name}${report.skipped === undefined ? ` (${report.runs} runs each)` : ''}`]
  if (report.skipped !== undefined) lines.push(`  skipped: ${report.skipped}`)
  const sized = report.rows.some(({ bytes }) => bytes !== undefined)
  if (report.rows.length > 0)
    lines.push(
      ...table(
        ['', ...(sized ? ['MB to move'] : []), 'wall s, median', 'min', 'max', 'CPU s', 'peak MiB'],
        report.rows.map(({ what, bytes, seconds, cpuSeconds, peakMiB }) => [
          what,
          ...(sized ? [fixed(bytes === undefined ? undefined : bytes / 1e6, 3)] : []),
          fixed(seconds?.median, 2),
          fixed(seconds?.min, 2),
          fixed(seconds?.max, 2),
          fixed(cpuSeconds, 2),
          fixed(peakMiB, 0),
        ]),
      ),
    )
  if (report.goals.length > 0)
    lines.push(
      '',
      ...table(
        ['goal', 'found', 'at most', ''],
        report.goals.map(({ what, value, unit, atMost, reached }) => [
          what,
          `${fixed(value, unit === 'MiB' ? 0 : 2)} ${unit}`.trim(),
          `${fixed(atMost, unit === 'MiB' ? 0 : 1)} ${unit}`.trim(),
          reached ? 'reached' : 'MISSED',
        ]),
      ),
    )
  return [...lines, ...report.notes.map((note) => `  ${note}`)].join('\n')
}

const fixed = (value: number | undefined, digits: number): string => value?.toFixed(digits) ?? '-'

function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const widths = head.map((name, column) => Math.max(name.length, ...rows.map((row) => row[column]?.length ?? 0)))
  return [head, ...rows].map((cells) =>
    `  ${cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join('  ')}`.trimEnd(),
  )
}
