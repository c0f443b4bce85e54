import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, unlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { runCli } from '../../base/cli.ts'
import { bundleVerbs } from '../../bundle/cli.ts'
import { diffVerbs } from '../../bundle/diff-cli.ts'
import { TAR_BLOCK, tarHeader } from '../../bundle/tar.ts'
import { keyVerbs } from '../../keys/cli.ts'
import { publisherVerbs } from '../../publisher/cli.ts'
import { makeBundle, type TestBundle } from '../helpers/bundle.ts'
import { have, run } from '../helpers/run.ts'
import { signedRoot } from '../keys/helpers.ts'
import { imageOf, LayoutMaker, TAR } from '../oci/images.ts'
import { dir, file, hardlink, type Member, symlink, tar } from '../oci/tars.ts'
import { fitSpecs, type Spec } from '../publisher/memory-tree.ts'
import { expectRefusal, type Refused, type Wanted } from './expect.ts'

// Bad input to the publisher, by its real commands: it names what it found and what it wanted and says what to do next,
// and leaves nothing behind that could be taken for a result.

const VERBS = [...publisherVerbs, ...keyVerbs, ...bundleVerbs, ...diffVerbs]
let work: string
let out: string
let good: TestBundle
let root: string

beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'bistable-bad-'))
  out = join(work, 'out')
  mkdirSync(out)
  root = given('root.json', await signedRoot({}, [1, 2]))
  good = await makeBundle(work, 'good', { boot: Buffer.alloc(40_960, 1), rootfs: Buffer.alloc(2 << 20, 2) })
})
afterAll(() => rmSync(work, { recursive: true, force: true }))

function given(name: string, bytes: Uint8Array | string): string {
  const path = join(work, name)
  writeFileSync(path, bytes)
  return path
}

async function cli(argv: readonly string[]): Promise<Refused & { readonly said: string }> {
  const err: string[] = []
  const said: string[] = []
  const terminal = { out: (l: string) => said.push(l), err: (l: string) => err.push(l), interactive: false }
  const exit = await runCli(VERBS, argv, terminal, new AbortController().signal)
  return { exit, err: err.join('\n'), said: said.join('\n') }
}

/** Names and digests of everything below the work folder. */
function everything(): Record<string, string> {
  const found: Record<string, string> = {}
  for (const name of readdirSync(work, { recursive: true, encoding: 'utf8' }).sort()) {
    const path = join(work, name)
    found[name] = statSync(path).isFile() ? createHash('sha256').update(readFileSync(path)).digest('hex') : ''
  }
  return found
}

async function refuses(argv: readonly string[], wanted: Wanted): Promise<void> {
  const before = everything()
  const ran = await cli(argv)
  expectRefusal({ exit: ran.exit, err: ran.err.replace(/^verified \d+% of .*\n/gm, '') }, wanted)
  expect(everything()).toEqual(before)
}

const build = (image: string): string[] => [
  'build',
  image,
  '--output',
  join(out, 'release.build'),
  '--version',
  '1',
  '--counter',
  '2',
  '--work-dir',
  out,
]

describe('an image that is none', () => {
  it('not an OCI image', async () => {
    mkdirSync(join(work, 'photos'))
    given('photos/cat.jpg', 'meow')
    const form = 'IMAGE_UNKNOWN_FORM'
    await refuses(build(join(work, 'photos')), { family: 'input', code: form, says: ['photos', 'oci-layout'] })
    await refuses(build(given('notes.txt', 'these are notes\n'.repeat(100))), {
      family: 'input',
      code: form,
      says: ['notes.txt', 'no tar', 'wanted'],
    })
    await refuses(build(given('page.html', '<!doctype html><p>404')), {
      family: 'input',
      code: form,
      says: ['page.html', 'no tar'],
    })
    await refuses(build(given('empty.tar', '')), { family: 'input', code: form, says: ['empty.tar', 'is empty'] })
    await refuses(build(given('image.tar.gz', gzipSync(tar(file('oci-layout', '{}'))))), {
      family: 'input',
      code: form,
      says: ['image.tar.gz', 'compressed by gzip'],
    })
    await refuses(build(join(work, 'nowhere')), { family: 'input', code: 'IMAGE_NOT_FOUND', says: ['nowhere'] })
  })

  it('a missing layer', async () => {
    const maker = new LayoutMaker(join(work, 'incomplete'))
    const layer = tar(dir('etc/'))
    const image = maker.write([maker.image({ layers: [{ bytes: layer }] })])
    const digest = createHash('sha256').update(layer).digest('hex')
    unlinkSync(join(maker.dir, 'blobs/sha256', digest))
    await refuses(build(image), { family: 'input', code: 'IMAGE_BLOB_MISSING', says: ['incomplete', digest, 'layer'] })
  })

  it('a digest mismatch', async () => {
    const maker = new LayoutMaker(join(work, 'changed'))
    const layer = tar(file('motd', 'hello'))
    const image = maker.write([maker.image({ layers: [{ bytes: layer }] })])
    const digest = createHash('sha256').update(layer).digest('hex')
    writeFileSync(join(maker.dir, 'blobs/sha256', digest), tar(file('motd', 'hullo')))
    await refuses(build(image), { family: 'authenticity', code: 'IMAGE_DIGEST_MISMATCH', says: [digest] })
    writeFileSync(join(maker.dir, 'blobs/sha256', digest), layer.subarray(0, 512))
    await refuses(build(image), {
      family: 'authenticity',
      code: 'IMAGE_DIGEST_MISMATCH',
      says: ['512', `${layer.length}`],
    })
  })
})

describe('hostile layer entries', () => {
  const cases: [name: string, members: Member[], wanted: Wanted][] = [
    ['leaving the image', [file('../../etc/cron.d/x', 'x')], wants('LAYER_PATH', '../../etc/cron.d/x')],
    ['absolute', [file('/etc/passwd', 'x')], wants('LAYER_PATH', '/etc/passwd')],
    [
      'through a symbolic link',
      [symlink('lib', '/usr'), file('lib/x', 'x')],
      wants('LAYER_PARENT', 'lib/x', 'symlink', 'directory'),
    ],
    ['a hard link to the host', [hardlink('h', '../../etc/shadow')], wants('LAYER_PATH', 'etc/shadow')],
    ['a hard link to nothing', [hardlink('h', 'nowhere')], wants('LAYER_LINK', 'nowhere')],
    ['a disk device', [{ name: 'disk', type: '4', rdev: [8, 0] }], wants('LAYER_DEVICE', 'disk', '8:0')],
    ['one path twice', [file('a', '1'), file('a', '2')], wants('LAYER_DUPLICATE', '"a"')],
    ['a false whiteout', [file('.wh.', '')], wants('LAYER_WHITEOUT', '.wh.')],
    ['a name that steers the terminal', [file('x\u001b[2J', 'x')], wants('LAYER_NAME', 'x')],
    ['a name in another encoding', [{ name: Buffer.from([0xff, 0xfe]) }], wants('LAYER_NAME', 'UTF-8')],
    ['a sparse file', [{ name: 's', type: 'S', body: 'x' }], wants('LAYER_TYPE', 's')],
    ['a size that is not there', [file('s', 'x', { size: 1 << 30 })], wants('LAYER_TRUNCATED', /\d+/)],
  ]
  it.each(cases)('%s', async (_, members, wanted) => {
    await refuses(build(imageOf(tar(...members))), wanted)
  })

  it('a bomb', async () => {
    const maker = new LayoutMaker(join(work, 'bomb'))
    const bytes = gzipSync(tar(file('zeros', Buffer.alloc(68 << 20))))
    const image = maker.write([
      maker.image({ layers: [{ bytes, mediaType: `${TAR}+gzip`, diffId: `sha256:${'0'.repeat(64)}` }] }),
    ])
    await refuses(build(image), wants('LAYER_LIMIT', '256 times'))
  })
})

describe('an image that cannot work', () => {
  it('no kernel', async () => {
    const image = imageOf(layerOf(await fitSpecs(), (path) => !path.startsWith('boot/vmlinuz')))
    await refuses(build(image), { family: 'input', code: 'IMAGE_NO_KERNEL', says: ['/boot', 'vmlinuz'] })
    const linted = await cli(['lint', image])
    expect(linted.exit).toBe(3)
    expect(linted.said).toMatch(/^error kernel-missing \/boot: no kernel/m)
  })

  it('nothing of what a release needs: everything is listed at once', async () => {
    const image = imageOf(tar(file('hello', 'world')))
    await refuses(build(image), {
      family: 'input',
      code: 'IMAGE_UNFIT',
      says: ['kernel', 'system.json', 'root.json', 'init', 'busybox', /\d+ things are wrong/],
    })
  })

  it('larger than the slot', async () => {
    await refuses(['disk', good.path, '--root', root, '--output', join(out, 'disk.img'), '--slot-rootfs', '1M'], {
      family: 'input',
      code: 'IMAGE_TOO_LARGE',
      says: ['rootfs', '1048576', /21\d{5}/],
    })
  })
})

describe('a bundle that is none', () => {
  const everyCommand = (path: string): string[][] => [
    ['inspect', path],
    ['verify', path, '--root', root],
    ['disk', path, '--root', root, '--output', join(out, 'disk.img')],
  ]
  const each = async (path: string, wanted: Wanted): Promise<void> => {
    for (const argv of everyCommand(path)) await refuses(argv, wanted)
  }

  it('truncated', async () => {
    const bytes = readFileSync(good.path)
    const cut = given('cut.bundle', bytes.subarray(0, bytes.length - 4096))
    await each(cut, wants('BUNDLE_TRUNCATED', `${bytes.length - 4096}`, `${bytes.length}`))
  })

  it('with trailing bytes', async () => {
    const bytes = readFileSync(good.path)
    const long = given('long.bundle', Buffer.concat([bytes, Buffer.from('\n')]))
    await each(long, wants('BUNDLE_TRAILING_BYTES', `${bytes.length + 1}`, `${bytes.length}`))
  })

  it('a web page, a photo', async () => {
    const page = given('login.bundle', `<!DOCTYPE html>\n<title>Sign in</title>${' '.repeat(999)}`)
    await each(page, wants('BUNDLE_NOT_A_BUNDLE', 'login.bundle is a web page', 'bistable-bundle'))
    const photo = given('cat.bundle', Buffer.concat([Buffer.from('ffd8ffe000104a46', 'hex'), Buffer.alloc(999)]))
    await each(photo, wants('BUNDLE_NOT_A_BUNDLE', 'ffd8ffe000104a46', 'bistable-bundle'))
  })

  it('of an unknown format version', async () => {
    const marker = Buffer.alloc(TAR_BLOCK)
    marker.write('bistable bundle 2\n')
    const bytes = readFileSync(good.path).subarray(2 * TAR_BLOCK)
    const next = given('next.bundle', Buffer.concat([tarHeader('bistable-bundle', 18), marker, bytes]))
    await each(next, wants('BUNDLE_FORMAT_UNKNOWN', 'version 2', 'version 1'))
  })

  it('of another product', async () => {
    const other = given('other-root.json', await signedRoot({ product: 'toaster', root: [4, 5, 6] }, [4, 5]))
    await refuses(['verify', good.path, '--root', other], {
      family: 'authenticity',
      code: 'SIGNATURE_THRESHOLD',
      says: ["root 1 of 'toaster'", 'trusted'],
    })
  })

  it('not there', async () => {
    await each(join(work, 'none.bundle'), {
      family: 'storage',
      code: 'SOURCE_OPEN',
      says: ['none.bundle', 'no such file'],
    })
  })
})

describe('a place that cannot take the result', () => {
  it('a folder that is not there', async () => {
    const nowhere = join(work, 'no', 'such', 'folder')
    const image = imageOf(tar(file('hello', 'world')))
    await refuses([...build(image).slice(0, -2), '--work-dir', nowhere], {
      family: 'storage',
      code: 'IMAGE_STORE_FAILED',
      says: [nowhere, 'no such file or directory'],
    })
  })

  it('something that is there already', async () => {
    const taken = given('taken.img', 'precious')
    await refuses(['disk', good.path, '--root', root, '--output', taken], {
      family: 'usage',
      code: 'OUTPUT_EXISTS',
      says: ['taken.img'],
    })
  })

  it.skipIf(!have('unshare', 'mount'))('no space', async () => {
    const full = join(work, 'full')
    mkdirSync(full)
    const image = imageOf(tar(file('big', Buffer.alloc(1 << 20, 'x'))))
    // A file system of its own for the work folder, seen by this one command only.
    const script = `mount -t tmpfs -o size=256k none "$1" && shift && "$@" 2>&1; echo "exit $?"`
    const repo = join(import.meta.dirname, '../..')
    const command = ['node', '--import', 'tsx', join(repo, 'main.ts'), ...build(image).slice(0, -2), '--work-dir', full]
    const said = run('unshare', ['-rm', 'sh', '-c', script, 'sh', full, ...command], { cwd: repo })
    const [, err = '', exit] = /^(.*)\nexit (\d+)\n$/s.exec(said) ?? []
    expectRefusal(
      { err, exit: Number(exit) },
      { family: 'storage', code: 'IMAGE_STORE_FAILED', says: [full, 'no space left'] },
    )
  })
})

function wants(code: string, ...says: (string | RegExp)[]): Wanted {
  return { family: code === 'LAYER_DEVICE' || code === 'LAYER_LIMIT' ? 'policy' : 'input', code, says }
}

/** One layer of those paths that `keep` keeps. */
function layerOf(specs: Readonly<Record<string, Spec>>, keep: (path: string) => boolean): Uint8Array {
  const members: Member[] = []
  for (const [path, spec] of Object.entries(specs)) {
    if (!keep(path)) continue
    if (typeof spec === 'string' || spec instanceof Uint8Array) members.push(file(path, spec))
    else if (spec.type === 'file') members.push(file(path, spec.bytes, { mode: spec.mode ?? 0o644 }))
    else if (spec.type === 'dir') members.push(dir(`${path}/`))
    else if (spec.type === 'symlink') members.push(symlink(path, spec.target))
  }
  return tar(...members)
}
