import { spawn } from 'node:child_process'
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import { compress } from 'zstd-napi'
import { openImage } from '../../publisher/oci/open.ts'
import { haveTool, run } from './host.ts'
import { imageOf, LayoutMaker, listing, merged, refusal, scratch, TAR } from './images.ts'
import { dir, file, hardlink, tar } from './tars.ts'

const layer = tar(dir('etc/'), file('etc/motd', 'hello'))
const upper = tar(file('etc/.wh.motd'), file('etc/issue', 'hi'))
const wanted = ['dir 755 .', 'dir 755 etc', 'file 644 etc/issue hi']
const GZIP = `${TAR}+gzip`
const ZSTD = `${TAR}+zstd`

/** A layout with one image in all three compressions. */
function mixed(): LayoutMaker {
  const maker = new LayoutMaker()
  const image = maker.image({
    layers: [
      { bytes: gzipSync(layer), mediaType: GZIP },
      { bytes: compress(tar(file('etc/issue', 'old'))), mediaType: ZSTD },
      { bytes: upper },
    ],
    labels: { 'org.example': 'x' },
    descriptor: { annotations: { 'org.opencontainers.image.ref.name': 'v1' } },
  })
  maker.write([image])
  return maker
}

function archived(maker: LayoutMaker): string {
  const archive = join(scratch(), 'image.tar')
  run('tar', '-C', maker.dir, '-cf', archive, '.')
  return archive
}

describe('forms', () => {
  it('an OCI layout: gzip, zstd and plain layers, by path, prefix and tag', async () => {
    const { dir: path } = mixed()
    for (const ref of [path, `oci:${path}`, `oci:${path}:v1`]) {
      const tree = await merged(ref)
      expect(await listing(tree)).toEqual(wanted)
      expect(tree.config).toEqual({ architecture: 'amd64', labels: { 'org.example': 'x' } })
    }
    const input = await openImage(path)
    expect(input.digest).toMatch(/^[0-9a-f]{64}$/)
  })

  it('an oci-archive, without unpacking it', async () => {
    const archive = archived(mixed())
    for (const ref of [archive, `oci-archive:${archive}`, `oci-archive:${archive}:v1`])
      expect(await listing(await merged(ref))).toEqual(wanted)
  })

  it('a docker-archive, with compressed layers and layers that are links', async () => {
    const config = Buffer.from(readConfig(mixed()))
    const name = `${run('sh', '-c', `printf %s '${config.toString()}' | sha256sum`).slice(0, 64)}.json`
    const layers = [gzipSync(layer), tar(file('etc/issue', 'old')), upper]
    const members = [
      ...layers.slice(0, 2).map((bytes, i) => file(`l${i}/layer.tar`, bytes)),
      file('real.tar', upper),
      { name: 'l2/layer.tar', type: '2', link: '../real.tar' },
      file(name, config),
    ]
    const images = [{ Config: name, RepoTags: ['x/y:1'], Layers: ['l0/layer.tar', 'l1/layer.tar', 'l2/layer.tar'] }]
    const save = (manifest: unknown, more = members): string => {
      const path = join(scratch(), 'saved.tar')
      writeFileSync(path, tar(...more, file('manifest.json', JSON.stringify(manifest))))
      return path
    }
    const path = save(images)
    for (const ref of [path, `docker-archive:${path}`, `docker-archive:${path}:x/y:1`])
      expect(await listing(await merged(ref))).toEqual(wanted)
    expect(await refusal(`docker-archive:${path}:x/y:2`)).toMatch(/^IMAGE_BLOB_MISSING: .*there is x\/y:1/)
    expect(await refusal(save([...images, { ...images[0], RepoTags: ['z'] }]))).toMatch(/^IMAGE_AMBIGUOUS: .*x\/y:1, z/)
    expect(await refusal(save([{ ...images[0], Config: 'config.json' }]))).toMatch(/^IMAGE_JSON_INVALID:/)
    expect(await refusal(save([{ ...images[0], Layers: ['l0/layer.tar'] }]))).toMatch(/^IMAGE_JSON_INVALID: .*1 layers/)
    expect(await refusal(save([{ ...images[0], Layers: ['l0/layer.tar', 'gone', 'gone'] }]))).toMatch(
      /^IMAGE_BLOB_MISSING:/,
    )
    expect(await refusal(path, { platform: 'linux/arm64' })).toMatch(/^IMAGE_PLATFORM_ABSENT:/)
    const changed = members.map((m) => (m.name === 'real.tar' ? file('real.tar', tar(file('etc/issue', 'no'))) : m))
    expect(await refusal(save(images, changed))).toMatch(/^IMAGE_DIGEST_MISMATCH: .*diff_id/)
    const other = members.map((m) => (m.name === name ? file(name, config.toString().replace('linux', 'lin__')) : m))
    expect(await refusal(save(images, other))).toMatch(/^IMAGE_DIGEST_MISMATCH:/)
  })

  it('a plain root file system tar, compressed or not', async () => {
    const path = join(scratch(), 'root.tar')
    for (const bytes of [layer, gzipSync(layer), compress(layer)]) {
      writeFileSync(path, bytes)
      const tree = await merged(`rootfs:${path}`, { platform: 'linux/arm64' })
      expect(await listing(tree)).toEqual(['dir 755 .', 'dir 755 etc', 'file 644 etc/motd hello'])
      expect(tree.config.architecture).toBe('arm64')
    }
    writeFileSync(path, upper)
    expect(await refusal(`rootfs:${path}`)).toMatch(/^LAYER_WHITEOUT:/)
  })

  it('anything else is named', async () => {
    const folder = scratch()
    const archive = join(folder, 'x.tar')
    const text = join(folder, 'text')
    writeFileSync(archive, layer)
    writeFileSync(text, 'hello')
    writeFileSync(join(folder, 'old.tar'), tar(file('repositories', '{}')))
    writeFileSync(join(folder, 'twice.tar'), tar(file('oci-layout', '{}'), file('oci-layout', '{}')))
    writeFileSync(join(folder, 'hard.tar'), tar(file('oci-layout', '{}'), hardlink('index.json', 'oci-layout')))
    writeFileSync(join(folder, 'loop.tar'), tar({ name: 'manifest.json', type: '2', link: 'manifest.json' }))
    run('mkfifo', join(folder, 'fifo'))
    expect(await refusal(folder)).toMatch(/^IMAGE_UNKNOWN_FORM: .*holds no oci-layout/)
    expect(await refusal(archive)).toMatch(/^IMAGE_UNKNOWN_FORM: .*holds no oci-layout or manifest.json/)
    expect(await refusal(`docker-archive:${archive}`)).toMatch(/^IMAGE_UNKNOWN_FORM: .*holds no manifest.json/)
    expect(await refusal(join(folder, 'old.tar'))).toMatch(/^IMAGE_UNKNOWN_FORM: .*older than 1.10/)
    expect(await refusal(`oci-archive:${folder}`)).toMatch(/^IMAGE_UNKNOWN_FORM: .*is a folder/)
    expect(await refusal(`oci:${archive}`)).toMatch(/^IMAGE_UNKNOWN_FORM: .*is a file/)
    expect(await refusal(text)).toMatch(/^IMAGE_UNKNOWN_FORM: .*is no tar/)
    expect(await refusal(join(folder, 'twice.tar'))).toMatch(/^IMAGE_ARCHIVE_INVALID: .*twice/)
    expect(await refusal(join(folder, 'hard.tar'))).toMatch(/^IMAGE_ARCHIVE_INVALID: .*hardlink/)
    expect(await refusal(join(folder, 'loop.tar'))).toMatch(/^IMAGE_UNKNOWN_FORM:/)
    expect(await refusal(join(folder, 'none'))).toMatch(/^IMAGE_NOT_FOUND:/)
    expect(await refusal(`oci:${join(folder, 'none')}:tag`)).toMatch(/^IMAGE_NOT_FOUND: there is no/)
    expect(await refusal(`rootfs:${folder}`)).toMatch(/^IMAGE_NOT_FOUND: .*not a regular file/)
    expect(await refusal(`rootfs:${join(folder, 'fifo')}`)).toMatch(/^IMAGE_NOT_FOUND: .*not a regular file/)
    expect(await refusal('oci::tag')).toMatch(/^IMAGE_REFERENCE_INVALID:/)
    expect(await refusal(folder, { platform: 'arm64' })).toMatch(/^IMAGE_REFERENCE_INVALID:/)
  })

  it('a layout of another version', async () => {
    const maker = mixed()
    writeFileSync(join(maker.dir, 'oci-layout'), '{"imageLayoutVersion":"2.0.0"}')
    expect(await refusal(maker.dir)).toMatch(/^IMAGE_UNKNOWN_FORM: .*2\.0\.0/)
  })
})

function readConfig(maker: LayoutMaker): string {
  for (const name of readdirSync(join(maker.dir, 'blobs/sha256'))) {
    const text = readFileSync(join(maker.dir, 'blobs/sha256', name), 'latin1')
    if (text.startsWith('{"architecture"')) return text
  }
  throw new Error('the layout holds no config')
}

describe('platforms', () => {
  const one = (content: string): { layers: { bytes: Buffer }[] } => ({
    layers: [{ bytes: tar(file('arch', content)) }],
  })
  const archOf = async (ref: string, platform?: string): Promise<string> => {
    const result = await refusal(ref, platform === undefined ? {} : { platform })
    if (result !== 'accepted') return result
    return (await listing(await merged(ref, platform === undefined ? {} : { platform })))[1]?.split(' ').at(-1) ?? ''
  }
  const platform = (os: string, architecture: string, variant?: string): Record<string, unknown> => ({
    platform: { os, architecture, ...(variant === undefined ? {} : { variant }) },
  })

  it('one is chosen from nested indexes; attestations are passed over', async () => {
    const maker = new LayoutMaker()
    const nested = maker.index([
      maker.image({ ...one('amd64'), descriptor: platform('linux', 'amd64') }),
      maker.image({ ...one('v7'), architecture: 'arm', variant: 'v7', descriptor: platform('linux', 'arm', 'v7') }),
      maker.image({ ...one('v6'), architecture: 'arm', variant: 'v6', descriptor: platform('linux', 'arm', 'v6') }),
      maker.image({ ...one('arm64'), architecture: 'arm64' }),
      maker.image({ ...one('note'), descriptor: platform('unknown', 'unknown') }),
      { mediaType: 'application/vnd.in-toto+json', digest: `sha256:${'0'.repeat(64)}`, size: 1 },
    ])
    const ref = maker.write([nested])
    expect(await archOf(ref, 'linux/amd64')).toBe('amd64')
    expect(await archOf(ref, 'linux/arm/v7')).toBe('v7')
    expect(await archOf(ref, 'linux/arm64/v8')).toBe('arm64')
    expect(await archOf(ref, 'linux/arm')).toMatch(/^IMAGE_AMBIGUOUS: .*linux\/arm\/v7, untagged linux\/arm\/v6/)
    expect(await archOf(ref, 'linux/riscv64')).toMatch(
      /^IMAGE_PLATFORM_ABSENT: .*linux\/riscv64; there is .*linux\/arm64/,
    )
    expect(await archOf(ref)).toBe(process.arch === 'arm64' ? 'arm64' : 'amd64')
  })

  it('an only image is taken for any platform, unless another was asked for', async () => {
    const maker = new LayoutMaker()
    const ref = maker.write([maker.image({ ...one('r'), architecture: 'riscv64' })])
    expect(await archOf(ref)).toBe('r')
    expect(await archOf(ref, 'linux/amd64')).toMatch(/^IMAGE_PLATFORM_ABSENT: .*there is untagged linux\/riscv64/)
  })

  it('the config has the last word', async () => {
    const maker = new LayoutMaker()
    const lie = maker.write([
      maker.image({ ...one('x'), architecture: 'arm64', descriptor: platform('linux', 'amd64') }),
    ])
    expect(await archOf(lie, 'linux/amd64')).toMatch(/^IMAGE_PLATFORM_ABSENT: the config .* is for linux\/arm64/)
    expect(await archOf(maker.write([maker.image({ ...one('x'), os: 'windows' })]))).toMatch(/^IMAGE_PLATFORM_ABSENT:/)
  })

  it('several tags: one must be named; the same image under two tags is one', async () => {
    const maker = new LayoutMaker()
    const tag = (name: string): Record<string, unknown> => ({
      annotations: { 'org.opencontainers.image.ref.name': name },
    })
    const a = { ...maker.image(one('a')), ...tag('a') }
    const b = { ...maker.image(one('b')), ...tag('b') }
    const ref = maker.write([a, b, { ...a, ...tag('latest') }])
    expect(await archOf(ref)).toMatch(/^IMAGE_AMBIGUOUS: .*b linux\/amd64/)
    expect(await archOf(`${ref}:b`)).toBe('b')
    expect(await archOf(`${ref}:c`)).toMatch(/^IMAGE_BLOB_MISSING: .*no image tagged 'c'; there is a linux/)
    expect(await archOf(maker.write([a, { ...a, ...tag('latest') }]))).toBe('a')
    expect(await archOf(maker.write([]))).toMatch(/^IMAGE_BLOB_MISSING:/)
  })

  it('indexes nest so deep and list so much', async () => {
    const maker = new LayoutMaker()
    let nested = maker.image(one('x'))
    for (let i = 0; i < 5; i++) nested = maker.index([nested])
    expect(await archOf(maker.write([nested]))).toMatch(/^LAYER_LIMIT: .*nests/)
    const image = maker.image(one('x'))
    expect(await archOf(maker.write(Array.from({ length: 257 }, () => image)))).toMatch(/^LAYER_LIMIT: .*lists more/)
  })
})

describe('B8 media types', () => {
  const image = (more: Record<string, unknown>): string => {
    const maker = new LayoutMaker()
    return maker.write([maker.image({ layers: [{ bytes: layer }], ...more })])
  }
  it.each([
    ['a manifest that is an index too', { manifest: { manifests: [] } }],
    ['a manifest that calls itself an index', { manifest: { mediaType: 'application/vnd.oci.image.index.v1+json' } }],
    ['an index announced as a manifest', { manifest: { config: undefined, layers: undefined, manifests: [] } }],
    ['a manifest announced as an index', { descriptor: { mediaType: 'application/vnd.oci.image.index.v1+json' } }],
    ['a layer of unknown type', { layers: [{ bytes: layer, mediaType: 'application/octet-stream' }] }],
    ['a layer whose type is what all objects have', { layers: [{ bytes: layer, mediaType: 'constructor' }] }],
    [
      'an artifact, not an image',
      {
        manifest: {
          config: { mediaType: 'application/vnd.oci.empty.v1+json', digest: `sha256:${'0'.repeat(64)}`, size: 2 },
        },
      },
    ],
  ])('%s', async (_, more) => {
    expect(await refusal(image(more))).toMatch(/^IMAGE_MEDIA_TYPE:/)
  })
  it('index.json that is a manifest too, or calls itself one', async () => {
    const maker = new LayoutMaker()
    const one = maker.image({ layers: [{ bytes: layer }] })
    expect(await refusal(maker.write([one], { layers: [], config: {} }))).toMatch(/^IMAGE_MEDIA_TYPE: .*both/)
    expect(await refusal(maker.write([one], { mediaType: one['mediaType'] }))).toMatch(/^IMAGE_MEDIA_TYPE:/)
  })
  it('the older Docker types are known', async () => {
    const docker = 'application/vnd.docker'
    const maker = new LayoutMaker()
    const types = { mediaType: `${docker}.distribution.manifest.v2+json` }
    const one = maker.image({
      layers: [{ bytes: gzipSync(layer), mediaType: `${docker}.image.rootfs.diff.tar.gzip` }],
      manifest: types,
      descriptor: types,
    })
    expect(await refusal(maker.write([one]))).toBe('accepted')
  })
  it.each([
    ['not JSON', '{'],
    ['a key twice', '{"schemaVersion":2,"schemaVersion":2,"manifests":[]}'],
    ['another schema', '{"schemaVersion":1,"manifests":[]}'],
    ['no manifests', '{"schemaVersion":2}'],
    ['a weak digest', `{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"md5:0","size":1}]}`],
    [
      'a negative size',
      `{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:${'0'.repeat(64)}","size":-1}]}`,
    ],
    ['too long', `{"schemaVersion":2,"manifests":[]}${' '.repeat(4 << 20)}`],
  ])('index.json: %s', async (_, text) => {
    const maker = mixed()
    writeFileSync(join(maker.dir, 'index.json'), text)
    expect(await refusal(maker.dir)).toMatch(/^IMAGE_JSON_INVALID:/)
  })
  it('more layers than diff_ids', async () => {
    expect(await refusal(image({ config: { rootfs: { type: 'layers', diff_ids: [] } } }))).toMatch(
      /^IMAGE_JSON_INVALID: .*1 layers/,
    )
  })
})

describe('B9 digests and addresses', () => {
  it('one byte changed in any blob, or its size, is found', async () => {
    const { dir: path } = mixed()
    const blobs = readdirSync(join(path, 'blobs/sha256'))
    expect(blobs.length).toBe(5)
    for (const name of blobs) {
      const blob = join(path, 'blobs/sha256', name)
      const bytes = readFileSync(blob)
      for (const at of [0, bytes.length >> 1, bytes.length - 1]) {
        const changed = Buffer.from(bytes)
        changed[at] = (changed[at] ?? 0) ^ 1
        writeFileSync(blob, changed)
        expect(await refusal(path)).toMatch(/^IMAGE_DIGEST_MISMATCH:/)
      }
      appendFileSync(blob, 'x')
      expect(await refusal(path)).toMatch(/^IMAGE_DIGEST_MISMATCH: .*announced/)
      truncateSync(blob, bytes.length - 1)
      expect(await refusal(path)).toMatch(/^IMAGE_DIGEST_MISMATCH: .*announced/)
      rmSync(blob)
      expect(await refusal(path)).toMatch(/^IMAGE_BLOB_MISSING:/)
      writeFileSync(blob, bytes)
    }
    expect(await refusal(path)).toBe('accepted')
  })
  it('a diff_id that is not of the unpacked stream', async () => {
    for (const spec of [
      { bytes: layer },
      { bytes: gzipSync(layer), mediaType: GZIP },
      { bytes: compress(layer), mediaType: ZSTD },
    ]) {
      const maker = new LayoutMaker()
      const ref = maker.write([maker.image({ layers: [{ ...spec, diffId: `sha256:${'1'.repeat(64)}` }] })])
      expect(await refusal(ref)).toMatch(/^IMAGE_DIGEST_MISMATCH: .*diff_id/)
    }
  })
  it('content said to be elsewhere', async () => {
    const urls = ['https://example.com/layer']
    const external = [
      { layers: [{ bytes: layer, descriptor: { urls } }] },
      { layers: [{ bytes: layer, mediaType: 'application/vnd.oci.image.layer.nondistributable.v1.tar' }] },
      { layers: [{ bytes: layer, mediaType: 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip' }] },
      { layers: [{ bytes: layer }], descriptor: { urls } },
    ]
    for (const spec of external) {
      const maker = new LayoutMaker()
      expect(await refusal(maker.write([maker.image(spec)]))).toMatch(/^IMAGE_EXTERNAL_LAYER:/)
    }
  })
  it('a blob that is a link to a device or a folder', async () => {
    const { dir: path } = mixed()
    const [name = ''] = readdirSync(join(path, 'blobs/sha256'))
    const blob = join(path, 'blobs/sha256', name)
    rmSync(blob)
    symlinkSync('/dev/zero', blob)
    expect(await refusal(path)).toMatch(/^IMAGE_NOT_FOUND: .*not a regular file/)
    rmSync(blob)
    mkdirSync(blob)
    expect(await refusal(path)).toMatch(/^IMAGE_NOT_FOUND: .*not a regular file/)
  })
})

describe('registries', () => {
  it('a program that is not there is named', async () => {
    expect(await refusal('docker://localhost/x', { searchPath: '/nonexistent' })).toMatch(/^IMAGE_SKOPEO_MISSING:/)
  })

  it('a copy that is stopped has ended when its folder is removed', async () => {
    const [bin, tempDir] = [scratch(), scratch()]
    // Like any program it has something to end with, here in the folder that it was given.
    const script = `#!/bin/sh
for to; do :; done
to=\${to#oci:}; to=\${to%:fetched}
trap 'sleep 0.3; mkdir -p "$to/late"; : >"${bin}/ended"; exit 1' TERM
: >"${bin}/runs"
while :; do sleep 0.02; done
`
    writeFileSync(join(bin, 'skopeo'), script, { mode: 0o755 })
    const stop = new AbortController()
    const path = `${bin}:${process.env['PATH']}`
    const fetching = openImage('docker://localhost/x', { searchPath: path, tempDir, signal: stop.signal })
    fetching.catch(() => undefined)
    await vi.waitFor(() => expect(existsSync(join(bin, 'runs'))).toBe(true), 60_000)
    stop.abort()
    await expect(fetching).rejects.toMatchObject({ name: 'AbortError' })
    expect(existsSync(join(bin, 'ended'))).toBe(true)
    expect(readdirSync(tempDir)).toEqual([])
  })

  it.skipIf(!haveTool('docker-registry') || !haveTool('skopeo'))(
    'an image is copied and merged, and nothing is left behind',
    async () => {
      const host = await registry()
      const ref = imageOf(layer, upper)
      run(
        'skopeo',
        '--insecure-policy',
        'copy',
        '--quiet',
        '--dest-tls-verify=false',
        ref,
        `docker://${host}/demo/app:1`,
      )
      const tempDir = scratch()
      const options = { tlsVerify: false, tempDir, platform: 'linux/amd64' }
      expect(await listing(await merged(`docker://${host}/demo/app:1`, options))).toEqual(wanted)
      expect(await refusal(`docker://${host}/demo/app:2`, options)).toMatch(/^IMAGE_REGISTRY_FAILED: /)
      expect(await refusal(`docker://${host}/demo/app:1`, { ...options, platform: 'linux/arm64' })).toMatch(
        /^IMAGE_PLATFORM_ABSENT:/,
      )
      expect(readdirSync(tempDir)).toEqual([])
    },
  )
})

/** A real registry on a loopback port of its own. */
async function registry(): Promise<string> {
  const port = await freePort()
  const root = scratch()
  const config = join(root, 'config.yml')
  writeFileSync(
    config,
    `version: 0.1\nstorage: {filesystem: {rootdirectory: ${root}/data}}\nhttp: {addr: '127.0.0.1:${port}'}\n`,
  )
  const server = spawn('docker-registry', ['serve', config], { stdio: ['ignore', 'ignore', 'pipe'] })
  onTestFinished(() => {
    server.kill('SIGKILL')
  })
  await new Promise<void>((resolve, reject) => {
    let text = ''
    server.stderr.on('data', (chunk: Buffer) => {
      text += chunk.toString()
      if (text.includes('listening on')) resolve()
    })
    server.on('exit', () => reject(new Error(text)))
  })
  return `127.0.0.1:${port}`
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.on('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const address = server.address()
      server.close(() =>
        typeof address === 'object' && address !== null ? resolve(address.port) : reject(new Error('no port')),
      )
    })
  })
}
