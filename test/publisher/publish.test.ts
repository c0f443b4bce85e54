import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import { fileSource } from '../../bundle/file-source.ts'
import { parseFreshness } from '../../bundle/freshness.ts'
import { readHints } from '../../bundle/hints/format.ts'
import { inspectBundle } from '../../bundle/reader.ts'
import { decodeEnvelope, encodeEnvelope } from '../../keys/dsse.ts'
import { trustAnchor, walkRoots } from '../../keys/root.ts'
import { verifyEnvelope } from '../../keys/threshold.ts'
import { packBundle } from '../../publisher/pack.ts'
import { type PublishRequest, publish } from '../../publisher/publish.ts'
import { readRoots, rootVersions } from '../../publisher/roots.ts'
import { readStatement, signFile, signPaths } from '../../publisher/sign.ts'
import { aloneIn } from '../../publisher/site-lock.ts'
import { memorySource } from '../bundle/fixture.ts'
import { makeBundle, type TestBundle } from '../helpers/bundle.ts'
import { signedRoot, signer } from '../keys/helpers.ts'

let work: string
let bundles: TestBundle[]
const quiet = { say: () => {} }
const NOW = Date.parse('2026-11-22T10:00:00.500Z')

beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'bistable-publish-'))
  const image = (fill: number) => Buffer.alloc(300 * 1024, fill)
  bundles = []
  for (const counter of [2, 3, 4])
    bundles.push(
      await makeBundle(work, `r${counter}`, { boot: image(1), rootfs: image(counter), number: { epoch: 0, counter } }),
    )
})
afterAll(() => rmSync(work, { recursive: true, force: true }))

const bundle = (counter: number): string => join(work, `r${counter}.bundle`)
const request = (to: string, more: Partial<PublishRequest> = {}): PublishRequest => ({
  bundles: [bundle(3)],
  to: join(work, to),
  channel: 'stable',
  signers: [signer(21)],
  now: NOW,
  validSeconds: 86_400,
  ...more,
})

describe('sign', () => {
  it('makes release.json in a build folder, and adds to it', async () => {
    const folder = join(work, 'sign')
    mkdirSync(folder)
    copyFileSync(join(work, 'r2.build', 'statement.json'), join(folder, 'statement.json'))
    const paths = await signPaths(folder, undefined)
    expect(paths.output).toBe(join(folder, 'release.json'))
    expect((await signFile(paths, [signer(11)])).signatures).toHaveLength(1)
    expect((await signFile(paths, [signer(12)])).signatures).toHaveLength(2)
    const envelope = decodeEnvelope(readFileSync(paths.output))
    expect(envelope.signatures).toHaveLength(2)
    expect(Buffer.from(envelope.payload).equals(readFileSync(join(folder, 'statement.json')))).toBe(true)
    await expect(signFile(paths, [signer(11)])).rejects.toMatchObject({ code: 'SIGNATURE_PRESENT' })
  })

  it('takes a bare statement and an envelope by themselves', async () => {
    const bare = join(work, 'bare.json')
    copyFileSync(join(work, 'r2.build', 'statement.json'), bare)
    const paths = await signPaths(bare, undefined)
    expect(paths.output).toBe(join(work, 'bare.signed.json'))
    await signFile(paths, [signer(11)])
    const more = await signPaths(paths.output, undefined)
    expect(more).toEqual({ input: paths.output, output: paths.output })
    expect((await signFile(more, [signer(12)])).signatures).toHaveLength(2)
  })

  it('never signs what it cannot read as a statement, nor mixes two', async () => {
    const bytes = (value: unknown): Uint8Array => Buffer.from(JSON.stringify(value))
    for (const wrong of [{ type: 'letter' }, [], 'x', {}])
      expect(() => readStatement(bytes(wrong))).toThrow(expect.objectContaining({ code: 'STATEMENT_INVALID' }))
    expect(() => readStatement(bytes({ type: 'release' }))).toThrow(
      expect.objectContaining({ code: 'RELEASE_INVALID' }),
    )
    const strange = encodeEnvelope({
      payloadType: 'text/plain',
      payload: Buffer.from('x'),
      signatures: [new Uint8Array(64)],
    })
    expect(() => readStatement(strange)).toThrow(expect.objectContaining({ code: 'STATEMENT_INVALID' }))
    const other = join(work, 'other')
    mkdirSync(other)
    copyFileSync(join(work, 'r2.build', 'statement.json'), join(other, 'statement.json'))
    await signFile(await signPaths(other, undefined), [signer(11)])
    copyFileSync(join(work, 'r3.build', 'statement.json'), join(other, 'statement.json'))
    await expect(signFile(await signPaths(other, undefined), [signer(12)])).rejects.toMatchObject({
      code: 'STATEMENT_INVALID',
    })
    await expect(signPaths(join(work, 'nowhere'), undefined)).rejects.toMatchObject({ code: 'STATEMENT_INVALID' })
  })
})

describe('pack', () => {
  it('needs a signature, and gives the bundle that the writer gives', async () => {
    const folder = join(work, 'r2.build')
    const roots = join(work, 'roots')
    mkdirSync(roots)
    writeFileSync(join(roots, '1.json'), await signedRoot({}, [1, 2]))
    writeFileSync(join(roots, 'notes.txt'), 'not a root')
    await expect(packBundle(folder, await readRoots(roots), join(work, 'x'))).rejects.toMatchObject({
      code: 'BUILD_FOLDER',
    })
    await signFile(await signPaths(folder, undefined), [signer(11)])
    const out = join(work, 'packed.bundle')
    const head = await packBundle(folder, await readRoots(roots), out)
    expect(head.statement.number).toEqual({ epoch: 0, counter: 2 })
    expect(readFileSync(out).equals(readFileSync(bundle(2)))).toBe(true)
  })

  it('root folders without a version, or with a gap, are refused', async () => {
    expect(rootVersions(['10.json', '9.json', 'x.json', '08.json'])).toEqual([9, 10])
    expect(() => rootVersions(['1.json', '3.json'])).toThrow(expect.objectContaining({ code: 'ROOTS_INVALID' }))
    await expect(readRoots(join(work, 'nowhere'))).rejects.toMatchObject({ code: 'ROOTS_INVALID' })
    await expect(readRoots(join(work, 'r2.build'))).rejects.toMatchObject({ code: 'ROOTS_INVALID' })
  })
})

describe('pack and what stands at its output', () => {
  it('takes the place of a file or a link to one, never of a device', async () => {
    const folder = join(work, 'r2.build')
    await signFile(await signPaths(folder, undefined), [signer(11)]).catch(() => undefined)
    const roots = [await signedRoot({}, [1, 2])]
    const [device, link] = [join(work, 'device.bundle'), join(work, 'link.bundle')]
    symlinkSync('/dev/null', device)
    for (const output of ['/dev/null', device])
      await expect(packBundle(folder, roots, output)).rejects.toMatchObject({ code: 'FILE_FAILED' })
    expect(statSync('/dev/null').isCharacterDevice()).toBe(true)
    expect(readlinkSync(device)).toBe('/dev/null')
    symlinkSync('r2.build/statement.json', link)
    await packBundle(folder, roots, link)
    expect(readFileSync(link).equals(readFileSync(bundle(2)))).toBe(true)
  })
})

describe('a folder that others can write in', () => {
  it('leads no writing elsewhere by a link with the name of a file that is to come', async () => {
    const folder = join(work, 'shared')
    mkdirSync(folder)
    const victim = join(work, 'victim')
    writeFileSync(victim, 'precious')
    symlinkSync(victim, join(folder, '.out.bundle.new'))
    await packBundle(join(work, 'r2.build'), [await signedRoot({}, [1, 2])], join(folder, 'out.bundle'))
    expect(readFileSync(victim, 'utf8')).toBe('precious')
    expect(readFileSync(join(folder, 'out.bundle')).equals(readFileSync(bundle(2)))).toBe(true)
    mkdirSync(join(folder, 'channels'))
    symlinkSync(victim, join(folder, 'channels', '.stable.json.new'))
    await expect(publish(request('shared'), quiet)).rejects.toMatchObject({ code: 'FILE_FAILED' })
    expect(readFileSync(victim, 'utf8')).toBe('precious')
    rmSync(join(folder, '.lock'))
    const elsewhere = join(work, 'elsewhere')
    symlinkSync(elsewhere, join(folder, '.lock'))
    await expect(aloneIn(folder, quiet, async () => undefined)).rejects.toMatchObject({ code: 'FILE_FAILED' })
    expect(existsSync(elsewhere)).toBe(false)
  })
})

describe('publish', () => {
  it('copies the bundle under its name and points the channel to it, signed by the fleet key', async () => {
    const statement = await publish(request('one'), quiet)
    const channel = decodeEnvelope(readFileSync(join(work, 'one', 'channels', 'stable.json')))
    const root = trustAnchor(await signedRoot({}, [1, 2]))
    expect(verifyEnvelope(channel, 'fleet', root)).toHaveLength(1)
    expect(parseFreshness(channel.payload)).toEqual(statement)
    expect(statement).toMatchObject({
      product: 'demo',
      channel: 'stable',
      number: { epoch: 0, counter: 3 },
      rootVersion: 1,
      issued: '2026-11-22T10:00:00Z',
      expires: '2026-11-23T10:00:00Z',
    })
    expect(statement.path).toMatch(/^bundles\/demo-0\.3-[0-9a-f]{12}\.bundle$/)
    const copy = readFileSync(join(work, 'one', statement.path))
    expect(copy.equals(readFileSync(bundle(3)))).toBe(true)
    expect(statement.size).toBe(copy.length)
    const name = statement.path.slice('bundles/'.length)
    expect(readdirSync(join(work, 'one', 'bundles'))).toEqual([name, `${name}.hints`])
  })

  it('puts hints beside the bundle, the same ones each time, and mends damaged ones', async () => {
    const { path } = await publish(request('hinted'), quiet)
    const file = join(work, 'hinted', `${path}.hints`)
    const hints = readFileSync(file)
    const source = await fileSource(bundle(3))
    const { head } = await inspectBundle(source)
    await source.close()
    const found = await readHints(memorySource(hints), head)
    expect(found.images.rootfs.count).toBe(head.indexes.rootfs.chunks.length)
    const { ino } = statSync(file)
    await publish(request('hinted'), quiet)
    expect(statSync(file).ino).toBe(ino)
    writeFileSync(file, 'torn')
    await publish(request('hinted'), quiet)
    expect(readFileSync(file).equals(hints)).toBe(true)
  })

  it('announces the newest of several, renews the same, never goes back', async () => {
    const first = await publish(request('two', { bundles: [bundle(3), bundle(2)] }), quiet)
    expect(first.number.counter).toBe(3)
    expect(readdirSync(join(work, 'two', 'bundles')).filter((name) => name.endsWith('.bundle'))).toHaveLength(2)
    const renewed = await publish(request('two', { now: NOW + 1000 }), quiet)
    expect(renewed.issued).toBe('2026-11-22T10:00:01Z')
    await expect(publish(request('two', { bundles: [bundle(2)] }), quiet)).rejects.toMatchObject({
      code: 'PUBLISH_LOWER',
    })
    expect((await publish(request('two', { bundles: [bundle(4)] }), quiet)).number.counter).toBe(4)
    await expect(publish(request('two'), quiet)).rejects.toMatchObject({ code: 'PUBLISH_LOWER' })
  })

  it('refuses another release of the same number', async () => {
    await publish(request('same'), quiet)
    const twin = await makeBundle(work, 'twin', {
      boot: Buffer.alloc(4096, 9),
      rootfs: Buffer.alloc(4096, 9),
      number: { epoch: 0, counter: 3 },
    })
    await expect(publish(request('same', { bundles: [twin.path] }), quiet)).rejects.toMatchObject({
      code: 'PUBLISH_LOWER',
    })
  })

  it('a damaged bundle, a wrong key or a foreign channel file changes nothing', async () => {
    const before = await publish(request('three'), quiet)
    const channelFile = join(work, 'three', 'channels', 'stable.json')
    const bytes = readFileSync(channelFile)
    const damaged = join(work, 'damaged.bundle')
    const content = readFileSync(bundle(4))
    content.writeUInt8(content.readUInt8(content.length - 100_000) ^ 1, content.length - 100_000)
    writeFileSync(damaged, content)
    await expect(publish(request('three', { bundles: [damaged] }), quiet)).rejects.toMatchObject({
      code: 'BUNDLE_DIGEST',
    })
    await expect(
      publish(request('three', { bundles: [bundle(4)], signers: [signer(11)] }), quiet),
    ).rejects.toMatchObject({
      code: 'PUBLISH_KEY',
    })
    await expect(publish(request('three', { bundles: [bundle(4)], signers: [] }), quiet)).rejects.toMatchObject({
      code: 'PUBLISH_KEY',
    })
    expect(readFileSync(channelFile).equals(bytes)).toBe(true)
    expect(readdirSync(join(work, 'three', 'bundles')).filter((name) => name.startsWith('.'))).toEqual([])
    copyFileSync(channelFile, join(work, 'three', 'channels', 'beta.json'))
    await expect(publish(request('three', { channel: 'beta' }), quiet)).rejects.toMatchObject({
      code: 'PUBLISH_PRODUCT',
    })
    writeFileSync(channelFile, '{}')
    await expect(publish(request('three'), quiet)).rejects.toMatchObject({ code: 'PUBLISH_CHANNEL_INVALID' })
    expect(before.number.counter).toBe(3)
  })

  it('several publishers at once: every bundle is whole, and the channel ends at the newest', async () => {
    const to = 'many'
    const releases = [2, 3, 4, 3, 2, 4, 3, 2]
    const ended = await Promise.allSettled(
      releases.map((counter) => publish(request(to, { bundles: [bundle(counter)] }), quiet)),
    )
    for (const end of ended) if (end.status === 'rejected') expect(end.reason).toMatchObject({ code: 'PUBLISH_LOWER' })
    const channel = decodeEnvelope(readFileSync(join(work, to, 'channels', 'stable.json')))
    expect(parseFreshness(channel.payload).number.counter).toBe(4)
    const files = readdirSync(join(work, to, 'bundles'))
    const copies = files.filter((name) => name.endsWith('.bundle'))
    expect(copies).toHaveLength(3)
    expect(files).toEqual(copies.flatMap((name) => [name, `${name}.hints`]))
    for (const name of copies) {
      const counter = Number(/^demo-0\.(\d)-/.exec(name)?.[1])
      expect(readFileSync(join(work, to, 'bundles', name)).equals(readFileSync(bundle(counter)))).toBe(true)
    }
    expect(readdirSync(join(work, to, 'channels'))).toEqual(['stable.json'])
  })

  it('takes away what publishers that were killed left behind a day ago, and nothing else', async () => {
    const folder = join(work, 'left', 'bundles')
    mkdirSync(folder, { recursive: true })
    const id = '123-0123456789abcdef'
    const ours = [`.${id}.new`, `.${id}.new.hints`, `.a-1.2.delta.${id}.partial`, `.a-1.2.delta.${id}.partial.units`]
    const others = ['.hidden', '.new', `x.${id}.new`, `.fresh.${id}.partial`, 'demo-0.1-0123456789ab.bundle']
    for (const name of [...ours, ...others]) {
      writeFileSync(join(folder, name), 'x')
      const days = name.includes('fresh') ? 0.5 : 1.5
      utimesSync(join(folder, name), Date.now() / 1000, Date.now() / 1000 - days * 86_400)
    }
    const statement = await publish(request('left'), quiet)
    const name = statement.path.replace('bundles/', '')
    expect(readdirSync(folder).sort()).toEqual([...others, name, `${name}.hints`].sort())
  })

  it('waits for another publisher, says so, and gives up in the end: PUBLISH_BUSY', async () => {
    const folder = join(work, 'busy')
    mkdirSync(folder)
    const order: string[] = []
    const said: string[] = []
    let release = (): void => {}
    const held = new Promise<void>((resolve) => {
      release = resolve
    })
    let inside = (): void => {}
    const isInside = new Promise<void>((resolve) => {
      inside = resolve
    })
    const first = aloneIn(folder, quiet, async () => {
      inside()
      await held
      order.push('first')
    })
    await isInside
    const edge = { say: (line: string) => void said.push(line) }
    await expect(aloneIn(folder, quiet, async () => void order.push('never'), 100)).rejects.toMatchObject({
      code: 'PUBLISH_BUSY',
    })
    const second = aloneIn(folder, edge, async () => void order.push('second'))
    await vi.waitFor(() => expect(said.join()).toContain('waiting for another publisher'), 60_000)
    const stop = new AbortController()
    const third = aloneIn(folder, { ...quiet, signal: stop.signal }, async () => void order.push('never'))
    stop.abort()
    await expect(third).rejects.toMatchObject({ name: 'AbortError' })
    release()
    await Promise.all([first, second])
    expect(order).toEqual(['first', 'second'])
    // A file system that knows no locks, told by the program as it is.
    const path = process.env['PATH']
    onTestFinished(() => {
      process.env['PATH'] = path
    })
    writeFileSync(join(folder, 'flock'), '#!/bin/sh\necho "flock: 3: No locks available" >&2\nexit 71\n', {
      mode: 0o755,
    })
    process.env['PATH'] = `${folder}:${path}`
    await aloneIn(folder, edge, async () => void order.push('unlocked'))
    expect([order.at(-1), said.at(-1)]).toEqual(['unlocked', expect.stringContaining('No locks available')])
    process.env['PATH'] = path
    // Work that fails lets go as well.
    await expect(aloneIn(folder, quiet, () => Promise.reject(new Error('no')))).rejects.toThrow('no')
    await aloneIn(folder, quiet, async () => void order.push('last'))
    expect(order.at(-1)).toBe('last')
  })

  it('a channel that has announced a root announces no older one: devices would not hear of a revocation', async () => {
    const roots = [await signedRoot({}, [1, 2]), await signedRoot({ version: 2, release: [11, 13] }, [1, 2])]
    expect((await publish(request('revoked', { trusted: walkRoots(roots) }), quiet)).rootVersion).toBe(2)
    // The same again, to renew it, with what the bundle itself carries.
    await expect(publish(request('revoked'), quiet)).rejects.toMatchObject({ code: 'PUBLISH_ROOTS' })
    expect((await publish(request('revoked', { trusted: walkRoots(roots) }), quiet)).rootVersion).toBe(2)
  })

  it('never issues before the channel file that stands there: devices would take it for an old one', async () => {
    const first = await publish(request('clock'), quiet)
    const bytes = readFileSync(join(work, 'clock', 'channels', 'stable.json'))
    // A little behind: another publisher was faster, or has a slightly other clock.
    const second = await publish(request('clock', { bundles: [bundle(4)], now: NOW - 60_000 }), quiet)
    expect(second.issued).toBe(first.issued)
    expect(second.number.counter).toBe(4)
    // A dead battery.
    await expect(publish(request('clock', { bundles: [bundle(4)], now: 0 }), quiet)).rejects.toMatchObject({
      code: 'PUBLISH_CLOCK',
    })
    expect(readFileSync(join(work, 'clock', 'channels', 'stable.json')).equals(bytes)).toBe(false)
    // All fleet keys are new: devices forget what the old ones said.
    const next = walkRoots([await signedRoot({}, [1, 2]), await signedRoot({ version: 2, fleet: [22] }, [1, 2])])
    const renewed = { bundles: [bundle(4)], now: 86_400_000, trusted: next, signers: [signer(22)] }
    expect((await publish(request('clock', renewed), quiet)).issued).toBe('1970-01-02T00:00:00Z')
  })

  it('with a trusted root, a chain that does not lead to it is refused', async () => {
    const stranger = trustAnchor(await signedRoot({ root: [4, 5, 6] }, [4, 5]))
    await expect(publish(request('four', { trusted: stranger }), quiet)).rejects.toMatchObject({
      family: 'authenticity',
    })
    expect(readdirSync(join(work, 'four', 'channels'))).toEqual([])
  })

  it('writes every root beside the channels, so that a device follows a new fleet key', async () => {
    const chain = [
      await signedRoot({}, [1, 2]),
      await signedRoot({ version: 2, fleet: [22] }, [1, 2]),
      await signedRoot({ version: 3, root: [2, 3, 4], fleet: [22] }, [2, 3]),
    ]
    const first = await publish(request('rotated'), quiet)
    expect(first.rootVersion).toBe(1)
    expect(readdirSync(join(work, 'rotated', 'roots'))).toEqual(['1.json'])
    const second = await publish(request('rotated', { trusted: walkRoots(chain), signers: [signer(22)] }), quiet)
    expect(second.rootVersion).toBe(3)
    expect(readdirSync(join(work, 'rotated', 'roots')).sort()).toEqual(['1.json', '2.json', '3.json'])
    // What the agent does: the next version, and the next, each by the one before.
    let device = trustAnchor(await signedRoot({}, [1, 2]))
    for (const version of [2, 3])
      device = walkRoots([readFileSync(join(work, 'rotated', 'roots', `${version}.json`))], device)
    const channel = decodeEnvelope(readFileSync(join(work, 'rotated', 'channels', 'stable.json')))
    expect(verifyEnvelope(channel, 'fleet', device)).toHaveLength(1)
    // The chain of the bundle alone ends at root 1: the channel does not go back there.
    await expect(publish(request('rotated', { signers: [signer(21)] }), quiet)).rejects.toMatchObject({
      code: 'PUBLISH_CHANNEL_INVALID',
    })
    // Another root 3 stops the publishing before the channel changes.
    writeFileSync(join(work, 'rotated', 'roots', '3.json'), await signedRoot({ version: 3, fleet: [24] }, [1, 2]))
    await expect(
      publish(request('rotated', { trusted: walkRoots(chain), signers: [signer(22)] }), quiet),
    ).rejects.toMatchObject({ code: 'ROOT_FORK' })
    expect(decodeEnvelope(readFileSync(join(work, 'rotated', 'channels', 'stable.json')))).toEqual(channel)
  })
})
