import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Build, buildImagePath, finishBuild, openBuild } from '../../bundle/build.ts'
import type { Package } from '../../bundle/packages.ts'
import { provenanceFault } from '../../bundle/provenance.ts'
import { writeBundle } from '../../bundle/writer.ts'
import { decompressExactly } from '../../bundle/zstd.ts'
import { buildRelease } from '../../publisher/build.ts'
import { packBundle } from '../../publisher/pack.ts'
import { digestImage, makeProvenance } from '../../publisher/provenance.ts'
import { publish } from '../../publisher/publish.ts'
import { makeSbom, packageUrl, parseOsRelease, type SbomFacts } from '../../publisher/sbom.ts'
import { signFile, signPaths } from '../../publisher/sign.ts'
import { RELEASE, SHA, STATEMENT } from '../bundle/fixture.ts'
import { codeOfAsync } from '../codes.ts'
import { signedRoot, signer } from '../keys/helpers.ts'
import { fitSpecs, memoryTree, TIME } from './memory-tree.ts'

let work: string
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'bistable-materials-'))
})
afterAll(() => rmSync(work, { recursive: true, force: true }))

const bookworm = { id: 'debian', version: '12', name: 'Debian GNU/Linux 12 (bookworm)' }
const facts: SbomFacts = {
  product: 'demo',
  version: '2.0.0',
  number: { epoch: 1, counter: 7 },
  hardware: ['qemu-x86_64', 'rpi5'],
  rootfsRoot: SHA,
  issued: '2026-11-21T00:00:00Z',
  toolVersion: '0.1.0',
  distribution: bookworm,
}
const deb: Package = {
  manager: 'dpkg',
  name: 'libssl3',
  version: '1:3.0.11-1~deb12u2',
  arch: 'amd64',
  source: 'openssl 3',
}
const apk: Package = { manager: 'apk', name: 'musl', version: '1.2.5-r0', arch: 'x86_64', license: 'MIT' }
const rpm: Package = { manager: 'rpm', name: 'Bash+', version: '2:5.2-1.fc40', arch: 'x86_64' }

/** What the CycloneDX 1.6 schema asks of the parts that are used here, without the schema itself. */
function checkCycloneDx(text: string): { components: Record<string, unknown>[] } & Record<string, unknown> {
  const bom = JSON.parse(text)
  expect(bom.bomFormat).toBe('CycloneDX')
  expect(bom.specVersion).toBe('1.6')
  expect(bom.serialNumber).toMatch(/^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  expect(bom.version).toBe(1)
  expect(new Date(bom.metadata.timestamp).getTime()).not.toBeNaN()
  const refs = [bom.metadata.component, ...bom.components].map((component) => component['bom-ref'])
  expect(new Set(refs).size).toBe(refs.length)
  const known = ['type', 'bom-ref', 'name', 'version', 'description', 'licenses', 'purl', 'properties']
  for (const component of bom.components) {
    expect(Object.keys(component).filter((key) => !known.includes(key))).toEqual([])
    expect(['library', 'operating-system']).toContain(component.type)
    expect(component.name).toMatch(/./)
  }
  for (const { ref, dependsOn } of bom.dependencies) {
    expect(refs).toContain(ref)
    expect(dependsOn.filter((on: string) => !refs.includes(on))).toEqual([])
  }
  for (const { aggregate, assemblies } of bom.compositions) {
    expect(['unknown', 'incomplete']).toContain(aggregate)
    expect(assemblies.every((ref: string) => refs.includes(ref))).toBe(true)
  }
  return bom
}

describe('the bill of materials', () => {
  it('is CycloneDX, the same for the same image, another for another', () => {
    const list = { packages: [deb, apk, rpm, deb], unread: [] }
    const text = makeSbom(list, facts)
    const bom = checkCycloneDx(text)
    expect(makeSbom(list, facts)).toBe(text)
    expect(bom.components).toHaveLength(4)
    expect(bom.components[0]).toEqual({
      type: 'operating-system',
      'bom-ref': 'os:debian@12',
      name: 'debian',
      version: '12',
      description: bookworm.name,
    })
    expect(bom.components[2]).toMatchObject({ name: 'musl', licenses: [{ license: { name: 'MIT' } }] })
    const other = checkCycloneDx(makeSbom({ packages: [deb], unread: [] }, facts))
    expect(other['serialNumber']).not.toBe(bom['serialNumber'])
    checkCycloneDx(makeSbom({ packages: [], unread: [] }, { ...facts, distribution: undefined }))
  })

  it('says what it could not read, instead of looking whole', () => {
    const bom = checkCycloneDx(makeSbom({ packages: [], unread: ['var/lib/rpm/Packages'] }, facts))
    expect(bom['metadata']).toMatchObject({
      properties: [{ name: 'bistable:packages-unread', value: '/var/lib/rpm/Packages' }],
    })
    expect(bom['compositions']).toEqual([{ aggregate: 'incomplete', assemblies: ['demo@1.7'] }])
  })

  it('package URLs, as scanners look them up', () => {
    expect(packageUrl(deb, bookworm)).toBe('pkg:deb/debian/libssl3@1:3.0.11-1~deb12u2?arch=amd64&distro=debian-12')
    expect(packageUrl({ ...deb, name: 'libstdc++6' }, undefined)).toBe(
      'pkg:deb/debian/libstdc%2B%2B6@1:3.0.11-1~deb12u2?arch=amd64',
    )
    expect(packageUrl(apk, { id: 'alpine', version: '3.20.1', name: undefined })).toBe(
      'pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.20.1',
    )
    expect(packageUrl(rpm, { id: 'fedora', version: '40', name: undefined })).toBe(
      'pkg:rpm/fedora/Bash%2B@5.2-1.fc40?arch=x86_64&distro=fedora-40&epoch=2',
    )
    expect(packageUrl({ ...apk, name: "a@b?c#d'" }, undefined)).toBe(
      'pkg:apk/alpine/a%40b%3Fc%23d%27@1.2.5-r0?arch=x86_64',
    )
  })

  it('os-release, quoted or not; what is not plain is left out', () => {
    expect(parseOsRelease('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n')).toEqual(
      bookworm,
    )
    expect(parseOsRelease("ID='alpine'\nVERSION_ID=3.20.1\n")).toMatchObject({ id: 'alpine', version: '3.20.1' })
    expect(parseOsRelease('ID=x \t\nVERSION_ID="12" \n')).toMatchObject({ id: 'x', version: '12' })
    for (const text of ['', `ID=${' '.repeat(65_536)}"`, 'ID=Debian\n', 'ID=a b\n', '# ID=x\n'])
      expect(parseOsRelease(text)).toBeUndefined()
    expect(parseOsRelease('ID=x\nVERSION_ID="\u001b[2J"\n')).toEqual({ id: 'x', version: undefined, name: undefined })
  })
})

describe('the provenance', () => {
  const images = STATEMENT.images.map(({ name, length, root }) => ({ name, length, root, sha256: SHA }))
  const text = makeProvenance({
    images,
    source: { image: SHA, reference: 'docker://registry/os:1', layers: [{ digest: SHA, diffId: SHA }] },
    added: [{ path: '/usr/bin/bistable', sha256: SHA }],
    parameters: { version: '1' },
    builder: { id: 'https://ci.example/bistable', invocation: 'run/7' },
    tools: { node: '20.19.0' },
  })

  it('is an in-toto statement with a SLSA predicate', () => {
    expect(JSON.parse(text)).toEqual({
      _type: 'https://in-toto.io/Statement/v1',
      subject: images.map(({ name, length, root }) => ({
        name,
        digest: { sha256: SHA },
        annotations: { length, verityRoot: root },
      })),
      predicateType: 'https://slsa.dev/provenance/v1',
      predicate: {
        buildDefinition: {
          buildType: 'urn:x-bistable:build:1',
          externalParameters: { version: '1' },
          internalParameters: {},
          resolvedDependencies: [
            { name: 'image', uri: 'docker://registry/os:1', digest: { sha256: SHA } },
            { name: 'layer 1', digest: { sha256: SHA }, annotations: { diffId: `sha256:${SHA}` } },
            { name: 'added /usr/bin/bistable', digest: { sha256: SHA } },
          ],
        },
        runDetails: {
          builder: { id: 'https://ci.example/bistable', version: { node: '20.19.0' } },
          metadata: { invocationId: 'run/7' },
        },
      },
    })
  })

  it('is held against the images of its release', () => {
    const fault = (
      change: (json: { subject: { name: string; annotations: object }[] } & Record<string, unknown>) => void,
    ) => {
      const json = JSON.parse(text)
      change(json)
      return provenanceFault(Buffer.from(JSON.stringify(json)), STATEMENT)
    }
    expect(fault(() => undefined)).toBeUndefined()
    const other = 'cd'.repeat(32)
    for (const change of [
      (json: { subject: unknown[] }) => json.subject.pop(),
      (json: { subject: unknown[] }) => json.subject.reverse(),
      (json: { subject: { annotations: object }[] }) =>
        Object.assign(json.subject[1]?.annotations ?? {}, { verityRoot: other }),
      (json: { subject: { annotations: object }[] }) =>
        Object.assign(json.subject[0]?.annotations ?? {}, { length: 1 }),
      (json: Record<string, unknown>) => Object.assign(json, { predicateType: 'x' }),
      (json: Record<string, unknown>) => delete json['subject'],
    ])
      expect(fault(change)).toMatch(/./)
    for (const bytes of ['', '[]', '{"subject":1,"subject":2}'])
      expect(provenanceFault(Buffer.from(bytes), STATEMENT)).toMatch(/./)
  })
})

describe('a build', () => {
  it('carries both, about what it made, whoever builds', async () => {
    const specs = await fitSpecs()
    specs['usr/lib/os-release'] = 'ID=debian\nVERSION_ID=12\n'
    specs['var/lib/dpkg/status'] = 'Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2\n'
    const request = {
      version: '1.0.0',
      number: { epoch: 1, counter: 7 },
      securityFloor: { epoch: 1, counter: 3 },
      parts: {},
      blockSize: 131_072,
      level: 3,
      writer: 'own' as const,
      source: { image: SHA, layers: [{ digest: SHA, diffId: SHA }] },
    }
    const folder = join(work, 'build')
    const { build } = await buildRelease(memoryTree(specs), request, folder, { say: () => {} })
    expect(build.statement.attachments.map(({ name }) => name)).toEqual(['inventory', 'sbom', 'provenance'])
    const sbom = checkCycloneDx(unpacked(build, 'sbom').toString())
    expect(sbom.components.map(({ purl, name }) => purl ?? name)).toEqual([
      'debian',
      'pkg:deb/debian/bash@5.2?arch=amd64&distro=debian-12',
    ])
    expect(sbom['metadata']).toMatchObject({ timestamp: new Date(TIME * 1000).toISOString().replace('.000', '') })
    const provenance = unpacked(build, 'provenance')
    expect(provenanceFault(provenance, build.statement)).toBeUndefined()
    const { subject, predicate } = JSON.parse(provenance.toString())
    const rootfs = await digestImage('rootfs', buildImagePath(folder, 'rootfs'))
    expect(subject[1]).toMatchObject({ name: 'rootfs', digest: { sha256: rootfs.sha256 } })
    expect(predicate.runDetails.builder).toMatchObject({
      id: 'urn:x-bistable:builder:unnamed',
      version: {
        node: process.versions.node,
        zstd: expect.stringMatching(/^1\./),
      },
    })
    expect(predicate.runDetails.builder.version).not.toHaveProperty('mksquashfs')
    expect(predicate.buildDefinition.externalParameters.squashfs).toEqual({
      writer: 'own',
      blockSize: 131_072,
      level: 3,
    })
    expect(predicate.buildDefinition.resolvedDependencies[0]).toEqual({ name: 'image', digest: { sha256: SHA } })
    expect(provenance.toString()).not.toContain(work)
  })
})

describe('images changed after the build (A34)', () => {
  /** A finished build whose provenance is true. */
  async function built(name: string, provenanceOf?: (real: string) => string): Promise<string> {
    const folder = join(work, name)
    mkdirSync(folder)
    const images = { boot: Buffer.alloc(8192, 1), rootfs: Buffer.alloc(12_288, 2) }
    for (const [image, bytes] of Object.entries(images)) writeFileSync(join(folder, `${image}.img`), bytes)
    const real = makeProvenance({
      images: [
        await digestImage('boot', buildImagePath(folder, 'boot')),
        await digestImage('rootfs', buildImagePath(folder, 'rootfs')),
      ],
      source: undefined,
      added: [],
      parameters: {},
      builder: { id: 'urn:x:y' },
      tools: {},
    })
    await finishBuild(folder, {
      release: { ...RELEASE, number: { epoch: 0, counter: 7 } },
      attachments: { provenance: Buffer.from(provenanceOf?.(real) ?? real) },
    })
    return folder
  }
  const sign = async (folder: string) => signFile(await signPaths(folder, undefined), [signer(11)])
  const pack = async (folder: string) => packBundle(folder, [await signedRoot({}, [1, 2])], `${folder}.bundle`)

  it('an untouched build packs and publishes', async () => {
    const folder = await built('clean')
    await sign(folder)
    const head = await pack(folder)
    expect(head.statement.attachments.map(({ name }) => name)).toEqual(['provenance'])
    const to = join(work, 'published')
    const request = { bundles: [`${folder}.bundle`], to, channel: 'stable', signers: [signer(21)] }
    await publish({ ...request, now: Date.parse('2026-11-22T00:00:00Z'), validSeconds: 60 }, { say: () => {} })
  })

  it('after the signature: the image, its index, the provenance', async () => {
    for (const [name, file, code] of [
      ['image', 'rootfs.img', 'BUNDLE_DIGEST'],
      ['index', 'rootfs.idx', 'BUNDLE_PARTS'],
      ['provenance', 'provenance.zst', 'BUNDLE_PARTS'],
    ] as const) {
      const folder = await built(`signed-${name}`)
      await sign(folder)
      const bytes = readFileSync(join(folder, file))
      bytes[bytes.length - 9] = (bytes[bytes.length - 9] ?? 0) ^ 1
      writeFileSync(join(folder, file), bytes)
      expect(await codeOfAsync(() => pack(folder)), file).toBe(code)
    }
  })

  it('before the signature, with statement and indexes made to fit: by the provenance, in pack and in publish', async () => {
    const folder = await built('swapped')
    const provenance = zstdOf(folder)
    writeFileSync(buildImagePath(folder, 'rootfs'), Buffer.alloc(12_288, 66))
    await finishBuild(folder, { release: RELEASE, attachments: { provenance } })
    await sign(folder)
    expect(await codeOfAsync(() => pack(folder))).toBe('PROVENANCE_DIFFERS')
    expect(existsSync(`${folder}.bundle`)).toBe(false)
    // Whoever has another packer meets the same refusal in publish.
    const { parts } = await openBuild(folder)
    const envelope = readFileSync(join(folder, 'release.json'))
    await writeBundle({ ...parts, roots: [await signedRoot({}, [1, 2])], envelope }, `${folder}.bundle`)
    const request = { bundles: [`${folder}.bundle`], to: join(work, 'p2'), channel: 'stable', signers: [signer(21)] }
    expect(await codeOfAsync(() => publish({ ...request, now: Date.now(), validSeconds: 60 }, { say: () => {} }))).toBe(
      'PROVENANCE_DIFFERS',
    )
  })

  it('a provenance that is none, or too large to be one', async () => {
    for (const [name, text] of [
      ['none', '{}\n'],
      ['large', ' '.repeat(1024 * 1024 + 1)],
    ] as const) {
      const folder = await built(name, () => text)
      await sign(folder)
      expect(await codeOfAsync(() => pack(folder)), name).toBe('PROVENANCE_DIFFERS')
    }
  })

  function zstdOf(folder: string): Uint8Array {
    const { attachments } = JSON.parse(readFileSync(join(folder, 'statement.json'), 'utf8'))
    return decompressExactly(readFileSync(join(folder, 'provenance.zst')), attachments[0].unpacked)
  }
})

function unpacked(build: Build, name: 'sbom' | 'provenance'): Buffer {
  const entry = build.statement.attachments.find((attachment) => attachment.name === name)
  const stored = build.parts.attachments.find((attachment) => attachment.name === name)?.stored
  if (entry === undefined || stored === undefined) throw new Error(`no ${name}`)
  return Buffer.from(decompressExactly(stored, entry.unpacked))
}
