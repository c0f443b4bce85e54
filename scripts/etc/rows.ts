import type { Tree } from '../../test/device-etc/trees.ts'

/** One case for each row of the merge matrix, for both programs. Trees are /etc: of the old image, here, of the new image. */
export interface Case {
  readonly row: number
  readonly here: string
  readonly there: string
  readonly old: Tree
  readonly local: Tree
  readonly image: Tree
  /** Paths whose outcome is told. */
  readonly watch: readonly string[]
  readonly pinned?: readonly string[]
}

const acl = { text: '1', acl: 'u:1234:rw' }

export const CASES: readonly Case[] = [
  {
    ...{ row: 1, here: 'nothing', there: 'changed, added, deleted' },
    ...{ old: { f: '1', gone: '1' }, local: { f: '1', gone: '1' }, image: { f: '2', new: '2' } },
    watch: ['f', 'new', 'gone'],
  },
  {
    ...{ row: 2, here: 'content changed', there: 'same' },
    ...{ old: { f: '1' }, local: { f: 'mine' }, image: { f: '1' }, watch: ['f'] },
  },
  {
    ...{ row: 3, here: 'content changed', there: 'changed in other lines (`text`), in the same (`f`)' },
    old: { f: '1\n', text: 'a\nb\nc\nd\n' },
    local: { f: 'mine\n', text: 'A\nb\nc\nd\n' },
    image: { f: 'theirs\n', text: 'a\nb\nc\nD\n' },
    watch: ['text', 'f'],
  },
  {
    ...{ row: 4, here: 'content changed', there: 'changed to the same' },
    ...{ old: { f: '1' }, local: { f: '2' }, image: { f: '2' }, watch: ['f'] },
  },
  {
    ...{ row: 5, here: 'put back to the old default', there: 'changed' },
    old: { f: '1', pinned: '1' },
    local: { f: '1', pinned: '1' },
    image: { f: '2', pinned: '2' },
    ...{ watch: ['f', 'pinned'], pinned: ['/etc/pinned'] },
  },
  {
    ...{ row: 6, here: 'content changed', there: 'deleted' },
    ...{ old: { f: '1' }, local: { f: 'mine' }, image: {}, watch: ['f'] },
  },
  {
    ...{ row: 7, here: 'deleted', there: 'same' },
    ...{ old: { f: '1' }, local: {}, image: { f: '1' }, watch: ['f'] },
  },
  {
    ...{ row: 8, here: 'deleted', there: 'changed' },
    ...{ old: { f: '1' }, local: {}, image: { f: '2' }, watch: ['f'] },
  },
  {
    ...{ row: 9, here: 'deleted', there: 'deleted' },
    ...{ old: { f: '1' }, local: {}, image: {}, watch: ['f'] },
  },
  {
    ...{ row: 10, here: 'folder deleted', there: 'a file added in it' },
    ...{ old: { 'd/f': '1' }, local: {}, image: { 'd/f': '1', 'd/new': '2' }, watch: ['d/f', 'd/new'] },
  },
  {
    ...{ row: 11, here: 'file added', there: 'not there' },
    ...{ old: {}, local: { f: 'mine' }, image: {}, watch: ['f'] },
  },
  {
    ...{ row: 12, here: 'added', there: 'added, other content' },
    ...{ old: {}, local: { f: 'mine' }, image: { f: 'theirs' }, watch: ['f'] },
  },
  {
    ...{ row: 13, here: 'added in a folder', there: 'folder deleted' },
    ...{ old: { 'd/f': '1' }, local: { 'd/f': '1', 'd/mine': 'mine' }, image: {}, watch: ['d/f', 'd/mine'] },
  },
  {
    ...{ row: 14, here: 'mode changed', there: 'content changed' },
    old: { f: { text: '1', mode: 0o644 } },
    local: { f: { text: '1', mode: 0o600 } },
    image: { f: { text: '2', mode: 0o644 } },
    watch: ['f'],
  },
  {
    ...{ row: 15, here: 'mode changed', there: 'same' },
    old: { f: { text: '1', mode: 0o644 } },
    local: { f: { text: '1', mode: 0o600 } },
    image: { f: { text: '1', mode: 0o644 } },
    watch: ['f'],
  },
  {
    ...{ row: 16, here: 'extended attribute set', there: 'content changed' },
    ...{ old: { f: '1' }, local: { f: { text: '1', xattr: 'mine' } }, image: { f: '2' }, watch: ['f'] },
  },
  {
    ...{ row: 17, here: 'mode of a folder', there: 'a file added in it' },
    old: { d: { dir: true, mode: 0o755 } },
    local: { d: { dir: true, mode: 0o700 } },
    image: { d: { dir: true, mode: 0o755 }, 'd/new': '2' },
    watch: ['d', 'd/new'],
  },
  {
    ...{ row: 18, here: 'symlink retargeted', there: 'retargeted' },
    ...{ old: { l: { to: 'old' } }, local: { l: { to: 'mine' } }, image: { l: { to: 'theirs' } }, watch: ['l'] },
  },
  {
    ...{ row: 19, here: 'file made a symlink, symlink a file', there: 'same' },
    old: { f: '1', l: { to: 'x' } },
    local: { f: { to: 'elsewhere' }, l: 'mine' },
    image: { f: '1', l: { to: 'x' } },
    watch: ['f', 'l'],
  },
  {
    ...{ row: 20, here: 'file changed', there: 'a folder now' },
    ...{ old: { f: '1' }, local: { f: 'mine' }, image: { 'f/x': '2' }, watch: ['f'] },
  },
  {
    ...{ row: 21, here: 'changes in a folder', there: 'a file now' },
    ...{ old: { 'd/f': '1' }, local: { 'd/f': 'mine' }, image: { d: 'file' }, watch: ['d'] },
  },
  {
    ...{ row: 22, here: 'folder replaced by a file', there: 'same' },
    ...{ old: { 'd/f': '1' }, local: { d: 'mine' }, image: { 'd/f': '1' }, watch: ['d'] },
  },
  {
    ...{ row: 23, here: 'nothing', there: 'file is a folder now' },
    ...{ old: { f: '1' }, local: { f: '1' }, image: { 'f/x': '2' }, watch: ['f', 'f/x'] },
  },
  {
    ...{ row: 24, here: 'fifo added', there: 'not there' },
    ...{ old: {}, local: { p: { fifo: true } }, image: {}, watch: ['p'] },
  },
  {
    ...{ row: 25, here: 'ACL set (`f`), a second hard link made (`m`, `n`)', there: 'content of `f` changed' },
    old: { f: '1', m: '1' },
    local: { f: acl, m: '1', n: { hardlink: 'm' } },
    image: { f: '2', m: '1' },
    watch: ['f', 'm', 'n'],
  },
]
