import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { EtcChoices } from '../../device/etc/types.ts'
import { isRoot, mergeTrees, type Tree } from './trees.ts'

/**
 * The 25 rows of the merge matrix in docs/etc.md, on real files: content, mode, owner, xattr, ACL, type, links, fifo. Each
 * row says what the merged tree has and what is reported, as "level kind taken path".
 */
interface Row {
  readonly row: string
  readonly old: Tree
  readonly local: Tree
  readonly image: Tree
  readonly choices?: Partial<EtcChoices>
  /** Path to content, "dir", "-> TARGET", or null for absent. */
  readonly want: Readonly<Record<string, string | null>>
  readonly modes?: Readonly<Record<string, number>>
  readonly says?: readonly string[]
}

const ROWS: readonly Row[] = [
  {
    row: '1 nothing changed here: the image counts',
    old: { same: '1', changed: '1', gone: '1' },
    local: { same: '1', changed: '1', gone: '1' },
    image: { same: '1', changed: '2', added: '2' },
    want: { same: '1', changed: '2', added: '2', gone: null },
  },
  { row: '2 content changed here only', old: { f: '1' }, local: { f: 'mine' }, image: { f: '1' }, want: { f: 'mine' } },
  {
    row: '3 both changed, not text that merges: local, reported',
    old: { f: '1\n' },
    local: { f: 'mine\n' },
    image: { f: 'theirs\n' },
    want: { f: 'mine\n' },
    says: ['conflict both-changed local /etc/f'],
  },
  {
    row: '3 both changed, rule image',
    old: { f: '1\n' },
    local: { f: 'mine\n' },
    image: { f: 'theirs\n' },
    choices: { rules: [{ path: '/etc/f', policy: 'image' }] },
    want: { f: 'theirs\n' },
    says: ['conflict both-changed image /etc/f'],
  },
  {
    row: '3 both changed, rule refuse',
    old: { f: '1\n' },
    local: { f: 'mine\n' },
    image: { f: 'theirs\n' },
    choices: { rules: [{ path: '/etc/*', policy: 'refuse' }] },
    want: { f: 'mine\n' },
    says: ['refused both-changed none /etc/f'],
  },
  {
    row: '3 both changed, in different lines: both',
    old: { f: 'a\nb\nc\nd\ne\n' },
    local: { f: 'A\nb\nc\nd\ne\n' },
    image: { f: 'a\nb\nc\nd\nE\n' },
    want: { f: 'A\nb\nc\nd\nE\n' },
    says: ['note text-merged both /etc/f'],
  },
  {
    row: '4 both changed to the same',
    old: { f: '1' },
    local: { f: '2' },
    image: { f: '2' },
    want: { f: '2' },
    says: ['note converged both /etc/f'],
  },
  {
    row: '5 put back to the old default, and pinned',
    old: { pinned: '1', free: '1' },
    local: { pinned: '1', free: '1' },
    image: { pinned: '2', free: '2' },
    choices: { pinned: ['/etc/pinned'] },
    want: { pinned: '1', free: '2' },
  },
  {
    row: '6 changed here, deleted in the image',
    old: { f: '1' },
    local: { f: 'mine' },
    image: {},
    want: { f: 'mine' },
    says: ['conflict changed-here-deleted-in-image local /etc/f'],
  },
  { row: '7 deleted here', old: { f: '1' }, local: {}, image: { f: '1' }, want: { f: null } },
  {
    row: '8 deleted here, changed in the image',
    old: { f: '1' },
    local: {},
    image: { f: '2' },
    want: { f: null },
    says: ['conflict deleted-here-changed-in-image local /etc/f'],
  },
  { row: '9 deleted on both sides', old: { f: '1' }, local: {}, image: {}, want: { f: null } },
  {
    row: '10 folder deleted here, the image adds a file in it',
    old: { 'd/f': '1' },
    local: {},
    image: { 'd/f': '1', 'd/new': '2' },
    want: { d: 'dir', 'd/f': null, 'd/new': '2' },
    says: ['conflict directory-kept-for-new-files image /etc/d'],
  },
  { row: '11 added here', old: {}, local: { f: 'mine' }, image: {}, want: { f: 'mine' } },
  {
    row: '12 added on both sides, differently',
    old: {},
    local: { f: 'mine' },
    image: { f: 'theirs' },
    want: { f: 'mine' },
    says: ['conflict both-added local /etc/f'],
  },
  {
    row: '13 added in a folder that the image deletes',
    old: { 'd/f': '1' },
    local: { 'd/f': '1', 'd/mine': 'mine', d: { dir: true, mode: 0o750 } },
    image: {},
    want: { d: 'dir', 'd/f': null, 'd/mine': 'mine' },
    modes: { d: 0o750 },
    says: ['conflict changed-here-deleted-in-image local /etc/d'],
  },
  {
    row: '14 mode changed here, content in the image: both',
    old: { f: { text: '1', mode: 0o644 } },
    local: { f: { text: '1', mode: 0o600 } },
    image: { f: { text: '2', mode: 0o644 } },
    want: { f: '2' },
    modes: { f: 0o600 },
    says: ['note attributes-kept both /etc/f'],
  },
  {
    row: '14 mode changed on both sides, differently',
    old: { f: { text: '1', mode: 0o644 } },
    local: { f: { text: '1', mode: 0o600 } },
    image: { f: { text: '1', mode: 0o640 } },
    want: { f: '1' },
    modes: { f: 0o600 },
    says: ['conflict attributes-differ local /etc/f'],
  },
  {
    row: '15 mode changed here only',
    old: { f: { text: '1', mode: 0o644 } },
    local: { f: { text: '1', mode: 0o600 } },
    image: { f: { text: '1', mode: 0o644 } },
    want: { f: '1' },
    modes: { f: 0o600 },
  },
  {
    row: '17 mode of a folder changed here only',
    old: { d: { dir: true, mode: 0o755 } },
    local: { d: { dir: true, mode: 0o700 } },
    image: { d: { dir: true, mode: 0o755 }, 'd/new': '2' },
    want: { d: 'dir', 'd/new': '2' },
    modes: { d: 0o700 },
  },
  {
    row: '17 mode of a folder changed here, deleted in the image',
    old: { d: { dir: true, mode: 0o755 } },
    local: { d: { dir: true, mode: 0o700 } },
    image: {},
    want: { d: null },
    says: ['note changed-here-deleted-in-image image /etc/d'],
  },
  {
    row: '18 symlink retargeted on both sides',
    old: { l: { to: 'old' } },
    local: { l: { to: 'mine' } },
    image: { l: { to: 'theirs' } },
    want: { l: '-> mine' },
    says: ['conflict both-changed local /etc/l'],
  },
  {
    row: '19 file made a symlink here, and a symlink a file',
    old: { f: '1', l: { to: 'x' } },
    local: { f: { to: 'elsewhere' }, l: 'mine' },
    image: { f: '1', l: { to: 'x' } },
    want: { f: '-> elsewhere', l: 'mine' },
    says: ['note type-changed-here local /etc/f', 'note type-changed-here local /etc/l'],
  },
  {
    row: '20 file changed here, a folder in the image',
    old: { f: '1' },
    local: { f: 'mine' },
    image: { 'f/x': '2' },
    want: {},
    says: ['refused type-conflict none /etc/f', 'note not-carried none /etc/f/x'],
  },
  {
    row: '20 the same, resolved for the image',
    old: { f: '1' },
    local: { f: 'mine' },
    image: { 'f/x': '2' },
    choices: { rules: [{ path: '/etc/f', policy: 'image' }] },
    want: { f: 'dir', 'f/x': '2' },
    says: ['conflict type-conflict image /etc/f'],
  },
  {
    row: '20 the same, resolved for the device',
    old: { f: '1' },
    local: { f: 'mine' },
    image: { 'f/x': '2' },
    choices: { rules: [{ path: '/etc/f', policy: 'local' }] },
    want: { f: 'mine', 'f/x': null },
    says: ['conflict type-conflict local /etc/f', 'note not-carried none /etc/f/x'],
  },
  {
    row: '21 folder with changes here, a file in the image',
    old: { 'd/f': '1' },
    local: { 'd/f': 'mine' },
    image: { d: 'file now' },
    want: {},
    says: ['refused type-conflict none /etc/d/f', 'conflict changed-here-deleted-in-image local /etc/d/f'],
  },
  {
    row: '21 the same, resolved for the image',
    old: { 'd/f': '1' },
    local: { 'd/f': 'mine' },
    image: { d: 'file now' },
    choices: { rules: [{ path: '/etc/d', policy: 'image' }] },
    want: { d: 'file now' },
    says: ['conflict changed-here-deleted-in-image image /etc/d/f'],
  },
  {
    row: '21 the same, resolved for the device',
    old: { 'd/f': '1' },
    local: { 'd/f': 'mine' },
    image: { d: 'file now' },
    choices: { rules: [{ path: '/etc/d', policy: 'local' }] },
    want: { d: 'dir', 'd/f': 'mine' },
    says: ['conflict changed-here-deleted-in-image local /etc/d/f', 'conflict type-conflict local /etc/d/f'],
  },
  {
    row: '22 folder replaced by a file here, the image unchanged',
    old: { 'd/f': '1' },
    local: { d: 'mine' },
    image: { 'd/f': '1' },
    want: { d: 'mine', 'd/f': null },
    says: ['note type-changed-here local /etc/d'],
  },
  {
    row: '22 the same, and the image adds a file in it',
    old: { 'd/f': '1' },
    local: { d: 'mine' },
    image: { 'd/f': '1', 'd/g': '2' },
    want: { d: 'mine', 'd/f': null },
    says: ['note not-carried none /etc/d/g', 'note type-changed-here local /etc/d'],
  },
  {
    row: '23 file not changed here, a folder in the image',
    old: { f: '1' },
    local: { f: '1' },
    image: { 'f/x': '2' },
    want: { f: 'dir', 'f/x': '2' },
  },
  {
    row: '24 fifo added here',
    old: {},
    local: { p: { fifo: true } },
    image: {},
    want: { p: null },
    says: ['note special-dropped none /etc/p'],
  },
  {
    row: 'mode image: owned paths only',
    old: { f: '1', owned: '1' },
    local: { f: 'mine', owned: 'mine', added: 'mine' },
    image: { f: '2', owned: '2' },
    choices: { mode: 'image', owned: ['/etc/owned'] },
    want: { f: '2', owned: 'mine', added: null },
  },
]

const wordOf = (entry: { type: string; target?: string } | undefined, folder: string, path: string): string | null => {
  if (entry === undefined) return null
  if (entry.type === 'symlink') return `-> ${entry.target}`
  return entry.type === 'file' ? readFileSync(join(folder, path), 'utf8') : entry.type
}

describe('the merge of /etc, row by row', () => {
  for (const { row, old, local, image, choices, want, modes = {}, says = [] } of ROWS)
    it(row, async () => {
      const { findings, result, folder } = await mergeTrees(old, local, image, choices)
      const said = findings.map(({ level, kind, taken, path }) => `${level} ${kind} ${taken} ${path}`)
      expect(said.sort()).toEqual([...says].sort())
      if (says.some((line) => line.startsWith('refused type'))) return
      for (const [path, word] of Object.entries(want))
        expect(wordOf(result.entries.get(path), folder, path), path).toBe(word)
      for (const [path, mode] of Object.entries(modes)) expect(result.entries.get(path)?.mode, path).toBe(mode)
    })

  it.skipIf(!isRoot)('14 owner changed here, content in the image (needs root)', async () => {
    const { result, folder } = await mergeTrees({ f: '1' }, { f: { text: '1', uid: 1234 } }, { f: '2' })
    expect(result.entries.get('f')).toMatchObject({ uid: 1234, gid: 1234 })
    expect(readFileSync(join(folder, 'f'), 'utf8')).toBe('2')
  })

  it('16 xattr changed here: kept, whatever the image does to the content', async () => {
    const { result } = await mergeTrees(
      { f: '1', g: '1', gone: { text: '1', xattr: 'old' } },
      { f: { text: '1', xattr: 'mine' }, g: '1', gone: '1' },
      { f: '2', g: { text: '1', xattr: 'theirs' }, gone: { text: '2', xattr: 'old' } },
    )
    const note = (path: string) => result.entries.get(path)?.xattrs?.get('user.note')
    expect(note('f')).toBe(Buffer.from('mine').toString('base64'))
    expect(note('g')).toBe(Buffer.from('theirs').toString('base64'))
    expect(note('gone')).toBeUndefined()
  })

  it('25 an ACL set here stays; hard links stay links', async () => {
    const { result } = await mergeTrees(
      { f: '1', h1: 'h', o: 'o', p: 'p', q: { hardlink: 'p' } },
      {
        ...{ f: { text: '1', acl: 'u:1234:rw' }, h1: 'h', m1: 'mine', m2: { hardlink: 'm1' } },
        ...{ o: 'o', o2: { hardlink: 'o' }, p: 'p', q: { hardlink: 'p' } },
      },
      { f: '2', h1: 'h2', h2: { hardlink: 'h1' }, o: 'o', p: 'p', q: 'p' },
    )
    expect([...(result.entries.get('f')?.xattrs?.keys() ?? [])]).toContain('system.posix_acl_access')
    expect(result.entries.get('h1')?.inode).toBeDefined()
    expect(result.entries.get('h1')?.inode).toBe(result.entries.get('h2')?.inode)
    expect(result.entries.get('m1')?.inode).toBe(result.entries.get('m2')?.inode)
    // Made here, to a file that the image has as well; and one that the image took apart stays apart.
    expect(result.entries.get('o')?.inode).toBeDefined()
    expect(result.entries.get('o')?.inode).toBe(result.entries.get('o2')?.inode)
    expect(result.entries.get('p')?.inode).toBeUndefined()
  })
})
