import { spawnSync } from 'node:child_process'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'
import { serveControl } from '../../device/control/server.ts'
import { decodeEnvelope, encodeEnvelope } from '../../keys/dsse.ts'
import { parseRoot, walkRoots } from '../../keys/root.ts'
import { noise, scratch } from '../bundle/tools.ts'
import { rootOf, secondSignature, signedRoot } from '../keys/helpers.ts'
import { frame, type Part } from './container.ts'
import { Device } from './device.ts'
import { forge, mixed, partsOf } from './forge.ts'
import { attempt, countRefusals, refused } from './refused.ts'

const REPO = resolve(import.meta.dirname, '../..')

/** The files that a file of ours imports, itself included, static and dynamic. */
function graph(start: string, seen = new Set<string>()): Set<string> {
  if (seen.has(start)) return seen
  seen.add(start)
  const text = readFileSync(start, 'utf8').replace(/import type [^\n]*/g, '')
  for (const match of text.matchAll(/(?:\bfrom\s+|\bimport\s*\(?\s*)['"](\.[^'"]+)['"]/g))
    if (match[1] !== undefined) graph(resolve(dirname(start), match[1]), seen)
  return seen
}

describe('ways into the agent', () => {
  it.skipIf(process.getuid?.() !== 0)('C11 the control socket: another user cannot connect', async () => {
    const folder = scratch()
    spawnSync('chmod', ['755', folder])
    const at = { run: folder, control: join(folder, 'agent.sock'), status: join(folder, 'status.sock') }
    const asked: string[] = []
    const lock = await serveControl(at, async (verb) => asked.push(verb))
    expect(statSync(at.control).mode & 0o777).toBe(0o600)
    const script = `require('net').connect(process.argv[1]).on('connect', () => { console.log('in'); process.exit() }).on('error', (e) => { console.log(e.code); process.exit() })`
    for (const uid of [1, 1000, 65534]) {
      const done = spawnSync(process.execPath, ['-e', script, at.control], { uid, gid: uid, encoding: 'utf8' })
      expect(done.stdout.trim(), `uid ${uid}`).toBe('EACCES')
      countRefusals()
    }
    expect(asked.filter((verb) => verb !== 'who')).toEqual([])
    await lock[Symbol.asyncDispose]()
  })

  it('C12 hooks: a bundle has no member and no field that runs, and an install starts no program', async () => {
    const folder = scratch()
    const device = await Device.make(folder, { anchor: await signedRoot({}, [1, 2]) })
    const path = join(folder, 'x.bundle')
    const parts = await partsOf()
    const script: Part = { name: 'hooks/pre-install', content: Buffer.from('#!/bin/sh\ntouch /owned\n') }
    for (let at = 1; at <= parts.length; at++)
      for (const name of [script.name, 'scripts/post', 'attachments/hook', 'release.json.sh', 'data/app']) {
        writeFileSync(path, frame([...parts.slice(0, at), { ...script, name }, ...parts.slice(at)]))
        refused(`${name} at ${at}`, await attempt(() => device.install(path)))
      }
    for (const field of ['script', 'preinst', 'hooks', 'url', 'command']) {
      const edit = (payload: Record<string, unknown>) => ({ ...payload, [field]: 'touch /owned' })
      writeFileSync(path, await forge({ edit, release: { hardware: ['other-board'] } }))
      refused(`field ${field}`, await attempt(() => device.install(path)), 'RELEASE_WRONG_HARDWARE')
    }
    writeFileSync(path, await forge({ edit: (payload) => ({ ...payload, script: 'touch /owned' }) }))
    expect(await attempt(() => device.install(path))).toBe('accepted')
    expect(device.ran).toEqual([])
  })

  it('C13 test keys: a bundle by a family of keys that the product does not list is refused', async () => {
    const folder = scratch()
    const production = await signedRoot({ root: [101, 102, 103], release: [111], fleet: [121] }, [101, 102])
    const device = await Device.make(folder, { anchor: production })
    const path = join(folder, 'x.bundle')
    const start = await device.fingerprint()
    for (const [what, bytes] of [
      ['its own chain', await forge()],
      ['under the chain of production', await forge({ roots: [production] })],
      ['forced', await forge()],
    ] as const) {
      writeFileSync(path, bytes)
      refused(what, await attempt(() => device.install(path, what === 'forced')))
      expect(await device.fingerprint()).toBe(start)
    }
  })
})

describe('thresholds and key ids', () => {
  it('A20 threshold tricks: two signatures by one key, in a root and in a release, count once', async () => {
    const folder = scratch()
    const two = { release: [11, 12], releaseThreshold: 2 }
    const anchor = await signedRoot(two, [1, 2])
    const device = await Device.make(folder, { anchor })
    const path = join(folder, 'x.bundle')
    const install = async (bytes: Uint8Array) => {
      writeFileSync(path, bytes)
      return await attempt(() => device.install(path))
    }
    refused('one of two', await install(await forge({ roots: [anchor], by: [11] })), 'SIGNATURE_THRESHOLD')
    const parts = await partsOf({ roots: [anchor], by: [11] })
    const release = parts.findIndex(({ name }) => name === 'release.json')
    const envelope = decodeEnvelope(parts[release]?.content ?? new Uint8Array())
    const { pae } = await import('../../keys/dsse.ts')
    const twice = [...envelope.signatures, secondSignature(11, pae(envelope.payloadType, envelope.payload))]
    const signatures = twice.sort(Buffer.compare)
    const doubled = frame(
      parts.with(release, { name: 'release.json', content: encodeEnvelope({ ...envelope, signatures }) }),
    )
    refused('two signatures by one key', await install(doubled), 'SIGNATURE_THRESHOLD')
    expect(await install(await forge({ roots: [anchor], by: [11, 12] }))).toBe('accepted')
  })

  it('A20 threshold tricks: roots whose thresholds are nothing, too much or not numbers', async () => {
    const root = rootOf()
    const keys = root.roles.release.keys
    for (const threshold of [0, -1, 2, 1.5, '1', null, true, Number.MAX_SAFE_INTEGER, 1e308]) {
      const roles = { ...root.roles, release: { threshold, keys } }
      refused(`threshold ${threshold}`, await attempt(() => parseRoot(Buffer.from(JSON.stringify({ ...root, roles })))))
    }
    for (const list of [
      [],
      [keys[0], keys[0]],
      [root.roles.root.keys[0]],
      ['00'.repeat(32)],
      [`${keys[0]}`.toUpperCase()],
    ]) {
      const roles = { ...root.roles, release: { threshold: 1, keys: list } }
      refused(`keys ${list}`, await attempt(() => parseRoot(Buffer.from(JSON.stringify({ ...root, roles })))))
    }
  })

  it('A21 key-id confusion: an envelope has no key ids, and one that brings them is refused', async () => {
    const anchor = await signedRoot({}, [1, 2])
    const text = Buffer.from(anchor).toString()
    const named = (id: string) => text.replaceAll('{"sig":', `{"keyid":"${id}","sig":`)
    for (const id of ['', 'a', rootOf().roles.root.keys[0] ?? '', rootOf().roles.fleet.keys[0] ?? ''])
      refused(`keyid '${id}'`, await attempt(() => walkRoots([Buffer.from(named(id))])), 'ENVELOPE_INVALID')
    refused(
      'behind',
      await attempt(() => walkRoots([Buffer.from(text.replaceAll('"}', '","keyid":"a"}'))])),
      'ENVELOPE_INVALID',
    )
  })
})

describe('publishing', () => {
  it('A34 compromised pipeline: one approver of two is not enough; what was changed after signing is not packed', async () => {
    const folder = scratch()
    const anchor = await signedRoot({ release: [11, 12], releaseThreshold: 2 }, [1, 2])
    const device = await Device.make(folder, { anchor })
    const path = join(folder, 'x.bundle')
    for (const by of [[11], [12], []]) {
      writeFileSync(path, await forge({ roots: [anchor], by }))
      refused(`approved by ${by}`, await attempt(() => device.install(path)), 'SIGNATURE_THRESHOLD', 'ENVELOPE_INVALID')
    }
    // Provenance and package list are bound by digest: neither can be taken from another build.
    const attachments = (text: string) => ({
      inventory: Buffer.from('{"path":"/"}\n'),
      sbom: Buffer.from(`{"sbom":"${text}"}`),
      provenance: Buffer.from(`{"builder":"${text}"}`),
    })
    const plan = { roots: [anchor], by: [11, 12] }
    const parts = await partsOf({ ...plan, attachments: attachments('honest') })
    const others = await partsOf({ ...plan, attachments: attachments('forged') })
    for (const name of ['sbom', 'provenance']) {
      writeFileSync(path, mixed(parts, others, new RegExp(`^attachments/${name}$`)))
      refused(`another ${name}`, await attempt(() => device.install(path)), 'BUNDLE_DIGEST')
      writeFileSync(path, frame(parts.filter((part) => part.name !== `attachments/${name}`)))
      refused(`no ${name}`, await attempt(() => device.install(path)))
    }
  })

  it('A34 compromised pipeline: an image that was changed after signing is refused by pack', async () => {
    const { makeParts } = await import('../bundle/fixture.ts')
    const { writeBundle } = await import('../../bundle/writer.ts')
    const { dir, parts } = await makeParts({ rootfs: noise(8192) })
    const image = join(dir, 'demo.build/rootfs.img')
    const bytes = readFileSync(image)
    for (const at of [0, 4096, 8191]) {
      const copy = Buffer.from(bytes)
      copy[at] = (copy[at] ?? 0) ^ 1
      writeFileSync(image, copy)
      refused(`byte ${at}`, await attempt(() => writeBundle(parts, join(dir, 'x.bundle'))), 'BUNDLE_DIGEST')
    }
  })

  it('B12 the image builder: nothing that builds can reach a key, and the tools get no secrets', () => {
    const reached = [...graph(join(REPO, 'publisher/build.ts'))].map((path) => path.slice(REPO.length + 1))
    expect(reached.length).toBeGreaterThan(20)
    const keyed = reached.filter((path) => /^keys\/(?!(dsse|errors|types|root|threshold|ed25519)\.ts$)/.test(path))
    expect(keyed).toEqual([])
    expect(reached).not.toContain('publisher/sign.ts')
  })
})
