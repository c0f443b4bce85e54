import { createHash } from 'node:crypto'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import { bodyOf, decideEtc } from '../../device/etc/decide.ts'
import type { EtcEntry, EtcPlan, EtcTree } from '../../device/etc/types.ts'
import { DEFAULTS } from './trees.ts'

/** Random trees of few names, so that the three sides meet often. */

interface Leaf {
  readonly text?: string
  readonly to?: string
  readonly mode: number
}
type Shape = ReadonlyMap<string, Leaf>

const leaf = fc.oneof(
  fc.record({
    text: fc.constantFrom('', 'a\n', 'b\n', 'a\nb\nc\n', 'a\nB\nc\n', 'x\na\nb\nc\n'),
    mode: fc.constantFrom(0o644, 0o600),
  }),
  fc.record({ to: fc.constantFrom('f', '/x'), mode: fc.constant(0o777) }),
)
const path = fc.array(fc.constantFrom('a', 'b', 'c-d'), { minLength: 1, maxLength: 3 }).map((names) => names.join('/'))
const shape: fc.Arbitrary<Shape> = fc
  .uniqueArray(fc.tuple(path, leaf), { maxLength: 7, selector: ([name]) => name })
  // A path cannot be both a file and a folder: what lies below a leaf is left out.
  .map((all) => new Map(all.filter(([name]) => !all.some(([other]) => name.startsWith(`${other}/`)))))

const digest = (text: string) => createHash('sha256').update(text).digest('hex') as Sha256

function treeOf(shape: Shape): EtcTree {
  const entries = new Map<string, EtcEntry>()
  const add = (path: string, rest: Pick<EtcEntry, 'type' | 'mode'> & Partial<EtcEntry>) =>
    entries.set(path, { path, uid: 0, gid: 0, xattrs: new Map(), ...rest })
  add('', { type: 'dir', mode: 0o755 })
  for (const [path, { text, to, mode }] of shape) {
    const parts = path.split('/')
    for (let n = 1; n < parts.length; n++) add(parts.slice(0, n).join('/'), { type: 'dir', mode: 0o755 })
    if (to !== undefined) add(path, { type: 'symlink', mode, target: to })
    else add(path, { type: 'file', mode, size: text?.length ?? 0, digest: digest(text ?? '') })
  }
  return {
    entries,
    read: async function* (path) {
      yield Buffer.from(shape.get(path)?.text ?? '')
    },
  }
}

/** The tree that a plan makes. */
function resultOf(plan: EtcPlan, sides: { local: Shape; image: Shape }): Shape {
  const leaves = plan.entries.filter(({ type }) => type !== 'dir')
  return new Map(
    leaves.map(({ path, mode, from, content, target }): [string, Leaf] => {
      if (target !== undefined) return [path, { to: target, mode }]
      const text = from === 'made' ? Buffer.from(content ?? '').toString() : (sides[from].get(path)?.text ?? '')
      return [path, { text, mode }]
    }),
  )
}

const merge = (old: Shape, local: Shape, image: Shape) =>
  decideEtc({ old: treeOf(old), local: treeOf(local), image: treeOf(image) }, DEFAULTS)
const refused = (plan: EtcPlan) => plan.findings.some(({ level }) => level === 'refused')
const sorted = (shape: Shape) => [...shape].sort(([a], [b]) => (a < b ? -1 : 1))

it('without a local change the result is exactly the new image', async () => {
  await fc.assert(
    fc.asyncProperty(shape, shape, async (old, image) => {
      const plan = await merge(old, old, image)
      expect(plan.findings).toEqual([])
      expect(sorted(resultOf(plan, { local: old, image }))).toEqual(sorted(image))
      expect(plan.entries.map(({ path }) => path)).toEqual([...treeOf(image).entries.keys()].sort())
    }),
    { numRuns: 300 },
  )
})

it('without an upstream change the result is exactly the device', async () => {
  await fc.assert(
    fc.asyncProperty(shape, shape, async (old, local) => {
      const plan = await merge(old, local, old)
      expect(plan.findings.filter(({ level }) => level !== 'note')).toEqual([])
      expect(sorted(resultOf(plan, { local, image: old }))).toEqual(sorted(local))
    }),
    { numRuns: 300 },
  )
})

it('merging the result once more changes nothing', async () => {
  await fc.assert(
    fc.asyncProperty(shape, shape, shape, async (old, local, image) => {
      const first = await merge(old, local, image)
      if (refused(first)) return
      const merged = resultOf(first, { local, image })
      const second = await merge(image, merged, image)
      expect(refused(second)).toBe(false)
      expect(sorted(resultOf(second, { local: merged, image }))).toEqual(sorted(merged))
    }),
    { numRuns: 500 },
  )
})

it('nothing of the device is lost without a word', async () => {
  await fc.assert(
    fc.asyncProperty(shape, shape, shape, async (old, local, image) => {
      const plan = await merge(old, local, image)
      const said = new Set(plan.findings.map((finding) => finding.path))
      const result = treeOf(resultOf(plan, { local, image })).entries
      const [was, mine] = [treeOf(old).entries, treeOf(local).entries]
      for (const path of new Set([...was.keys(), ...mine.keys()])) {
        if (bodyOf(was.get(path)) === bodyOf(mine.get(path)) || mine.get(path)?.type === 'dir') continue
        if (bodyOf(result.get(path)) !== bodyOf(mine.get(path))) expect(said, path).toContain(`/etc/${path}`)
      }
    }),
    { numRuns: 500 },
  )
})
