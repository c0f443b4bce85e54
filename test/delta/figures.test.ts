import { describe, expect, it } from 'vitest'
import { goalsOf, OURS, type PairFound } from '../../bench/delta/campaign.ts'
import { bytesTable, costTable, goalsTable, plot, withFigures } from '../../bench/delta/page.ts'

// What the patches page is made of: figures in, tables, plots and goals out; what was not measured is not made up.

const cost = (cpuSeconds: number) => ({ seconds: cpuSeconds, cpuSeconds, peakMiB: 10 })
const pair: PairFound = {
  name: 'small',
  what: 'a <small> change',
  image: 100_000_000,
  plain: 300_000_000,
  found: {
    [OURS.patch]: { bytes: 100_000, besides: 9000, make: cost(10), apply: cost(4), requests: 7 },
    [OURS.chunks]: { bytes: 900_000, requests: 30 },
    'xdelta3 on SquashFS': { bytes: 290_000, make: cost(3), requests: 1 },
    'casync, 64 KiB chunks': { bytes: 800_000 },
    'zstd --patch-from on uncompressed': { bytes: 200_000, make: cost(20) },
  },
}

describe('the patches page', () => {
  it('judges each goal whose parts were measured, and no other', () => {
    const goals = goalsOf(pair.name, pair.found, pair.image ?? 0)
    expect(goals.map(({ what, reached }) => [what, reached])).toEqual([
      ['small: patch / xdelta3 on SquashFS', false],
      ['small: chunks / casync, 64 KiB chunks', false],
      ['small: CPU of making / zstd --patch-from', true],
      ['small: CPU of applying / images at 50 MB/s', false],
    ])
    expect(goalsTable([pair])).toContain('| small: patch / xdelta3 on SquashFS | 0.34 | 0.33 | **missed** |')
    const times = goalsOf('times', { [OURS.patch]: { bytes: 999_999 } }, 100_000_000)
    expect(times).toMatchObject([{ what: 'times: patch / image', reached: true }])
  })

  it('leaves the cells of what was not measured empty', () => {
    expect(bytesTable([pair, { name: 'large', what: '', found: {} }])).toContain(
      '| **bistable, patch** | **100,000** |  |',
    )
    expect(bytesTable([pair])).not.toContain('| zchunk | 0')
    expect(costTable(pair)).toContain('| xdelta3 on SquashFS | 3.0 | 3.0 | 10 |  |  |  | 1 |')
    expect(costTable(pair)).not.toContain('zchunk')
  })

  it('draws a bar for each figure, longer for more, and escapes what it is told', () => {
    const drawn = plot([pair], 'bytes', ({ bytes }) => bytes)
    const widths = [...drawn.matchAll(/<rect x="230"[^>]* width="([\d.]+)"/g)].map(([, width]) => Number(width))
    expect(widths).toHaveLength(5)
    // In the page's order: casync, our chunks, xdelta3, zstd, our patch.
    const order = [...widths.keys()].sort((a, b) => (widths[a] ?? 0) - (widths[b] ?? 0))
    expect(order).toEqual([4, 3, 2, 0, 1])
    expect(drawn).toContain('a &lt;small> change')
    expect(plot([], 'bytes', ({ bytes }) => bytes)).toBe('')
  })

  it('replaces what stands between the marks, and refuses a page without them', () => {
    const page = 'a\n<!-- figures: made by bench/delta/page.ts -->\nold\n<!-- figures: end -->\nb\n'
    const made = withFigures(page, 'new\n')
    expect(made).toMatch(/^a\n<!-- .*-->\n\nnew\n\n<!-- figures: end -->\nb\n$/)
    expect(withFigures(made, 'new\n')).toBe(made)
    expect(() => withFigures('a', 'new')).toThrow('no marks')
  })
})
