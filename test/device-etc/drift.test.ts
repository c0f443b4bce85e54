import { execFileSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { driftText, findDrift, showable } from '../../device/drift/drift.ts'
import { diffLines } from '../../device/drift/lines.ts'
import { liveInventory } from '../../device/drift/live.ts'
import { attrTools } from '../../device/etc/xattrs.ts'
import { deviceLab, TestDevice } from '../helpers/device.ts'
import { makeTree, scratch, type Tree } from './trees.ts'

/** What differs between a release and a device, on real folders. */

const never = new AbortController().signal

async function compare(release: Tree, change: (root: string) => void, folders = ['/etc', '/opt/app', '/opt/app-x']) {
  const base = scratch()
  const before = makeTree(join(base, 'release'), release)
  const now = join(base, 'device')
  execFileSync('cp', ['-a', before, now])
  change(now)
  const of = (root: string) => liveInventory(root, folders, attrTools, never)
  return await findDrift({ folders, owned: ['/etc/hostname'], xattrs: true, release: of(before), device: of(now) })
}

describe('drift', () => {
  it("finds content, mode, owner, xattr, type, added and deleted, and knows what is the device's own", async () => {
    const drift = await compare(
      {
        'etc/content': 'a',
        'etc/mode': 'a',
        'etc/xattr': 'a',
        'etc/type': 'a',
        'etc/deleted': 'a',
        'etc/hostname': 'factory',
        'etc/link': { to: 'a' },
        'etc/same': 'a',
        'opt/app/a': 'a',
        'opt/app-x/b': 'b',
        'usr/outside': 'a',
      },
      (root) => {
        rmSync(join(root, 'etc/type'))
        rmSync(join(root, 'etc/deleted'))
        rmSync(join(root, 'etc/link'))
        makeTree(root, {
          'etc/content': 'b',
          'etc/mode': { text: 'a', mode: 0o600 },
          'etc/xattr': { text: 'a', xattr: 'x' },
          'etc/type': { to: 'elsewhere' },
          'etc/link': { to: 'b' },
          'etc/hostname': 'mine',
          'etc/added': 'new',
          'etc/.bistable-release': '1.1 x',
          'opt/app/log': 'line',
          'usr/outside': 'b',
        })
      },
    )
    expect(drift.entries.map(({ path, kind, aspects, owned }) => [path, kind, aspects.join(), owned])).toEqual([
      ['/etc/added', 'added', '', false],
      ['/etc/content', 'changed', 'content', false],
      ['/etc/deleted', 'removed', '', false],
      ['/etc/hostname', 'changed', 'content', true],
      ['/etc/link', 'changed', 'target', false],
      ['/etc/mode', 'changed', 'mode', false],
      ['/etc/type', 'changed', expect.stringContaining('type'), false],
      ['/etc/xattr', 'changed', 'xattrs', false],
      ['/opt/app/log', 'added', '', false],
    ])
    expect(drift).toMatchObject({ count: 9, owned: 1 })
    const text = driftText({ ...drift, diffs: { '/etc/content': '@ line 1\n-a\n+b' } })
    expect(text).toContain("9 paths differ from the release, 1 of them are the device's own")
    expect(text).toContain('changed  /etc/content (content)\n    @ line 1\n    -a\n    +b\n')
    expect(text).toContain('changed  /etc/hostname (content) [own]')
  })

  it('says nothing of what is equal', async () => {
    expect(await compare({ 'etc/a': 'a', 'opt/app/b/c': 'd', 'opt/app-x/e': 'f' }, () => undefined)).toMatchObject({
      count: 0,
      entries: [],
    })
  })

  it('shows text line by line, and nothing of what is not text', () => {
    const text = (lines: string) => Buffer.from(lines)
    expect(diffLines(text('a\nb\nc\n'), text('a\nB\nc\nd\n'))).toBe('@ line 2\n-b\n+B\n@ line 4\n+d')
    expect(diffLines(text('a\0'), text('b'))).toBeUndefined()
  })

  it('shows no lines of what only some people may read, on either side', () => {
    const file = (path: string, mode: number, size = 9) => ({ path, type: 'file' as const, mode, uid: 0, gid: 0, size })
    const changed = (path: string, before: number, after: number, size?: number) => {
      const [release, device] = [file(path, before), file(path, after, size)]
      return { path, kind: 'changed' as const, aspects: ['content' as const], owned: false, release, device }
    }
    const entries = [
      changed('/etc/issue', 0o644, 0o664),
      changed('/etc/shadow', 0o640, 0o640),
      changed('/etc/opened', 0o600, 0o644),
      changed('/etc/closed', 0o644, 0o600),
      changed('/etc/large', 0o644, 0o644, 11),
      { ...changed('/etc/new', 0o644, 0o644), kind: 'added' as const },
    ]
    expect(showable(entries, 10)).toEqual(['/etc/issue'])
  })

  it('DRIFT_UNREADABLE names the path; DRIFT_TOO_LARGE is told before memory fills', async () => {
    const base = scratch()
    makeTree(base, { 'etc/f': 'a' })
    const gone = liveInventory(join(base, 'etc/f'), ['/below'], undefined, never)
    await expect(gone.next()).rejects.toMatchObject({ code: 'DRIFT_UNREADABLE' })
    const many = liveInventory(base, ['/etc'], undefined, never, 1)
    await expect(many.next()).rejects.toMatchObject({ code: 'DRIFT_TOO_LARGE' })
  })
})

it('DRIFT_NO_INVENTORY: the command says so where the running release left no record', async () => {
  const lab = await deviceLab()
  onTestFinished(() => lab.remove())
  const device = await TestDevice.make(lab.base, lab.program)
  const ran = await device.run(['drift', '--json'])
  expect(ran.exit).toBe(6)
  expect(ran.json).toMatchObject({ ok: false, error: { code: 'DRIFT_NO_INVENTORY' } })
}, 60_000)
