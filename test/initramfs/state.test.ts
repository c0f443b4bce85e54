import {
  cpSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { have, run } from '../helpers/run.ts'
import { type Release, StateWorld } from './state-world.ts'

/** Migrations of data, as the initramfs runs them: kept before, undone after, whatever moment the power goes. */

const dir = mkdtempSync(join(tmpdir(), 'bistable-state-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const ready = have('setsid', 'busybox', 'timeout')

const A: Release = { slot: 'a', number: '0.1', schema: 0 }
/** Neither migration can run twice: what it wants is gone by then. */
const B: Release = {
  slot: 'b',
  number: '0.2',
  schema: 2,
  migrations: {
    1: 'step cp db db1\nstep rm db\nstep mkdir journal\nstep touch journal/1\n',
    2: 'step test ! -e index\nstep mv db1 db2\necho two >index\nstep rm -r journal\n',
  },
}
const BEFORE = { db: 'rows', 'sub/settings': 'of the device' }
const AFTER = { db2: 'rows', 'sub/settings': 'of the device', index: 'two' }

let worlds = 0
function world(): StateWorld {
  const made = new StateWorld(join(dir, String(worlds++)))
  made.put(BEFORE)
  // The old release has been here: it knows how to undo.
  made.start(A)
  return made
}
/** A program of this machine with its libraries, into a system to chroot into. */
function putProgram(root: string, program: string): void {
  const libraries = run('ldd', [program]).match(/\/\S+/g) ?? []
  for (const path of [program, ...libraries]) {
    mkdirSync(join(root, dirname(path)), { recursive: true })
    cpSync(path, join(root, path), { dereference: true })
  }
}
const undoOf = (w: StateWorld) => join(w.data, 'bistable/state/undo')
const copies = (w: StateWorld) => join(w.data, 'bistable/state/copies')

describe.skipIf(!ready)('state', () => {
  test('a trial migrates step by step, a commit keeps it, and what was kept for the way back is dropped', () => {
    const w = world()
    expect(w.start(B, { boot: 'try' }).said).toContain('note the data have schema 2 now')
    expect(w.files()).toEqual(AFTER)
    expect(readFileSync(undoOf(w), 'utf8')).toBe(`b 0.2 ${'ab'.repeat(32)} changed copy\n0 0\n`)
    // Another try does it no second time.
    expect(w.start(B, { boot: 'try' }).said).not.toContain('migration')
    expect(w.start(B).said).toBe('ext4 2 2 2\n')
    expect([existsSync(undoOf(w)), existsSync(copies(w))]).toEqual([false, false])
    // Broken later: the old release comes up with data it does not know, and says so.
    expect(w.start(A, { boot: 'fallback' }).said).toBe('note the data have schema 2, release 0.1 has 0\next4 2 2 0\n')
    expect(w.files()).toEqual(AFTER)
    expect(readFileSync(join(w.data, 'bistable/slots/b/state'), 'utf8')).toBe(`0.2 ${'ab'.repeat(32)} 2 2\n`)
  })

  test('a release that is not committed leaves the data as it found them', () => {
    const w = world()
    w.start(B, { boot: 'try' })
    w.put({ new: 'from the trial' })
    expect(w.start(A, { boot: 'fallback' }).said).toContain('note the state is as it was before release 0.2')
    expect(w.files()).toEqual(BEFORE)
    expect(readFileSync(join(w.data, 'bistable/schema'), 'utf8')).toBe('0 0\n')
    expect([existsSync(undoOf(w)), existsSync(copies(w))]).toEqual([false, false])
  })

  test('a migration that fails or hangs ends the try with its words, and the old release finds everything as it was', () => {
    const w = world()
    const failing = {
      ...B,
      migrations: { 1: B.migrations?.[1] ?? '', 2: 'echo first\necho "no such table" >&2\nexit 3\n' },
    }
    expect(w.start(failing, { boot: 'try' }).said).toContain(
      'fail: migration /migrate-2 to schema 2 ended with 3 after at most 20 s: no such table',
    )
    expect(
      w.start({ ...B, seconds: 1, migrations: { ...B.migrations, 2: 'while :; do :; done\n' } }, { boot: 'try' }).said,
    ).toMatch(
      /note a migration was cut; it begins again[\s\S]*fail: migration \/migrate-2 to schema 2 ended with 137 after at most 1 s/,
    )
    expect(w.start(A, { boot: 'fallback' }).said).toContain('as it was before')
    expect(w.files()).toEqual(BEFORE)
  })

  test.skipIf(!have('getfattr', 'setfattr', 'ldd'))(
    'extended attributes and hard links come back, by the cp of the image',
    () => {
      const w = world()
      putProgram(w.state, '/bin/cp')
      const file = join(w.state, 'var/lib/app/sub/settings')
      const second = join(w.state, 'var/lib/app/second')
      linkSync(file, second)
      // What an overlay writes to remember that a folder hides the image's; only root may.
      const names = process.getuid?.() === 0 ? ['user.kept', 'trusted.overlay.opaque'] : ['user.kept']
      for (const name of names) for (const path of [file, dirname(file)]) run('setfattr', ['-n', name, '-v', 'y', path])
      const attributes = () => run('getfattr', ['-R', '-d', '-m', '-', '--absolute-names', dirname(file)])
      const before = attributes()
      expect(before.match(/="y"/g)).toHaveLength(names.length * 2)
      const replaced = `rm -rf sub second\nmkdir sub\necho new >sub/settings\n${B.migrations?.[1]}`
      w.start({ ...B, migrations: { ...B.migrations, 1: replaced } }, { boot: 'try' })
      expect([attributes(), w.files()['sub/settings']]).toEqual(['', 'new'])
      w.start(A, { boot: 'fallback' })
      expect([attributes(), w.files()]).toEqual([before, { ...BEFORE, second: BEFORE['sub/settings'] }])
      expect(statSync(file).ino).toBe(statSync(second).ino)
    },
  )

  test('what cannot come back is not begun', () => {
    const w = world()
    const far = { ...B, schema: 3, migrations: { 3: 'exit 0\n' } }
    expect(w.start(far, { boot: 'try' }).said).toContain(
      'fail: the data have schema 0, and release 0.2 does not migrate them to 3',
    )
    expect(w.start(A, { boot: 'fallback' }).cut).toBe(false)
    expect(w.files()).toEqual(BEFORE)
    // A release from before all this stands in the other slot.
    rmSync(join(w.data, 'bistable/slots/a/state'))
    expect(w.start(B, { boot: 'try' }).said).toContain('the release in slot a cannot undo a migration')
    expect(w.files()).toEqual(BEFORE)
    // A file that no power cut leaves.
    writeFileSync(join(w.data, 'bistable/schema'), 'x\n')
    expect(w.start(B, { boot: 'try' }).said).toContain('fail: the schema of the data is not readable')
    expect(w.start(A).said).toContain('note the schema of the data is not readable')
    expect(w.files()).toEqual(BEFORE)
  })

  test('a new device has the schema of the release that comes first', () => {
    const w = new StateWorld(join(dir, String(worlds++)))
    expect(w.start({ ...B, slot: 'a' }).said).toBe('ext4 2 2 2\n')
    expect(readdirSync(join(w.data, 'bistable')).sort()).toEqual(['schema', 'seeding', 'slots'])
  })

  test('the power goes at every program and at every step of a migration: the next start begins again or undoes', {
    timeout: 300_000,
  }, () => {
    const template = world()
    const spot = join(dir, 'spot')
    const moments = [
      ...['1.1', '1.2', '1.3', '1.4', '2.1', '2.2', '2.3'].map((stepAt) => ({ stepAt })),
      ...Array.from({ length: 99 }, (_, n) => [{ cutAt: n + 1 }, { cutAt: n + 1, half: true }]).flat(),
    ]
    let cuts = 0
    for (const moment of moments) {
      const cut = template.copyTo(spot)
      if (!cut.start(B, { boot: 'try', ...moment }).cut) break
      cuts++
      const again = cut.copyTo(`${spot}-again`)
      const { said } = again.start(B, { boot: 'try' })
      expect([again.files(), said], JSON.stringify(moment)).toEqual([AFTER, expect.stringMatching(/^ext4 2 2 2$/m)])
      cut.start(A, { boot: 'fallback' })
      expect([cut.files(), existsSync(undoOf(cut))], JSON.stringify(moment)).toEqual([BEFORE, false])
    }
    // Seven steps, and both halves of each program: fewer would mean that the cuts do not bite.
    expect(cuts).toBeGreaterThan(35)

    // And while it is undone.
    template.start(B, { boot: 'try' })
    for (let cutAt = 1; ; cutAt++) {
      const back = template.copyTo(spot)
      if (!back.start(A, { boot: 'fallback', cutAt, half: cutAt % 2 === 0 }).cut) break
      back.start(A, { boot: 'fallback' })
      expect([back.files(), existsSync(undoOf(back))], String(cutAt)).toEqual([BEFORE, false])
    }
  })
})
