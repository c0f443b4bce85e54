import { hash } from 'node:crypto'
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { haveTool, run } from './host.ts'
import { merged, scratch } from './images.ts'
import { dir, file, hardlink, symlink, tar } from './tars.ts'

// Other people's programs build and unpack images; our merged tree must be what they unpack.

/** Go's tar writer rounds times to the nearest second: give it whole ones. */
const SETTLE = 'find . -exec touch -h -d @1600000000 {} +'
const ROOT = process.getuid?.() === 0

/** A folder as lines: type, mode, owner, time, content or target, link group. */
function onDisk(root: string): string[] {
  const inodes = new Map<number, number>()
  const lines: string[] = []
  const walk = (path: string): void => {
    const stat = lstatSync(join(root, path))
    const kind = stat.isDirectory() ? 'dir' : stat.isSymbolicLink() ? 'symlink' : stat.isFile() ? 'file' : 'other'
    const more =
      kind === 'file'
        ? hash('sha256', readFileSync(join(root, path)))
        : kind === 'symlink'
          ? readlinkSync(join(root, path))
          : ''
    const owner = ROOT ? `${stat.uid}:${stat.gid}` : ''
    const time = kind === 'dir' ? '' : Math.floor(stat.mtimeMs / 1000)
    if (kind === 'file' && stat.nlink > 1 && !inodes.has(stat.ino)) inodes.set(stat.ino, inodes.size + 1)
    const mode = kind === 'symlink' ? '' : (stat.mode & 0o7777).toString(8)
    lines.push(`${path} ${kind} ${mode} ${owner} ${time} ${more} ${inodes.get(stat.ino) ?? ''}`)
    if (kind !== 'dir') return
    for (const name of readdirSync(join(root, path)).sort()) walk(path === '' ? name : `${path}/${name}`)
  }
  walk('')
  return lines.sort()
}

async function ours(ref: string): Promise<string[]> {
  const tree = await merged(ref, { clampTime: 2 ** 32 - 1 })
  const groups = new Map<number, number>()
  const lines: string[] = []
  const walk = (path: string): void => {
    const entry = tree.get(path)
    if (entry === undefined) throw new Error(`no ${path}`)
    const { node, link } = entry
    if (link !== undefined && !groups.has(link)) groups.set(link, groups.size + 1)
    const more = node.type === 'file' ? node.content : node.type === 'symlink' ? node.target : ''
    const owner = ROOT ? `${node.uid}:${node.gid}` : ''
    const mode = node.type === 'symlink' ? '' : node.mode.toString(8)
    const time = node.type === 'dir' ? '' : node.mtime
    lines.push(`${path} ${node.type} ${mode} ${owner} ${time} ${more} ${link === undefined ? '' : groups.get(link)}`)
    for (const child of [...tree.children(path)].sort((a, b) => (a.path < b.path ? -1 : 1))) walk(child.path)
  }
  walk('')
  return lines.sort()
}

const layers = [
  tar(
    dir('./'),
    dir('etc/'),
    file('etc/passwd', 'root'),
    file('etc/shadow', 'secret', { mode: 0o600 }),
    dir('opt/', { mode: 0o755 }),
    file('opt/a', 'a'),
    dir('opt/sub/'),
    file('opt/sub/b', 'b'),
    dir('usr/'),
    dir('usr/bin/'),
    file('usr/bin/tool', 'tool', { mode: 0o4755 }),
    hardlink('usr/bin/alias', 'usr/bin/tool'),
    symlink('bin', 'usr/bin'),
    dir('old/'),
    file('old/x', 'x'),
    file('turn', 'file'),
    dir('back/'),
    file('back/x', 'x'),
  ),
  tar(
    dir('./'),
    dir('opt/'),
    file('opt/.wh..wh..opq'),
    file('opt/new', 'new', { pax: { path: `opt/${'n'.repeat(180)}` } }),
    dir('etc/'),
    file('etc/.wh.shadow'),
    file('etc/passwd', 'changed'),
    file('.wh.old'),
    dir('usr/'),
    dir('usr/bin/'),
    hardlink('usr/bin/third', 'usr/bin/tool'),
  ),
  tar(
    dir('./'),
    dir('old/', { mode: 0o700 }),
    file('old/y', 'y'),
    dir('etc/'),
    dir('turn/'),
    file('turn/in', 'dir'),
    file('back', 'file'),
    symlink('opt', 'usr'),
    file('usr/bin/alias', 'own'),
  ),
]

describe('benign images', () => {
  it.skipIf(!haveTool('umoci'))('layers by hand are merged as umoci unpacks them', async () => {
    const folder = scratch()
    const layout = join(folder, 'layout')
    run('umoci', 'init', '--layout', layout)
    run('umoci', 'new', '--image', `${layout}:t`)
    for (const [i, bytes] of layers.entries()) {
      writeFileSync(join(folder, `${i}.tar`), bytes)
      run('umoci', 'raw', 'add-layer', '--image', `${layout}:t`, join(folder, `${i}.tar`))
    }
    run('umoci', 'unpack', ...(ROOT ? [] : ['--rootless']), '--image', `${layout}:t`, join(folder, 'bundle'))
    expect(await ours(`oci:${layout}:t`)).toEqual(onDisk(join(folder, 'bundle/rootfs')))
  })

  it.skipIf(!haveTool('umoci'))('changes that umoci packs as a layer are merged to what was packed', async () => {
    const folder = scratch()
    const layout = join(folder, 'layout')
    const rootless = ROOT ? [] : ['--rootless']
    run('umoci', 'init', '--layout', layout)
    run('umoci', 'new', '--image', `${layout}:t`)
    const [first] = layers
    writeFileSync(join(folder, 'first.tar'), first ?? '')
    run('umoci', 'raw', 'add-layer', '--image', `${layout}:t`, join(folder, 'first.tar'))
    run('umoci', 'unpack', ...rootless, '--image', `${layout}:t`, join(folder, 'bundle'))
    const root = join(folder, 'bundle/rootfs')
    run(
      'sh',
      '-ec',
      `cd '${root}'; rm -r opt; echo file > opt; rm old/x; rmdir old; rm bin; mkdir bin; echo x > bin/x; ln bin/x bin/y; ln usr/bin/tool usr/bin/more; chmod 700 etc; rm etc/passwd; mkdir -p etc/passwd/d; ${SETTLE}`,
    )
    run('umoci', 'repack', '--image', `${layout}:t2`, join(folder, 'bundle'))
    expect(await ours(`oci:${layout}:t2`)).toEqual(onDisk(root))
  })

  it.skipIf(!haveTool('buildah') || !ROOT)('an image committed by buildah is merged to what it mounts', async () => {
    const folder = scratch()
    mkdirSync(join(folder, 'run'))
    const buildah = (...args: string[]): string =>
      run(
        'buildah',
        '--storage-driver',
        'vfs',
        '--root',
        join(folder, 'store'),
        '--runroot',
        join(folder, 'run'),
        ...args,
      ).trim()
    const first = buildah('from', 'scratch')
    const mount = buildah('mount', first)
    run(
      'sh',
      '-ec',
      `cd '${mount}'; mkdir -p a/b etc; echo 1 > a/1; echo 2 > a/b/2; echo e > etc/e; ln a/1 a/hard; ln -s b a/soft; chmod 4755 a/1; chown 5:6 a/b; ${SETTLE}`,
    )
    buildah('commit', '--quiet', first, 'base')
    const second = buildah('from', '--pull-never', 'localhost/base')
    const upper = buildah('mount', second)
    run(
      'sh',
      '-ec',
      `cd '${upper}'; rm -r a/b; rm a/soft; mkdir a/soft; echo s > a/soft/s; rm etc/e; echo n > 'etc/n n'; ${SETTLE}`,
    )
    const archive = join(folder, 'image.tar')
    buildah('commit', '--quiet', second, `oci-archive:${archive}:t`)
    const saved = join(folder, 'saved.tar')
    buildah('commit', '--quiet', '--format', 'docker', second, `docker-archive:${saved}:x/y:1`)
    // The mode of the root is the container engine's own; no layer says it.
    const [, ...mounted] = onDisk(upper)
    expect((await ours(`oci-archive:${archive}:t`)).slice(1)).toEqual(mounted)
    expect((await ours(`docker-archive:${saved}`)).slice(1)).toEqual(mounted)
  })
})
