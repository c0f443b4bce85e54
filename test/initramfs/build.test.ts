import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gunzipSync, gzipSync } from 'node:zlib'
import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import { compress, decompress } from 'zstd-napi'
import { FILES, REASON } from '../../bootloader/layout.ts'
import { buildInitramfs, type InitramfsSource, planInitramfs } from '../../initramfs/build.ts'
import { packCpio } from '../../initramfs/cpio.ts'
import { readElf } from '../../initramfs/elf.ts'
import { loadOrder, unpackModule } from '../../initramfs/modules.ts'
import { APPLETS } from '../../initramfs/tools.ts'
import { initFunctions } from '../helpers/init-functions.ts'
import { have, run } from '../helpers/run.ts'

const dir = mkdtempSync(join(tmpdir(), 'bistable-initramfs-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const code = (name: string) => expect.objectContaining({ code: name })

/** A tree of a few files; programs come from this machine. */
function tree(files: Readonly<Record<string, Uint8Array | string>>): InitramfsSource {
  const paths = Object.keys(files)
  return {
    resolve: (path) => (paths.some((p) => p === path || p.startsWith(`${path}/`)) ? path : undefined),
    read: async (path) => Buffer.from(files[path] ?? ''),
    list: (path) => [
      ...new Set(
        paths.filter((p) => p.startsWith(`${path}/`)).map((p) => p.slice(path.length + 1).split('/')[0] ?? ''),
      ),
    ],
  }
}

const DEP = `kernel/md/dm-mod.ko:
kernel/fs/overlay.ko:
kernel/md/dm-bufio.ko: kernel/md/dm-mod.ko
kernel/md/dm-verity.ko.zst: kernel/md/dm-bufio.ko kernel/md/dm-mod.ko
kernel/fs/squashfs.ko.gz:
kernel/virtio_blk.ko: kernel/virtio.ko
kernel/virtio.ko:
`
const M = 'usr/lib/modules/6.1'
const staticProgram = readFileSync('/bin/busybox')
const base: Readonly<Record<string, Uint8Array | string>> = {
  'bin/busybox': staticProgram,
  'sbin/dmsetup': staticProgram,
  [`${M}/modules.dep`]: DEP,
  [`${M}/modules.builtin`]: 'kernel/fs/ext4.ko\nkernel/crypto/sha256_generic.ko\n',
  [`${M}/modules.softdep`]: 'softdep virtio_blk pre: dm-bufio\n',
  [`${M}/kernel/md/dm-mod.ko`]: 'dm-mod',
  [`${M}/kernel/md/dm-bufio.ko`]: 'dm-bufio',
  [`${M}/kernel/md/dm-verity.ko.zst`]: compress(Buffer.from('dm-verity')),
  [`${M}/kernel/fs/squashfs.ko.gz`]: gzipSync('squashfs'),
  [`${M}/kernel/virtio_blk.ko`]: 'virtio_blk',
  [`${M}/kernel/virtio.ko`]: 'virtio',
  [`${M}/kernel/fs/overlay.ko`]: 'overlay',
}
const without = (...paths: readonly string[]) =>
  tree(Object.fromEntries(Object.entries(base).filter(([path]) => !paths.includes(path))))

describe('the archive', () => {
  test('holds modules in load order, unpacked, and the declared paths', async () => {
    const plan = await planInitramfs(tree(base), {
      modules: ['dm-mod'],
      owned: ['/etc/machine-id', '/etc/ssh/ssh_host_*', '/var/other'],
      mounts: [
        { path: '/opt/app', policy: 'overlay' },
        { path: '/opt/app/logs', policy: 'data' },
        { path: '/opt/fresh', policy: 'overlay', release: 'reset' },
        { path: '/var/cache', policy: 'tmpfs', sizeMiB: 8 },
      ],
      watchdog: '/dev/watchdog',
    })
    const text = (path: string): string | undefined => {
      const entry = plan.entries.find((e) => e.path === path)
      return entry?.type === 'file' ? Buffer.from(entry.bytes).toString() : undefined
    }
    expect(text('etc/modules')?.split('\n')).toEqual([
      ...['dm_mod.ko', 'overlay.ko', 'dm_bufio.ko', 'dm_verity.ko', 'squashfs.ko', ''],
    ])
    // Drivers of disks are loaded until the disk is there; what the image asks for is loaded always.
    expect(text('etc/disk-modules')).toBe('virtio.ko\nvirtio_blk.ko\n')
    const asked = await planInitramfs(tree(base), { modules: ['virtio-blk'] })
    expect(asked.entries.find((e) => e.path === 'etc/disk-modules')).toMatchObject({ bytes: Buffer.from('') })
    expect(text('lib/modules/dm_verity.ko')).toBe('dm-verity')
    expect(text('lib/modules/squashfs.ko')).toBe('squashfs')
    expect(text('etc/bistable-owned')).toBe('/etc/machine-id\n/etc/ssh/ssh_host_*\n')
    expect(text('etc/bistable-mounts')?.split('\n')).toEqual([
      ...['overlay /opt/app keep', 'data /opt/app/logs', 'overlay /opt/fresh reset', 'tmpfs /var/cache 8', ''],
    ])
    expect(text('etc/bistable-watchdog')).toBe('/dev/watchdog 60\n')
    expect(text('init')).toContain('bistable-init:')
  })

  test('is the same bytes every time, compressed as the kernel can read it', async () => {
    const one = await buildInitramfs(tree(base))
    expect(Buffer.compare(await buildInitramfs(tree(base)), one)).toBe(0)
    const zstd = await buildInitramfs(tree({ ...base, 'boot/config-6.1': 'CONFIG_RD_GZIP=y\nCONFIG_RD_ZSTD=y\n' }))
    expect(Buffer.compare(gunzipSync(one), decompress(zstd))).toBe(0)
  })

  test('what an image lacks is named', async () => {
    const fails = async (source: InitramfsSource, name: string, options = {}) =>
      await expect(buildInitramfs(source, options)).rejects.toThrow(code(name))
    await fails(without('sbin/dmsetup'), 'INITRAMFS_TOOL_MISSING')
    await fails(without(`${M}/modules.dep`), 'INITRAMFS_KERNEL')
    await fails(tree({ ...base, 'usr/lib/modules/6.2/modules.dep': '' }), 'INITRAMFS_KERNEL')
    await fails(without(`${M}/modules.builtin`), 'INITRAMFS_MODULE_MISSING')
    await fails(without(`${M}/kernel/md/dm-mod.ko`), 'INITRAMFS_MODULE_MISSING')
    await fails(tree(base), 'INITRAMFS_MODULE_MISSING', { modules: ['no_such'] })
    await fails(tree({ ...base, 'sbin/dmsetup': 'text' }), 'INITRAMFS_ELF')
    await fails(tree({ ...base, 'sbin/dmsetup': readFileSync(process.execPath).subarray(0, 65536) }), 'INITRAMFS_ELF')
    await fails(tree({ ...base, 'sbin/dmsetup': readFileSync('/bin/cat') }), 'INITRAMFS_LIBRARY_MISSING')
    await fails(tree({ ...base, [`${M}/kernel/fs/squashfs.ko.gz`]: 'x' }), 'INITRAMFS_MODULE_DAMAGED')
    const large = tree({ ...base, [`${M}/kernel/md/dm-mod.ko`]: new Uint8Array(65 * 1024 * 1024) })
    await fails(large, 'INITRAMFS_TOO_LARGE')
    for (const path of ['/a b', 'relative', '/a/../b', '/a;b', '/$(x)', '/a\nb'])
      await fails(tree(base), 'INITRAMFS_PATH', { mounts: [{ path, policy: 'data' }] })
  })

  test('a changed setting leaves what is compressed before it as it was', async () => {
    const one = await buildInitramfs(tree(base))
    const two = await buildInitramfs(tree(base), { mounts: [{ path: '/opt/app/logs', policy: 'data' }] })
    // The frame's head says the length of all.
    let same = 16
    while (same < one.length && one[same] === two[same]) same++
    expect(two).not.toEqual(one)
    expect(same).toBeGreaterThan(one.length * 0.9)
  })

  test.skipIf(!have('cpio'))('reads back with cpio', () => {
    const archive = packCpio([
      { path: 'usr/bin/tool', type: 'file', mode: 0o755, bytes: Buffer.from('12345') },
      { path: 'bin', type: 'symlink', target: 'usr/bin' },
      { path: 'dev/console', type: 'char', mode: 0o600, device: [5, 1] },
    ])
    const done = spawnSync('cpio', ['-itv', '--numeric-uid-gid', '--quiet'], { input: archive, encoding: 'utf8' })
    expect(done.stderr).toBe('')
    const lines = done.stdout
      .trim()
      .split('\n')
      .map((line) => line.replace(/\s+/g, ' '))
    expect(lines).toEqual([
      'lrwxrwxrwx 1 0 0 7 Jan 1 1970 bin -> usr/bin',
      'drwxr-xr-x 1 0 0 0 Jan 1 1970 dev',
      'crw------- 1 0 0 5, 1 Jan 1 1970 dev/console',
      'drwxr-xr-x 1 0 0 0 Jan 1 1970 usr',
      'drwxr-xr-x 1 0 0 0 Jan 1 1970 usr/bin',
      '-rwxr-xr-x 1 0 0 5 Jan 1 1970 usr/bin/tool',
    ])
  })
})

describe('ELF', () => {
  test.skipIf(!have('readelf'))('says what readelf says', () => {
    for (const path of ['/bin/cat', '/bin/busybox', process.execPath, '/usr/bin/qemu-system-x86_64']) {
      const said = run('readelf', ['-dlW', path])
      expect(readElf(readFileSync(path), path), path).toEqual({
        interpreter: /interpreter: (\S+)\]/.exec(said)?.[1],
        libraries: [...said.matchAll(/\(NEEDED\).*\[(\S+)\]/g)].map((match) => match[1]),
      })
    }
  })

  test('damaged programs are refused or read, never a crash', () => {
    const program = readFileSync('/bin/cat').subarray(0, 200_000)
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(1000), fc.nat(255)), { maxLength: 8 }),
        fc.nat(200_000),
        (changes, length) => {
          const bytes = Uint8Array.from(program.subarray(0, length))
          for (const [at, byte] of changes) bytes[at] = byte
          try {
            readElf(bytes, 'x')
          } catch (error) {
            expect(error).toEqual(code('INITRAMFS_ELF'))
          }
        },
      ),
      { numRuns: 500 },
    )
  })
})

describe('modules', () => {
  test('dependencies stand before their users, also in a circle', () => {
    const dep = 'a.ko: b.ko c.ko\nb.ko: c.ko\nc.ko: a.ko\n'
    expect(loadOrder({ dep, builtin: '', softdep: '' }, ['a'], [])).toEqual(['c.ko', 'b.ko', 'a.ko'])
  })

  test('a digest that is asked for by what it does comes before the module that asks', () => {
    const dep = 'btrfs.ko: libcrc32c.ko\nlibcrc32c.ko:\ncrc32c_generic.ko:\n'
    const softdep = 'softdep libcrc32c pre: crc32c\nsoftdep btrfs pre: crypto-crc32c\n'
    const order = ['crc32c_generic.ko', 'libcrc32c.ko', 'btrfs.ko']
    expect(loadOrder({ dep, builtin: '', softdep }, ['btrfs'], [])).toEqual(order)
  })

  test('the digest of a kernel from 6.17 on is found under its new name', () => {
    const dep = 'kernel/crypto/sha256.ko.xz: kernel/lib/crypto/libsha256.ko.xz\nkernel/lib/crypto/libsha256.ko.xz:\n'
    const tables = { dep, builtin: '', softdep: '' }
    expect(loadOrder(tables, ['sha256_generic'], [])).toEqual([
      ...['kernel/lib/crypto/libsha256.ko.xz', 'kernel/crypto/sha256.ko.xz'],
    ])
    expect(loadOrder({ ...tables, dep: '', builtin: 'kernel/crypto/sha256.ko\n' }, ['sha256_generic'], [])).toEqual([])
    expect(() => loadOrder({ ...tables, dep: '' }, ['sha256_generic'], [])).toThrow(code('INITRAMFS_MODULE_MISSING'))
  })

  test('a frame without a size, and xz, are refused', () => {
    const path = join(dir, 'x')
    writeFileSync(path, 'module')
    expect(unpackModule('x.ko', Buffer.from('plain'))).toEqual(Buffer.from('plain'))
    for (const name of ['x.ko.xz', 'x.ko.zst'])
      expect(() => unpackModule(name, Buffer.from('x'))).toThrow(code('INITRAMFS_MODULE_DAMAGED'))
  })
})

describe('the script', () => {
  const folder = join(import.meta.dirname, '../../initramfs')
  const init = ['init', 'state.sh'].map((name) => readFileSync(join(folder, name), 'utf8')).join('')

  test('knows where reason.env is', () => {
    expect(init).toContain(`\nREASON_SECTOR=${FILES[REASON].offset / 512}\n`)
  })

  test('parses, and finds every applet that busybox has for it', () => {
    for (const name of ['init', 'state.sh']) run('busybox', ['sh', '-n', join(folder, name)])
    const all = run('busybox', ['--list']).split('\n')
    expect(APPLETS.filter((name) => !all.includes(name))).toEqual([])
    expect(APPLETS.filter((name) => !new RegExp(`\\b${name}\\b`).test(init) && name !== 'ls')).toEqual([])
  })

  test('calls no other program of busybox: not every busybox finds its own by itself', () => {
    const all = run('busybox', ['--list']).split('\n')
    const own = new Set([...init.matchAll(/^([a-z_]+)\(\) \{/gm)].map(([, name]) => name))
    const before = '(?:^|[|&;({!]|\\b(?:then|do|else|if|while)\\b)[ \\t]*(?:[A-Z_]+=\\S*[ \\t]+)*'
    const words = init
      .replace(/^\s*#.*$|\$\(\(.*?\)\)/gm, '')
      .matchAll(new RegExp(`${before}([a-z_0-9]+)(?=[ \\t\\n;)])`, 'gm'))
    const called = [...new Set([...words].map(([, name = '']) => name))].filter((name) => all.includes(name))
    expect(called).toEqual(expect.arrayContaining(['chroot', 'dd', 'mount', 'reboot']))
    const others = called.filter((name) => !own.has(name) && !APPLETS.some((applet) => applet === name))
    expect(others.filter((name) => !run('busybox', ['sh', '-c', `type ${name}`]).includes('builtin'))).toEqual([])
  })

  test('has as long for a look at all of a slot as a slow card takes', () => {
    const script = (starts: number) =>
      `LONG=900 starts=${starts} length=${2 ** 33}\nenter() { echo "$*"; }\ndd() { echo dd; }\n${initFunctions(['check_whole_slot'])}\ncheck_whole_slot`
    expect(run('busybox', ['sh', '-c', script(2)])).toBe('check 2948\ndd\n')
    expect(run('busybox', ['sh', '-c', script(1)])).toBe('')
  })

  test('resets by the kernel, waiting for no disk', () => {
    const script = `sync() { :; }\nsleep() { :; }\nreboot() { echo "reboot $*"; exit; }
${initFunctions(['reset'], { '/proc/sysrq-trigger': '/dev/null' })}\nreset`
    expect(run('busybox', ['sh', '-c', script])).toBe('reboot -n -f\n')
  })
})
