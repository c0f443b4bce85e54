import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { goalsOf, OURS, type PairFound } from './campaign.ts'
import type { Cost, Found } from './found.ts'

// What a campaign found, into docs/: tables between the marks of deltas.md, plots, and the figures themselves as JSON.
// usage: node --import tsx bench/delta/page.ts [FOLDER OF STEPS]

const BEGIN = '<!-- figures: made by bench/delta/page.ts -->\n'
const END = '<!-- figures: end -->\n'
/** In this order, the smallest change first. */
const PAIRS = ['times', 'small', 'package', 'security', 'large', 'debian13']
const TECHNIQUES = [
  'full image',
  'RAUC block-hash-index (counted)',
  'casync, 64 KiB chunks',
  'casync, 16 KiB chunks',
  'zchunk',
  OURS.chunks,
  'ostree static delta',
  'xdelta3 on SquashFS',
  'bsdiff on SquashFS',
  'zstd --patch-from on SquashFS',
  'xdelta3 on uncompressed',
  'zstd --patch-from on uncompressed',
  'bsdiff on uncompressed',
  OURS.patch,
  OURS.quick,
]

const number = (value: number): string => Math.round(value).toLocaleString('en-US')
const ours = (technique: string): boolean => technique.startsWith('bistable')
const named = (technique: string): string => (ours(technique) ? `**${technique}**` : technique)

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  return [head, head.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |\n`).join('')
}

/** Bytes of every technique, a column for each pair. */
export function bytesTable(all: readonly PairFound[]): string {
  const cell = (technique: string, found: Found | undefined): string =>
    found === undefined ? '' : ours(technique) ? `**${number(found.bytes)}**` : number(found.bytes)
  const rows = TECHNIQUES.map((name) => [named(name), ...all.map(({ found }) => cell(name, found[name]))])
  const besides = Object.values(OURS).map((technique) => [
    `besides, ${technique}`,
    ...all.map(({ found }) => {
      const more = found[technique]?.besides
      return more === undefined ? '' : number(more)
    }),
  ])
  return table(['bytes', ...all.map(({ name }) => name)], [...rows, ...besides])
}

/** What making and applying took, for one pair. */
export function costTable({ found }: PairFound): string {
  const of = (cost: Cost | undefined): string[] =>
    cost === undefined ? ['', '', ''] : [cost.cpuSeconds.toFixed(1), cost.seconds.toFixed(1), number(cost.peakMiB)]
  const rows = TECHNIQUES.flatMap((name) => {
    const { make, apply, requests } = found[name] ?? {}
    if (make === undefined && apply === undefined && requests === undefined) return []
    return [[named(name), ...of(make), ...of(apply), requests === undefined ? '' : number(requests)]]
  })
  const head = ['make: CPU s', 'wall s', 'peak MiB', 'apply: CPU s', 'wall s', 'peak MiB', 'requests']
  return table(['', ...head], rows)
}

export function goalsTable(all: readonly PairFound[]): string {
  const goals = all.flatMap(({ name, found, image }) => goalsOf(name, found, image ?? 0))
  const rows = goals.map(({ what, value, atMost, reached }) => {
    return [
      what,
      value < 0.01 ? value.toFixed(4) : value.toFixed(2),
      atMost.toFixed(2),
      reached ? 'reached' : '**missed**',
    ]
  })
  return table(['goal', 'found', 'at most', ''], rows)
}

/** One panel for each pair: a bar for each technique, on a logarithmic scale. */
export function plot(all: readonly PairFound[], label: string, value: (found: Found) => number | undefined): string {
  const [left, width, row] = [230, 860, 15]
  const panels = all.map((pair) => ({
    pair,
    bars: TECHNIQUES.flatMap((name) => {
      const found = pair.found[name]
      const size = found && value(found)
      return size === undefined || size <= 0 ? [] : [{ name, size }]
    }),
  }))
  const sizes = panels.flatMap(({ bars }) => bars.map(({ size }) => size))
  if (sizes.length === 0) return ''
  const [low, high] = [Math.floor(Math.log10(Math.min(...sizes))), Math.log10(Math.max(...sizes))]
  const scale = (size: number): number => ((Math.log10(size) - low) / (high - low + 0.01)) * (width - left - 110)
  const parts: string[] = []
  let y = 20
  for (const { pair, bars } of panels) {
    if (bars.length === 0) continue
    parts.push(`<text x="${left}" y="${y}" font-weight="bold">${escaped(`${pair.name}: ${pair.what}`)}</text>`)
    y += 8
    for (const { name, size } of bars) {
      const length = Math.max(1, scale(size))
      const colour = ours(name) ? '#b5451b' : '#8a9bb0'
      parts.push(
        `<text x="${left - 6}" y="${y + 11}" text-anchor="end">${escaped(name)}</text>`,
        `<rect x="${left}" y="${y + 1}" width="${length.toFixed(1)}" height="${row - 3}" fill="${colour}"/>`,
        `<text x="${(left + length + 4).toFixed(1)}" y="${y + 11}">${size < 100 ? size.toFixed(1) : number(size)}</text>`,
      )
      y += row
    }
    y += 24
  }
  const open = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${y + 6}" font-family="sans-serif" font-size="11">`
  const note = `<text x="${left}" y="${y - 4}" fill="#555">${escaped(label)}, logarithmic</text>`
  return `${open}\n<rect width="100%" height="100%" fill="white"/>\n${parts.join('\n')}\n${note}\n</svg>\n`
}

const escaped = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')

/** The page with new figures between its marks. @throws Error when it has no marks */
export function withFigures(page: string, figures: string): string {
  const [from, to] = [page.indexOf(BEGIN), page.indexOf(END)]
  if (from === -1 || to < from) throw new Error('docs/deltas.md has no marks for figures')
  return `${page.slice(0, from + BEGIN.length)}\n${figures}\n${page.slice(to)}`
}

function main(folder: string): void {
  const docs = resolve(import.meta.dirname, '..', '..', 'docs')
  const names = readdirSync(folder)
  const all = PAIRS.filter((name) => names.includes(`${name}.json`)).map(
    (name) => JSON.parse(readFileSync(join(folder, `${name}.json`), 'utf8')) as PairFound,
  )
  const pairs = all.map(({ name, what, image, plain, found }) => {
    const quick = found[OURS.quick]?.image
    return [name, what, number(image ?? 0), quick === undefined ? '' : number(quick), number(plain ?? 0)]
  })
  const figures = [
    table(['pair', 'what', 'image, bytes', 'at zstd 9', 'uncompressed'], pairs),
    bytesTable(all),
    '![bytes to move](deltas-bytes.svg)\n',
    ...all
      .filter(({ name }) => ['small', 'security', 'large', 'debian13'].includes(name))
      .flatMap((pair) => [`Cost, ${pair.name}:\n`, costTable(pair)]),
    '![CPU seconds to make](deltas-make.svg)\n',
    goalsTable(all),
  ].join('\n')
  const page = join(docs, 'deltas.md')
  writeFileSync(page, withFigures(readFileSync(page, 'utf8'), figures))
  writeFileSync(
    join(docs, 'deltas-bytes.svg'),
    plot(all, 'bytes', ({ bytes }) => bytes),
  )
  writeFileSync(
    join(docs, 'deltas-make.svg'),
    plot(all, 'CPU seconds of making', ({ make }) => make?.cpuSeconds),
  )
  writeFileSync(join(docs, 'deltas.json'), `${JSON.stringify(all, null, 1)}\n`)
}

if (process.argv[1] === import.meta.filename) main(process.argv[2] ?? join('out', 'delta'))
