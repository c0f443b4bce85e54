import { randomBytes } from 'node:crypto'
import { gzipSync } from 'node:zlib'
import { describe, expect, it } from 'vitest'
import { compress } from 'zstd-napi'
import { Budget, DEFAULT_LIMITS } from '../../publisher/oci/limits.ts'
import { ByteFeed } from '../../publisher/tar/feed.ts'
import { TarReader } from '../../publisher/tar/reader.ts'
import { codeOfAsync } from '../codes.ts'
import { imageOf, LayoutMaker, layerRefusal, listing, merged, refusal } from './images.ts'
import { dir, END, file, hardlink, member, paxBody, paxRecord, symlink, tar } from './tars.ts'

async function readAll(bytes: Uint8Array, endMark: 'required' | 'optional'): Promise<void> {
  const pieces = async function* () {
    yield bytes
  }
  const reader = new TarReader(new ByteFeed(pieces()), new Budget(DEFAULT_LIMITS), endMark)
  while ((await reader.next()) !== undefined);
}

// The attack list of docs/publishing-input.md: every case is refused by its own code, and what is honest beside it is not.

const base = tar(dir('etc/'), file('etc/a', 'lower'), symlink('lib', 'usr/lib'), dir('usr/'), dir('usr/lib/'))

describe('B1 names that leave the image', () => {
  it.each(['../x', 'a/../../x', '/etc/passwd', 'a//b', 'a/./b', '././a', '..', 'a/..', '/'])('%s', async (name) => {
    expect(await layerRefusal(tar(file(name, 'x')))).toBe('LAYER_PATH')
  })
  it('as a directory, in PAX and in a GNU long name', async () => {
    expect(await layerRefusal(tar(dir('../')))).toBe('LAYER_PATH')
    expect(await layerRefusal(tar(dir('a/../')))).toBe('LAYER_PATH')
    expect(await layerRefusal(tar(file('x', 'x', { pax: { path: '../x' } })))).toBe('LAYER_PATH')
    expect(await layerRefusal(tar({ name: 'L', type: 'L', body: '/abs\0' }, file('x', 'x')))).toBe('LAYER_PATH')
  })
  it('a leading "./" is fine', async () => {
    const tree = await merged(imageOf(tar(dir('./'), dir('./a/'), file('./a/b', 'x'))))
    expect(await listing(tree)).toEqual(['dir 755 .', 'dir 755 a', 'file 644 a/b x'])
  })
})

describe('B2 symbolic links as parents', () => {
  it('the root as a link', async () => {
    expect(await layerRefusal(tar(symlink('.', '/tmp'), file('x', 'x')))).toBe('LAYER_PATH')
    expect(await layerRefusal(tar(symlink('./', '/tmp')))).toBe('LAYER_PATH')
    expect(await layerRefusal(tar(symlink('/', '/tmp')))).toBe('LAYER_PATH')
  })
  it('a link in the same layer, before or after what stands below it', async () => {
    expect(await layerRefusal(tar(symlink('d', '/'), file('d/x', 'x')))).toBe('LAYER_PARENT')
    expect(await layerRefusal(tar(file('d/x', 'x'), symlink('d', '/')))).toBe('LAYER_DUPLICATE')
  })
  it('a link or file in a lower layer', async () => {
    expect(await refusal(imageOf(base, tar(file('lib/x', 'x'))))).toMatch(/^LAYER_PARENT: "lib" is a symlink/)
    expect(await refusal(imageOf(base, tar(file('etc/a/x', 'x'))))).toMatch(/^LAYER_PARENT: "etc\/a" is a file/)
  })
  it('a directory that the layer lists takes the place of a link, and is reported', async () => {
    const tree = await merged(imageOf(base, tar(dir('lib/'), file('lib/x', 'x'))))
    expect(tree.get('lib')?.node.type).toBe('dir')
    expect(tree.findings).toContainEqual(expect.objectContaining({ kind: 'directory-replaces-link', path: 'lib' }))
  })
})

describe('B3 hard links', () => {
  it.each([
    ['outside', tar(hardlink('h', '../../etc/passwd')), 'LAYER_PATH'],
    ['absolute', tar(hardlink('h', '/etc/passwd')), 'LAYER_PATH'],
    ['no target', tar(hardlink('h', '')), 'LAYER_LINK'],
    ['missing', tar(hardlink('h', 'nowhere')), 'LAYER_LINK'],
    ['itself', tar(hardlink('h', 'h')), 'LAYER_LINK'],
    ['ahead of its target', tar(hardlink('h', 't'), file('t', 'x')), 'LAYER_LINK'],
    ['a directory', tar(dir('d/'), hardlink('h', 'd')), 'LAYER_LINK'],
    ['a symbolic link', tar(symlink('s', 'x'), hardlink('h', 's')), 'LAYER_LINK'],
    [
      'through a symbolic link',
      tar(dir('d/'), file('d/f', 'x'), symlink('s', 'd'), hardlink('h', 's/f')),
      'LAYER_LINK',
    ],
    ['a device below /dev', tar(dir('dev/'), { name: 'dev/n', type: '3' }, hardlink('h', 'dev/n')), 'LAYER_LINK'],
    ['a circle', tar(hardlink('a', 'b'), hardlink('b', 'a')), 'LAYER_LINK'],
  ])('%s', async (_, layer, code) => {
    expect(await layerRefusal(layer)).toBe(code)
  })
  it.each([
    ['itself, in a lower layer', tar(hardlink('etc/a', 'etc/a'))],
    ['what the same layer removes', tar(hardlink('h', 'etc/a'), file('etc/.wh.a'))],
    ['what the same layer replaces', tar(hardlink('h', 'etc/a'), file('etc/a', 'new'))],
    ['what the same layer hides', tar(hardlink('h', 'etc/a'), file('etc/.wh..wh..opq'))],
    ['a link of a lower layer', tar(hardlink('h', 'lib'))],
  ])('%s', async (_, upper) => {
    expect(await refusal(imageOf(base, upper))).toMatch(/^LAYER_LINK:/)
  })
  it('into a lower layer and from link to link', async () => {
    const tree = await merged(
      imageOf(base, tar(hardlink('h', 'etc/a'), hardlink('i', 'h'), file('j', 'x'), hardlink('k', 'j'))),
    )
    const [a, h, i, j, k] = ['etc/a', 'h', 'i', 'j', 'k'].map((path) => tree.get(path))
    expect([h?.node, i?.node, k?.node]).toEqual([a?.node, a?.node, j?.node])
    expect([a?.link, h?.link, i?.link, j?.link, k?.link]).toEqual([1, 1, 1, 2, 2])
  })
})

describe('B4 whiteouts', () => {
  it.each(['.wh.', '.wh..', '.wh...', 'a/.wh.', '.wh..wh.x', '.wh..wh..opq2', '.wh.d/x', 'a/.wh.b/c/d'])(
    '%s',
    async (name) => {
      expect(await layerRefusal(tar(file(name)))).toBe('LAYER_WHITEOUT')
    },
  )
  it('that are more than an empty file', async () => {
    expect(await layerRefusal(tar(file('.wh..wh..opq', 'data')))).toBe('LAYER_WHITEOUT')
    expect(await layerRefusal(tar(file('.wh.x', 'data')))).toBe('LAYER_WHITEOUT')
    expect(await layerRefusal(tar(dir('.wh.x/')))).toBe('LAYER_WHITEOUT')
    expect(await layerRefusal(tar(file('f'), hardlink('.wh.x', 'f')))).toBe('LAYER_WHITEOUT')
    expect(await layerRefusal(tar(symlink('.wh.x', '/')))).toBe('LAYER_WHITEOUT')
  })
  it('outside the image', async () => {
    expect(await layerRefusal(tar(file('../.wh.x')))).toBe('LAYER_PATH')
    expect(await refusal(imageOf(base, tar(file('lib/.wh.x'))))).toBe('accepted')
  })
  it('through a symbolic link remove nothing', async () => {
    const lower = tar(dir('d/'), file('d/f', 'x'), symlink('s', 'd'))
    const tree = await merged(imageOf(lower, tar(file('s/.wh.f'), file('s/.wh..wh..opq'))))
    expect(tree.get('d/f')).toBeDefined()
    expect(tree.get('s')?.node.type).toBe('symlink')
  })
})

describe('B5 devices and privileges', () => {
  const mem = { name: 'mem', type: '3', rdev: [1, 1] as const }
  it('a device or FIFO outside /dev', async () => {
    expect(await refusal(imageOf(tar(mem)))).toMatch(/^LAYER_DEVICE: "mem" is the char device 1:1/)
    expect(await layerRefusal(tar({ name: 'disk', type: '4', rdev: [8, 0] }))).toBe('LAYER_DEVICE')
    expect(await layerRefusal(tar(dir('run/'), { name: 'run/f', type: '6' }))).toBe('LAYER_DEVICE')
    expect(await layerRefusal(tar({ ...mem, rdev: [4096, 0] }), { devices: 'keep' })).toBe('LAYER_HEADER')
  })
  it('below /dev are left out and reported, or refused, or kept, as the policy says', async () => {
    const image = imageOf(tar(dir('dev/'), { name: 'dev/null', type: '3', rdev: [1, 3] }, { name: 'dev/p', type: '6' }))
    const tree = await merged(image)
    expect(await listing(tree)).toEqual(['dir 755 .', 'dir 755 dev'])
    expect(tree.findings).toEqual([
      { kind: 'device-dropped', path: 'dev/null', detail: 'char' },
      { kind: 'device-dropped', path: 'dev/p', detail: 'fifo' },
    ])
    expect(await refusal(image, { devices: 'refuse' })).toMatch(/^LAYER_DEVICE:/)
    const kept = (await merged(image, { devices: 'keep' })).get('dev/null')?.node
    expect(kept).toMatchObject({ type: 'char', rdev: [1, 3] })
  })
  it('setuid, setgid, file capabilities and dropped attributes are reported', async () => {
    const tree = await merged(
      imageOf(
        tar(
          file('su', 'x', { mode: 0o4755, pax: { 'SCHILY.xattr.security.capability': Buffer.from([1, 0, 0, 2]) } }),
          file('sg', 'x', { mode: 0o2755, pax: { 'SCHILY.acl.access': 'user::rw-' } }),
          file('ov', 'x', { pax: { 'SCHILY.xattr.trusted.overlay.opaque': 'y', 'SCHILY.xattr.user.a': '' } }),
        ),
      ),
    )
    expect(tree.findings.map((f) => `${f.kind} ${f.path}`).sort()).toEqual([
      'acl-dropped sg',
      'file-capability su',
      'setgid sg',
      'setuid su',
      'xattr-dropped ov',
    ])
    expect([...(tree.get('ov')?.node.xattrs.keys() ?? [])]).toEqual(['user.a'])
  })
  it('attributes that are given in the forms of libarchive or old star alone are reported as dropped', async () => {
    const capability = { 'LIBARCHIVE.xattr.security.capability': 'AQAAAg' }
    const tree = await merged(
      imageOf(
        tar(
          file('lib', 'x', {
            pax: { ...capability, 'LIBARCHIVE.xattr.user.%C3%A4': 'eA', 'LIBARCHIVE.xattr.user.%': '' },
          }),
          file('star', 'x', { pax: { 'RHT.security.selinux': 'system_u:object_r:bin_t:s0' } }),
          file('twice', 'x', { pax: { ...capability, 'SCHILY.xattr.security.capability': Buffer.from([1, 0, 0, 2]) } }),
        ),
      ),
    )
    expect(tree.findings.map((f) => `${f.kind} ${f.path} ${f.detail}`).sort()).toEqual([
      'file-capability twice has file capabilities',
      expect.stringMatching(/^xattr-dropped lib .*security\.capability/),
      expect.stringMatching(/^xattr-dropped lib .*user\.%/),
      expect.stringMatching(/^xattr-dropped lib .*user\.ä/),
      expect.stringMatching(/^xattr-dropped star .*security\.selinux/),
    ])
  })
})

describe('B6 bombs', () => {
  const zeros = Buffer.alloc(80 << 20)
  const bomb = tar(file('z', zeros))
  const maker = (bytes: Uint8Array, mediaType: string): string => {
    const layout = new LayoutMaker()
    return layout.write([layout.image({ layers: [{ bytes, mediaType, diffId: `sha256:${'0'.repeat(64)}` }] })])
  }
  const gzip = 'application/vnd.oci.image.layer.v1.tar+gzip'
  const zstd = 'application/vnd.oci.image.layer.v1.tar+zstd'
  it('by ratio, in gzip and zstd, without unpacking it all', async () => {
    const before = process.memoryUsage().rss
    expect(await refusal(maker(gzipSync(bomb), gzip))).toMatch(/^LAYER_LIMIT: .*256 times/)
    expect(await refusal(maker(compress(bomb), zstd))).toMatch(/^LAYER_LIMIT: .*256 times/)
    const frame = compress(zeros.subarray(0, 1 << 20))
    const many = Buffer.concat(Array.from({ length: 1000 }, () => frame))
    expect(await refusal(maker(many, zstd))).toMatch(/^LAYER_/)
    expect(process.memoryUsage().rss - before).toBeLessThan(256 << 20)
  })
  it('by bytes, entries, layers, depth, header size and name length', async () => {
    const limits = { ...DEFAULT_LIMITS, bytes: 1 << 20, entries: 100, layers: 3 }
    expect(await layerRefusal(bomb, { limits })).toBe('LAYER_LIMIT')
    const entries = Array.from({ length: 101 }, (_, i) => file(`f${i}`))
    expect(await layerRefusal(tar(...entries), { limits })).toBe('LAYER_LIMIT')
    expect(await refusal(imageOf(base, base, base, base), { limits })).toMatch(/^LAYER_LIMIT: the image has 4 layers/)
    const deep = Array.from({ length: 129 }, () => 'd').join('/')
    expect(await layerRefusal(tar(file('x', '', { pax: { path: deep } })))).toBe('LAYER_LIMIT')
    expect(await layerRefusal(tar({ name: 'p', type: 'x', body: paxRecord('comment', 'x'.repeat(1 << 20)) }))).toBe(
      'LAYER_LIMIT',
    )
    const value = 'x'.repeat(65_537)
    expect(await layerRefusal(tar(file('x', '', { pax: { 'SCHILY.xattr.user.x': value } })))).toBe('LAYER_LIMIT')
    const headers = Array.from({ length: 60 }, (_, i) => file(`f${i}`, '', { pax: { comment: 'c' } }))
    expect(await layerRefusal(tar(...headers), { limits })).toBe('LAYER_LIMIT')
  })
  it('by directories that a path only implies: one small entry makes as many as its path has parts', async () => {
    const limits = { ...DEFAULT_LIMITS, entries: 100 }
    const path = (parts: number) => Array.from({ length: parts }, () => 'd').join('/')
    const entry = (parts: number) => tar(file('x', '', { pax: { path: path(parts) } }))
    expect(await layerRefusal(entry(98), { limits })).toBe('accepted')
    expect(await layerRefusal(entry(105), { limits })).toBe('LAYER_LIMIT')
    // Each is counted once, whatever stands in it.
    const shared = Array.from({ length: 20 }, (_, i) => file('x', '', { pax: { path: `${path(50)}/f${i}` } }))
    expect(await layerRefusal(tar(...shared), { limits })).toBe('accepted')
  })
  it('by extended attributes: a few bytes of a header take hundreds in memory', async () => {
    const limits = { ...DEFAULT_LIMITS, xattrs: 3 }
    const pax = { 'SCHILY.xattr.user.a': '', 'SCHILY.xattr.trusted.b': '' }
    const third = file('c', '', { pax: { 'LIBARCHIVE.xattr.user.c': '' } })
    expect(await layerRefusal(tar(file('a', '', { pax }), third), { limits })).toBe('accepted')
    expect(await layerRefusal(tar(file('a', '', { pax }), third, file('b', '', { pax })), { limits })).toBe(
      'LAYER_LIMIT',
    )
  })
  it('one compression inside another is no tar', async () => {
    expect(await refusal(maker(compress(compress(base)), zstd))).toMatch(/^LAYER_(HEADER|TRUNCATED)/)
    expect(await refusal(maker(gzipSync(gzipSync(base)), gzip))).toMatch(/^LAYER_(HEADER|TRUNCATED)/)
  })
  it('damaged, cut and padded compression', async () => {
    const packed = gzipSync(base)
    expect(await refusal(maker(packed.subarray(0, -9), gzip))).toMatch(/^LAYER_COMPRESSION:/)
    expect(await refusal(maker(base, gzip))).toMatch(/^LAYER_COMPRESSION:/)
    expect(await refusal(maker(Buffer.concat([packed, Buffer.alloc(9)]), gzip))).toMatch(/^LAYER_TRAILING:/)
    expect(await refusal(maker(Buffer.concat([packed, Buffer.from('junk')]), gzip))).toMatch(
      /^LAYER_(COMPRESSION|TRAILING):/,
    )
    expect(await refusal(maker(compress(base).subarray(0, -3), zstd))).toMatch(/^LAYER_COMPRESSION:/)
    expect(await refusal(maker(base, zstd))).toMatch(/^LAYER_COMPRESSION:/)
    expect(await refusal(maker(Buffer.concat([compress(base), Buffer.from('junk')]), zstd))).toMatch(
      /^LAYER_COMPRESSION:/,
    )
  })
  it('a layer may end anywhere in the pieces it is unpacked in', async () => {
    const sizes = [256 << 10, 512 << 10, (256 << 10) + 512]
    const bodies = [(length: number) => randomBytes(length), (length: number) => Buffer.alloc(length, 'line\n')]
    for (const [total, body] of sizes.flatMap((size) => bodies.map((make) => [size, make] as const))) {
      const layer = tar(file('f', body(total - 512 - 1024)))
      expect(layer.length).toBe(total)
      for (const [bytes, mediaType] of [
        [compress(layer), zstd],
        [Buffer.concat([compress(layer.subarray(0, 1000)), compress(layer.subarray(1000))]), zstd],
        [gzipSync(layer), gzip],
      ] as const) {
        const layout = new LayoutMaker()
        const image = layout.image({ layers: [{ bytes, mediaType }] })
        expect(await refusal(layout.write([image])), `${mediaType} ${total}`).toBe('accepted')
      }
    }
  })
  it('several gzip members and zstd frames are one stream', async () => {
    const half = 1024
    const parts = [base.subarray(0, half), base.subarray(half)]
    const layout = new LayoutMaker()
    const image = layout.image({
      layers: [
        { bytes: Buffer.concat(parts.map((p) => gzipSync(p))), mediaType: gzip },
        { bytes: Buffer.concat(parts.map((p) => compress(p))), mediaType: zstd },
      ],
    })
    expect(await refusal(layout.write([image]))).toBe('accepted')
  })
})

describe('B7 headers that two readers could read differently', () => {
  const x = (body: Uint8Array): Uint8Array => tar({ name: 'p', type: 'x', body }, file('f', 'body'))
  it.each([
    ['size in two places', tar(file('f', 'body', { pax: { size: '512' } }))],
    ['huge size beside a small one', tar(file('f', 'body', { pax: { size: '9000000000' } }))],
    ['PAX size not a number', tar(file('f', 'body', { pax: { size: '4x' } }))],
    ['PAX size negative', tar(file('f', 'body', { pax: { size: '-4' } }))],
    ['NUL in a PAX path', tar(file('f', 'body', { pax: { path: 'a\0b' } }))],
    ['empty PAX path', tar(file('f', 'body', { pax: { path: '' } }))],
    ['NUL in a link target', tar({ name: 'l', type: '2', pax: { linkpath: 'a\0b' } })],
    ['bytes behind the NUL of a name', tar(file('a', 'x', { patch: { 1: '\0b' } }))],
    ['NUL inside a GNU long name', tar({ name: 'L', type: 'L', body: 'a\0b\0' }, file('f'))],
    ['unknown PAX key', x(paxBody({ 'X.unknown': '1' }))],
    ['PAX key twice', x(Buffer.concat([paxRecord('path', 'a'), paxRecord('path', 'b')]))],
    ['PAX length too long', x(Buffer.from('99 path=a\n'))],
    ['PAX length with a leading zero', x(Buffer.from('010 path=a\n'))],
    ['PAX length of nothing', x(Buffer.from(' path=a\n'))],
    ['PAX record without end', x(Buffer.from('10 path=abc'))],
    ['PAX record without key', x(Buffer.from('5 =a\n'))],
    ['PAX mtime not a time', x(paxBody({ mtime: 'soon' }))],
    ['global PAX header that renames', tar({ name: 'g', type: 'g', body: paxBody({ path: 'x' }) }, file('f'))],
    [
      'two PAX headers',
      tar({ name: 'p', type: 'x', body: paxBody({ path: 'a' }) }, file('f', '', { pax: { path: 'b' } })),
    ],
    ['PAX path and GNU long name', tar({ name: 'L', type: 'L', body: 'a\0' }, file('f', '', { pax: { path: 'b' } }))],
    [
      'PAX and GNU link target',
      tar({ name: 'K', type: 'K', body: 'a\0' }, { name: 'l', type: '2', pax: { linkpath: 'b' } }),
    ],
    [
      'two GNU long names',
      tar({ name: 'L', type: 'L', body: 'a\0' }, { name: 'L', type: 'L', body: 'b\0' }, file('f')),
    ],
    [
      'two GNU long link names',
      tar({ name: 'K', type: 'K', body: 'a\0' }, { name: 'K', type: 'K', body: 'b\0' }, symlink('l', 'x')),
    ],
    ['extended header at the end', tar(file('f'), { name: 'p', type: 'x', body: paxBody({ path: 'a' }) })],
    ['content on a directory', tar(dir('d/', { body: 'x' }))],
    ['content on a hard link', tar(file('f', 'x'), { name: 'h', type: '1', link: 'f', body: 'x' })],
    ['content on a symbolic link', tar({ name: 's', type: '2', link: 'f', size: 512 })],
    ['wrong checksum', Buffer.from(tar(file('f'))).fill('g', 0, 1)],
    ['no tar mark', tar(file('f', '', { patch: { 257: 'xxxxxxxx' } }))],
    ['old star form', tar(file('f', '', { patch: { 508: 'tar\0' } }))],
    ['size not octal', tar(file('f', '', { patch: { 124: '00000000009' } }))],
    [
      'negative binary size',
      tar(file('f', '', { patch: { 124: '\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff' } })),
    ],
    ['binary size above 2^53', tar(file('f', '', { patch: { 124: '\x80\0\0\0\x7f\0\0\0\0\0\0\0' } }))],
    ['malformed binary size', tar(file('f', '', { patch: { 124: '\xc0\0\0\0\0\0\0\0\0\0\0\0' } }))],
    ['impossible owner', tar(file('f', '', { pax: { uid: '4294967295' } }))],
  ])('%s', async (_, layer) => {
    expect(await layerRefusal(layer)).toBe('LAYER_HEADER')
  })
  it('sparse files and other kinds', async () => {
    for (const type of ['S', 'V', 'M', 'D', 'N', '7', 'A'])
      expect(await layerRefusal(tar({ name: 'f', type }))).toBe('LAYER_TYPE')
    expect(await layerRefusal(tar(file('f', 'x', { pax: { 'GNU.sparse.major': '1' } })))).toBe('LAYER_TYPE')
  })
  it('a file whose name ends in a slash', async () => {
    expect(await layerRefusal(tar(file('d/', 'x')))).toBe('LAYER_PATH')
  })
  it('the end: missing, half, or followed by bytes', async () => {
    const body = member(file('f', 'x'))
    // umoci writes layers without an end mark; their digest shows that they are whole.
    expect(await layerRefusal(body)).toBe('accepted')
    expect(await layerRefusal(body.subarray(0, 513))).toBe('accepted')
    expect(await codeOfAsync(() => readAll(body.subarray(0, 513), 'required'))).toBe('LAYER_TRUNCATED')
    expect(await codeOfAsync(() => readAll(body, 'required'))).toBe('LAYER_TRUNCATED')
    expect(await layerRefusal(Buffer.concat([body, END.subarray(512)]))).toBe('LAYER_TRUNCATED')
    expect(await layerRefusal(body.subarray(0, 300))).toBe('LAYER_TRUNCATED')
    expect(await layerRefusal(member(file('f', '', { size: 600 })))).toBe('LAYER_TRUNCATED')
    expect(await layerRefusal(member({ name: 'p', type: 'x', size: 600 }))).toBe('LAYER_TRUNCATED')
    expect(await layerRefusal(Buffer.alloc(0))).toBe('LAYER_TRUNCATED')
    expect(await layerRefusal(Buffer.concat([tar(file('f')), member(file('g'))]))).toBe('LAYER_TRAILING')
    expect(await layerRefusal(Buffer.concat([body, END.subarray(512), body, END]))).toBe('LAYER_TRAILING')
    expect(await refusal(imageOf(Buffer.concat([tar(file('f')), Buffer.alloc(9000)])))).toBe('accepted')
  })
})

describe('B10 names', () => {
  it.each([
    ['newline', 'a\nb'],
    ['escape', 'a\u001b[31m'],
    ['delete', 'a\u007f'],
    ['a control of the second set', 'a\u009bb'],
    ['a part above 255 bytes', 'x'.repeat(256)],
    ['a part above 255 bytes in UTF-8', 'é'.repeat(128)],
    ['a path above 4095 bytes', Array.from({ length: 20 }, () => 'y'.repeat(220)).join('/')],
  ])('%s', async (_, path) => {
    expect(await layerRefusal(tar(file('f', '', { pax: { path } })))).toBe('LAYER_NAME')
  })
  it('not UTF-8, empty, and in link targets', async () => {
    expect(await layerRefusal(tar({ name: Buffer.from([0x61, 0xff]) }))).toBe('LAYER_NAME')
    expect(await layerRefusal(tar({ name: Buffer.from([0xed, 0xa0, 0x80]) }))).toBe('LAYER_NAME')
    expect(await layerRefusal(tar(file('')))).toBe('LAYER_NAME')
    expect(await layerRefusal(tar(symlink('l', 'a\nb')))).toBe('LAYER_NAME')
    expect(await layerRefusal(tar(symlink('l', '')))).toBe('LAYER_NAME')
    expect(await layerRefusal(tar({ name: 'l', type: '2', pax: { linkpath: 'z'.repeat(4096) } }))).toBe('LAYER_NAME')
  })
  it('255 bytes are fine, and look-alikes are reported', async () => {
    const long = 'x'.repeat(255)
    const tree = await merged(
      imageOf(
        tar(
          file('f', '', { pax: { path: `d/${long}` } }),
          ...['Readme', 'README', 'straße', 'STRASSE', 'é', 'e\u0301'].map((n) => file(n)),
        ),
      ),
    )
    expect(tree.get(`d/${long}`)).toBeDefined()
    expect(
      tree.findings
        .filter((f) => f.kind === 'look-alike')
        .map((f) => f.path)
        .sort(),
    ).toEqual(['Readme', 'straße', 'é'])
  })
})

describe('B11 duplicates', () => {
  it.each([
    ['file', tar(file('f', 'a'), file('f', 'b'))],
    ['the very same file', tar(file('f', 'a'), file('f', 'a'))],
    ['file by another spelling', tar(file('f', 'a'), file('./f', 'b'))],
    ['link', tar(file('f', 'a'), symlink('f', 'b'))],
    ['hard link', tar(file('f', 'a'), file('g', 'b'), hardlink('g', 'f'))],
    ['directory over file', tar(file('f', 'a'), dir('f/'))],
    ['file over directory', tar(dir('f/'), file('f', 'a'))],
    ['file over implied directory', tar(file('f/x', 'a'), file('f', 'a'))],
    ['directory with other attributes', tar(dir('d/'), dir('d/', { mode: 0o700 }))],
    ['directory with other xattrs', tar(dir('d/'), dir('d/', { pax: { 'SCHILY.xattr.user.a': 'b' } }))],
    ['root with other attributes', tar(dir('./'), dir('./', { mode: 0o700 }))],
    ['whiteout', tar(file('.wh.f'), file('.wh.f'))],
    ['opaque mark', tar(file('d/.wh..wh..opq'), file('./d/.wh..wh..opq'))],
  ])('%s', async (_, layer) => {
    expect(await layerRefusal(layer)).toBe('LAYER_DUPLICATE')
  })
  it('a directory repeated as it was is fine', async () => {
    expect(await refusal(imageOf(tar(dir('./'), dir('d/'), dir('./'), dir('d'))))).toBe('accepted')
  })
})
