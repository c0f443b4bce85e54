import { describe, expect, test } from 'vitest'
import { have } from '../helpers/run.ts'
import { endure, growth, type Look } from './endurance.ts'

const ready = have('grub-emu', 'sgdisk', 'mkfs.fat', 'mcopy', 'mke2fs')

describe('endurance', () => {
  test.skipIf(!ready)(
    'updates back and forth in one process: each is committed or refused, and no file is left open or behind',
    async () => {
      const said: string[] = []
      const done = await endure({ updates: 8, failEvery: 7, lookEvery: 2 }, (line) => said.push(line))
      expect(done).toMatchObject({ committed: 7, refused: 1 })
      // From update 4 to 8: one file or connection left behind by each would show.
      expect(done.looks.map(({ update }) => update)).toEqual([2, 4, 6, 8])
      expect(
        done.grew.filter((what) => /^(open|sockets|files) /.test(what)),
        said.join('\n'),
      ).toEqual([])
      expect(said.at(-1)).toMatch(/^endurance: 8 updates, 7 committed, 1 refused by health; /)
    },
    120_000,
  )

  test('growth is told, what the warm-up did is not', () => {
    const look = (update: number, more: Partial<Look> = {}): Look => {
      const plain = { rss: 100 << 20, heap: 10 << 20, open: 20, sockets: 3, files: 30, data: 700_000 }
      return { update, ...plain, ...more }
    }
    const early = look(25, { rss: 10, heap: 10, open: 1, sockets: 1, files: 1, data: 1 })
    expect(growth([early, look(100), look(500)])).toEqual([])
    for (const more of [
      { rss: 200 << 20 },
      { heap: 30 << 20 },
      { open: 23 },
      { sockets: 8 },
      { files: 31 },
      { data: 800_000 },
    ])
      expect(growth([early, look(100), look(500, more)])).toEqual([
        expect.stringContaining(`${Object.keys(more)[0]} grew from`),
      ])
    expect(growth([])).toEqual(['nothing was looked at'])
  })
})
