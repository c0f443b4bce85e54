import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { runCli } from '../../base/cli.ts'
import { authenticateAssignment } from '../../bundle/authentic.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { openBundle } from '../../bundle/reader.ts'
import { type AssignRequest, assign } from '../../publisher/assign.ts'
import { publisherVerbs } from '../../publisher/cli.ts'
import { packBundle } from '../../publisher/pack.ts'
import { publish } from '../../publisher/publish.ts'
import { readStatement, signFile, signPaths } from '../../publisher/sign.ts'
import { ASSIGNMENT } from '../bundle/fixture.ts'
import { codeOfAsync } from '../codes.ts'
import { makeBundle, type TestBundle } from '../helpers/bundle.ts'
import { signer } from '../keys/helpers.ts'

let work: string
let made: TestBundle
const quiet = { say: () => {} }
const NOW = Date.parse('2026-11-22T10:00:00.500Z')

beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'bistable-assign-'))
  made = await makeBundle(work, 'r2', { boot: Buffer.alloc(8192, 1), rootfs: Buffer.alloc(8192, 2) })
})
afterAll(() => rmSync(work, { recursive: true, force: true }))

const request = (to: string, more: Partial<AssignRequest> = {}): AssignRequest => ({
  bundle: made.path,
  device: 'device-1',
  to: join(work, to),
  signers: [signer(21)],
  now: NOW,
  allowDowngrade: false,
  ...more,
})
const written = (to: string, device = 'device-1') => readFileSync(join(work, to, 'assignments', `${device}.json`))

describe('assign', () => {
  it('copies the bundle and writes a word that the device believes', async () => {
    const statement = await assign(request('one', { validSeconds: 3600, notBefore: '2026-11-22T10:30:00Z' }), quiet)
    expect(authenticateAssignment(written('one'), made.trusted).statement).toEqual(statement)
    expect(statement).toMatchObject({
      device: 'device-1',
      sequence: 1,
      issued: '2026-11-22T10:00:00Z',
      notBefore: '2026-11-22T10:30:00Z',
      expires: '2026-11-22T11:00:00Z',
      allowDowngrade: false,
    })
    const source = await fileSource(join(work, 'one', statement.bundle?.path ?? ''))
    const head = await openBundle(source, made)
    await source.close()
    expect([head.digest, head.size]).toEqual([statement.release, statement.bundle?.size])
  })

  it('counts up, and never writes what the device would refuse', async () => {
    for (const sequence of [1, 2]) expect((await assign(request('two'), quiet)).sequence).toBe(sequence)
    expect((await assign(request('two', { sequence: 40 }), quiet)).sequence).toBe(40)
    const before = written('two')
    const code = (more: Partial<AssignRequest>) => codeOfAsync(() => assign(request('two', more), quiet))
    expect(await code({ sequence: 40 })).toBe('PUBLISH_SEQUENCE')
    expect(await code({ sequence: 3 })).toBe('PUBLISH_SEQUENCE')
    expect(await code({ signers: [signer(11)] })).toBe('PUBLISH_KEY')
    expect(await code({ signers: [] })).toBe('PUBLISH_KEY')
    expect(await code({ device: '../device-1' })).toBe('ASSIGNMENT_INVALID')
    expect(await code({ notBefore: 'tomorrow' })).toBe('ASSIGNMENT_INVALID')
    expect(written('two')).toEqual(before)
    writeFileSync(join(work, 'two', 'assignments', 'device-1.json'), '{}')
    expect(await code({})).toBe('PUBLISH_SEQUENCE')
  })

  it('travels inside a bundle, which is then for that device alone', async () => {
    await assign(request('three', { allowDowngrade: true }), quiet)
    const folder = join(work, 'r2.build')
    await signFile(await signPaths(folder, undefined), [signer(11)])
    const output = join(work, 'directed.bundle')
    const head = await packBundle(folder, made.trusted.envelopes, output, { assignment: written('three') })
    expect(head.assignment?.statement).toMatchObject({ device: 'device-1', allowDowngrade: true })
    const publishing = { bundles: [output], to: join(work, 'p'), channel: 'stable', validSeconds: 60, now: NOW }
    expect(await codeOfAsync(() => publish({ ...publishing, signers: [signer(21)] }, quiet))).toBe('PUBLISH_DIRECTED')
  })

  it('a signer elsewhere takes the statement alone', () => {
    const bytes = Buffer.from(JSON.stringify(ASSIGNMENT))
    expect(readStatement(bytes).payloadType).toBe('application/vnd.bistable.assignment.v1+json')
  })

  it('is a command', async () => {
    const err: string[] = []
    const terminal = { out: () => {}, err: (line: string) => err.push(line), interactive: false }
    const cli = (...argv: string[]) => runCli(publisherVerbs, argv, terminal, new AbortController().signal)
    expect(await cli('assign', 'x')).toBe(2)
    expect(await cli('assign', '--device', 'a', '--bundle', 'b', '--to', 'c')).toBe(2)
    expect(err.join('\n')).toContain('--key is missing')
  })
})
