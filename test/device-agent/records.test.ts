import { createHash } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import { nodeFiles, writeFileDurably } from '../../base/durable.ts'
import { fileErrors } from '../../base/file-errors.ts'
import { decodeFloor } from '../../bootloader/floor.ts'
import { compareNumbers } from '../../bundle/fields.ts'
import {
  clip,
  decodeRecord,
  EMPTY_BODY,
  encodeRecord,
  MAX_TEXT,
  newest,
  type RecordBody,
  readNumber,
} from '../../device/records/record.ts'
import { openRecords } from '../../device/records/store.ts'
import { codeOf, codeOfAsync } from '../codes.ts'
import { MemoryFiles } from './memory-files.ts'

const DIGEST = 'cd'.repeat(32) as Sha256
const AT = '2026-11-21T00:00:00.000Z'
const number = (counter: number, epoch = 0) => ({ epoch, counter })
const body = (n: number): RecordBody => ({
  ...EMPTY_BODY,
  installFloor: number(n),
  securityFloor: number(Math.floor(n / 2)),
  blocked: [{ digest: DIGEST, number: number(n), reason: `TRY_TRIES_SPENT: ${n}`, at: AT }],
  // Several sectors, so that tearing has somewhere to happen.
  outcomes: Array.from({ length: 12 }, () => ({ at: AT, what: 'check', ok: true, message: String(n).repeat(200) })),
})

describe('a state record', () => {
  it('comes back as it was written', () => {
    const record = { generation: 7, body: body(3) }
    expect(decodeRecord(encodeRecord(record), 'x')).toEqual(record)
  })

  it('is refused when any byte of it is changed, lost or added', () => {
    const bytes = encodeRecord({ generation: 7, body: body(3) })
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const changed = Uint8Array.from(bytes)
        changed[at] = (changed[at] ?? 0) ^ flip
        expect(codeOf(() => decodeRecord(changed, 'x'))).toBe('RECORD_INVALID')
      }),
      { numRuns: 300 },
    )
    for (let length = 0; length < bytes.length; length++)
      expect(codeOf(() => decodeRecord(bytes.slice(0, length), 'x'))).toBe('RECORD_INVALID')
    expect(codeOf(() => decodeRecord(Buffer.concat([bytes, Buffer.from('\n')]), 'x'))).toBe('RECORD_INVALID')
  })

  it('never writes what it could not read', () => {
    const wrong = { ...body(1), installFloor: { epoch: -1, counter: 0 } }
    expect(codeOf(() => encodeRecord({ generation: 1, body: wrong }))).toBe('RECORD_INVALID')
    expect(codeOf(() => encodeRecord({ generation: 1, body: { ...EMPTY_BODY, state: { name: 'x' } as never } }))).toBe(
      'RECORD_INVALID',
    )
  })

  it('keeps floors and block list when a newer agent wrote states and fields unknown here', () => {
    const newer = { ...body(4), state: { name: 'hovering', job: 1 }, later: true } as unknown as RecordBody
    const text = `${JSON.stringify(newer)}\n`
    // The checksum as the format says it, written down a second time.
    const digest = createHash('sha256').update(`9\n${text}`).digest('hex')
    const read = decodeRecord(Buffer.from(`bistable-record 1 9 ${digest}\n${text}`), 'x').body
    expect(read.state).toEqual({ name: 'idle' })
    expect(read.installFloor).toEqual(number(4))
    expect(read.blocked).toHaveLength(1)
  })

  it('clips free text at a whole character and without control bytes', () => {
    expect(clip('a\u001b[31mb\n')).toBe('a [31mb ')
    expect(clip('x'.repeat(1000))).toHaveLength(MAX_TEXT - 2)
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 900 }), (text) => {
        const cut = clip(text)
        expect(cut.length).toBeLessThanOrEqual(MAX_TEXT)
        expect(Buffer.from(cut).toString()).toBe(cut)
      }),
    )
  })

  it('reads release numbers in one form only', () => {
    expect(readNumber('1.42')).toEqual({ epoch: 1, counter: 42 })
    for (const bad of ['', '1', '01.2', '1.-2', '1.2.3', '1.99999999999999999', ' 1.2'])
      expect(readNumber(bad), bad).toBeUndefined()
  })
})

describe('A32 the two records', () => {
  it('survive every cut: no acknowledged floor falls, and the next save works', async () => {
    const files = new MemoryFiles()
    const acknowledged: { ops: number; floor: number }[] = [{ ops: 0, floor: 0 }]
    const store = await openRecords('/d', undefined, files)
    for (let n = 1; n <= 6; n++) {
      await store.save(body(n))
      acknowledged.push({ ops: files.log.length, floor: n })
    }
    let states = 0
    for (let ops = 0; ops <= files.log.length; ops++) {
      const promised = acknowledged.findLast((a) => a.ops <= ops)?.floor ?? 0
      for (const disk of files.crashes(ops)) {
        states++
        const after = await openRecords('/d', undefined, disk)
        const floor = after.body.installFloor.counter
        expect(floor).toBeGreaterThanOrEqual(promised)
        expect(floor).toBeLessThanOrEqual(promised + 1)
        expect(after.body.securityFloor.counter).toBeGreaterThanOrEqual(Math.floor(promised / 2))
        if (floor > 0) expect(after.body.blocked).toEqual(body(floor).blocked)
        await after.save({ ...after.body, installFloor: number(50) })
        const again = await openRecords('/d', undefined, new MemoryFiles(disk.content))
        expect(again.body.installFloor).toEqual(number(50))
        expect(again.problems).toEqual([])
      }
    }
    console.log(`records: ${states} disks after a cut, 0 with a lower floor`)
    expect(states).toBeGreaterThan(200)
  })

  it('with either one destroyed in any way, the other and the running release hold the floors', async () => {
    const files = new MemoryFiles()
    const store = await openRecords('/d', undefined, files)
    for (let n = 1; n <= 8; n++) await store.save(body(n))
    const running = { number: number(8), securityFloor: number(4), committed: true }
    await fc.assert(
      fc.asyncProperty(fc.constantFrom('0', '1'), fc.uint8Array({ maxLength: 600 }), async (which, junk) => {
        const disk = new MemoryFiles(new Map(files.content).set(`/d/records/${which}`, junk))
        const after = await openRecords('/d', running, disk)
        expect(after.body.installFloor).toEqual(number(8))
        expect(after.body.securityFloor).toEqual(number(4))
        expect(after.problems.join()).toContain('RECORD_INVALID')
        expect(after.needsSave).toBe(true)
      }),
      { numRuns: 60 },
    )
  })

  it('with everything lost, floors come from the running release, but never from a try', async () => {
    const running = { number: number(8), securityFloor: number(4), committed: true }
    const lost = await openRecords('/d', running, new MemoryFiles())
    expect(lost.body.installFloor).toEqual(number(8))
    expect(lost.body.securityFloor).toEqual(number(4))
    const trial = await openRecords('/d', { ...running, committed: false }, new MemoryFiles())
    expect(trial.body.installFloor).toEqual(number(0))
  })

  it('are opened where not even their folder can be made, and written when it can', async () => {
    const files = new MemoryFiles()
    let broken = true
    const disk = {
      ...bound(files),
      rename: files.rename.bind(files),
      makeDir: async () => {
        if (broken) throw fileErrors.FILE_FAILED('cannot create /d/records: input/output error (EIO)')
        await files.makeDir()
      },
    }
    const running = { number: number(8), securityFloor: number(4), committed: true }
    const store = await openRecords('/d', running, disk)
    expect(store.problems.join()).toContain('FILE_FAILED')
    expect(store.body.installFloor).toEqual(number(8))
    expect(await codeOfAsync(() => store.save(store.body))).toBe('FILE_FAILED')
    broken = false
    await store.save(store.body)
    expect((await openRecords('/d', undefined, files)).body.installFloor).toEqual(number(8))
  })

  it('never lower a floor, whatever is asked to be saved', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(fc.nat(9), fc.nat(9)), { maxLength: 8 }), async (floors) => {
        const files = new MemoryFiles()
        const store = await openRecords('/d', undefined, files)
        let high = number(0)
        for (const [counter, epoch] of floors) {
          const asked = number(counter, epoch)
          high = newest(high, asked)
          await store.save({ ...EMPTY_BODY, installFloor: asked, securityFloor: asked })
          const { body: now } = await openRecords('/d', undefined, new MemoryFiles(files.content))
          expect(compareNumbers(now.installFloor, high)).toBe(0)
          const file = files.content.get('/d/floor')
          expect(file === undefined ? number(0) : decodeFloor(file)).toEqual(high)
        }
      }),
      { numRuns: 50 },
    )
  })

  it('keep the root chain by digest and say so when one is damaged', async () => {
    const files = new MemoryFiles()
    const store = await openRecords('/d', undefined, files)
    const roots = [1, 2, 3].map((version) => ({ version, envelope: Buffer.from(`root ${version}`) }))
    await store.save({ ...EMPTY_BODY, trust: await store.saveRoots(roots) })
    const again = await openRecords('/d', undefined, new MemoryFiles(files.content))
    expect((await again.roots()).map((r) => Buffer.from(r).toString())).toEqual(['root 1', 'root 2', 'root 3'])
    for (const change of [
      new Map(files.content).set('/d/records/roots/2.json', Buffer.from('root X')),
      without(files),
    ]) {
      const damaged = await openRecords('/d', undefined, new MemoryFiles(change))
      expect(damaged.body.trust.version).toBe(3)
      expect(await codeOfAsync(() => damaged.roots())).toBe('RECORD_ROOTS')
    }
  })
})

function without(files: MemoryFiles): Map<string, Uint8Array> {
  const rest = new Map(files.content)
  rest.delete('/d/records/roots/2.json')
  return rest
}

describe('durable files', () => {
  const scratch = mkdtempSync(join(tmpdir(), 'durable-'))

  it('are written, flushed, renamed and flushed in this order, then read back', async () => {
    const files = new MemoryFiles()
    await writeFileDurably('/d/x', Buffer.from('new'), files)
    expect(files.log.map((op) => op.kind)).toEqual(['write', 'sync', 'rename', 'syncDir'])
  })

  it('hold the old or the new bytes after every cut', async () => {
    const files = new MemoryFiles(new Map([['/d/x', Buffer.from('old')]]))
    await writeFileDurably('/d/x', Buffer.from('new'), files)
    for (let ops = 0; ops <= files.log.length; ops++)
      for (const disk of files.crashes(ops))
        expect(['old', 'new']).toContain(Buffer.from(disk.content.get('/d/x') ?? '').toString())
  })

  it('work on the real file system, and errors have codes', async () => {
    const path = join(scratch, 'x')
    await writeFileDurably(path, Buffer.from('one'))
    await writeFileDurably(path, Buffer.from('two'))
    expect(readFileSync(path, 'utf8')).toBe('two')
    expect(await nodeFiles.read(join(scratch, 'none'), 10)).toBeUndefined()
    writeFileSync(path, 'x'.repeat(11))
    expect(await codeOfAsync(() => nodeFiles.read(path, 10))).toBe('FILE_TOO_LARGE')
    expect(await codeOfAsync(() => nodeFiles.read(scratch, 10))).toBe('FILE_FAILED')
    expect(await codeOfAsync(() => writeFileDurably(join(scratch, 'no/such/x'), Buffer.from('')))).toBe('FILE_FAILED')
    expect(await codeOfAsync(() => nodeFiles.write('/dev/full', Buffer.from('x')))).toBe('FILE_FULL')
    rmSync(scratch, { recursive: true })
  })

  it('notice a disk that loses the write', async () => {
    const files = new MemoryFiles(new Map([['/d/x', Buffer.from('old')]]))
    const lying = { ...bound(files), rename: async () => undefined }
    expect(await codeOfAsync(() => writeFileDurably('/d/x', Buffer.from('new'), lying))).toBe('FILE_READBACK')
  })
})

function bound(files: MemoryFiles) {
  return {
    read: files.read.bind(files),
    write: files.write.bind(files),
    sync: files.sync.bind(files),
    syncDir: files.syncDir.bind(files),
    removeTree: files.removeTree.bind(files),
    makeDir: files.makeDir.bind(files),
    remove: files.remove.bind(files),
  }
}
