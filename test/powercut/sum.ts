/** The closing lines of several runs of `npm run powercut`, that were parts of one, added up. */

export interface Sum {
  /** One for each kind of run. */
  readonly lines: readonly string[]
  /** Nothing was lost in any of them, and every broken writer was caught. */
  readonly ok: boolean
}

interface Kind {
  runs: number
  readonly counts: Map<string, [number, number | undefined]>
}

const CLOSING = /^(power cuts(?:, [^:]+| of an emulated device)?): (.*)$/
const ITEM = /^(\d+)(?:\/(\d+))? (.+)$/
/** Each part of a run on U-Boot's boot state judges every state and every broken writer, and asks about a part of them. */
const ALIKE = { 'power cuts, U-Boot': ['states', 'broken writers caught'] } as Readonly<
  Record<string, readonly string[]>
>
const BAD = /unbootable|floors lowered|wrong|stranded/
/** What a run says of a wrong that its closing line has no figure for. */
const SAID = /^(?:unbootable|floor|other|difference): /m

/** @param logs the output of each run; the same part twice counts twice */
export function sumOf(logs: readonly string[]): Sum {
  const kinds = new Map<string, Kind>()
  for (const log of logs)
    for (const line of log.split('\n')) {
      const [, name, rest] = CLOSING.exec(line) ?? []
      const items = rest?.split(', ').flatMap((item) => [ITEM.exec(item) ?? []].filter(({ length }) => length > 0))
      // A run also begins with such a line, without figures.
      if (name === undefined || items === undefined || items.length < 3) continue
      const kind: Kind = kinds.get(name) ?? { runs: 0, counts: new Map() }
      kinds.set(name, kind)
      kind.runs++
      for (const [, figure, of, label = ''] of items) {
        const [before, beforeOf] = kind.counts.get(label) ?? [0, undefined]
        const add = (a: number, b: number) => (ALIKE[name]?.includes(label) ? Math.max(a, b) : a + b)
        kind.counts.set(label, [
          add(before, Number(figure)),
          of === undefined ? undefined : add(beforeOf ?? 0, Number(of)),
        ])
      }
    }
  const lines = [...kinds].map(([name, { runs, counts }]) => {
    const items = [...counts].map(([label, [figure, of]]) => `${figure}${of === undefined ? '' : `/${of}`} ${label}`)
    return `${name}, ${runs} runs: ${items.join(', ')}`
  })
  const good = (label: string, [figure, of]: readonly [number, number | undefined]) =>
    of === undefined ? figure === 0 || !BAD.test(label) : figure === of
  const figures = [...kinds.values()].flatMap(({ counts }) => [...counts])
  const ok = figures.length > 0 && figures.every(([l, c]) => good(l, c)) && !logs.some((log) => SAID.test(log))
  return { lines, ok }
}
