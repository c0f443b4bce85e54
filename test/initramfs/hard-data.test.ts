import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { initFunctions, STATE_FUNCTIONS } from '../helpers/init-functions.ts'
import { have, run } from '../helpers/run.ts'

/** A data partition that is full, damaged, or holds what cannot be removed: the committed system comes up all the same. */

const dir = mkdtempSync(join(tmpdir(), 'bistable-hard-data-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const FUNCTIONS = [
  ...[
    'give_room',
    'prepare_etc',
    'make_etc',
    'clear_away',
    'in_memory',
    'carry_owned',
    'make_like',
    'prepare_var_mounts',
  ],
  ...['prepare_var', 'renew_var', 'find_new_var', 'list_var', 'seed_var', 'mount_declared', 'mount_place'],
  ...['stage_data', 'bind_data', 'mount_overlay', 'clean_seeding'],
]

interface Device {
  readonly base: string
  readonly at: (path: string) => string
  /** The functions, and `start SLOT RELEASE BOOT`: what the initramfs makes of /etc, /var and the places of an image. */
  readonly script: string
}

function device(name: string, { transient = false, places = '' } = {}): Device {
  const base = join(dir, name)
  const at = (path: string) => join(base, path)
  for (const release of ['a', 'b'])
    for (const [path, text] of Object.entries({
      'etc/motd': release,
      'etc/passwd': 'root:x:0:0::/:/bin/sh',
      'etc/machine-id': `of image ${release}`,
      'var/lib/app/seed': release,
      [`var/lib/${release}`]: release,
      'opt/app/x': release,
    })) {
      mkdirSync(dirname(at(`image-${release}/${path}`)), { recursive: true })
      writeFileSync(at(`image-${release}/${path}`), `${text}\n`)
    }
  for (const folder of ['image-a/data', 'image-b/data', 'data', 'root', 'image', 'run/bistable', 'tmp'])
    mkdirSync(at(folder), { recursive: true })
  writeFileSync(at('owned'), '/etc/machine-id\n')
  writeFileSync(at('mounts'), places)
  if (transient) writeFileSync(at('transient'), '1\n')
  const functions = initFunctions(FUNCTIONS, {
    // First: what stands for the others is below /tmp, too.
    '/tmp/': `${at('tmp')}/`,
    '/etc/bistable-owned': at('owned'),
    '/etc/bistable-etc-transient': at('transient'),
    '/etc/bistable-mounts': at('mounts'),
    '"/image': `"${at('image')}`,
    '=/image': `=${at('image')}`,
    ' /image': ` ${at('image')}`,
  })
  const script = `
DATA='${at('data')}' ROOT='${at('root')}' RUN='${at('run')}' LONG=900 roothash=${'f'.repeat(64)}
STATE=$DATA SEEDING=$DATA/bistable/seeding VAR_LIST=$DATA/bistable/var-seeded
enter() { :; }
say() { echo "$*"; }
fail() { echo "fail: $1"; exit 9; }
TMP='${at('tmp')}'
. ${STATE_FUNCTIONS}
${functions}
start() {
  slot=$1 release=$2 boot=$3 other=a
  [ "$slot" = b ] || other=b
  echo "start $slot $boot"
  mount -o bind '${base}'/image-$slot $ROOT
  mkdir -p $SEEDING
  give_room
  prepare_etc
  prepare_var
  mount_declared
  clean_seeding
}
stop() {
  for path in opt/app var etc .; do umount $ROOT/$path 2>/dev/null; done
}
`
  return { base, at, script }
}

/** In a mount name space of its own, with a data partition of this size. */
function play({ script }: Device, kib: number, text: string): { readonly code: number | null; readonly said: string } {
  const own = process.getuid?.() === 0 ? ['-m'] : ['-rm']
  const all = `${script}\nmount -t tmpfs -o size=${kib}k,nr_inodes=200 tmpfs $DATA || exit 77\n${text}`
  const ran = spawnSync('unshare', [...own, 'busybox', 'sh', '-c', all], { encoding: 'utf8', timeout: 60_000 })
  return { code: ran.status, said: ran.stdout + (ran.status === 0 ? '' : ran.stderr) }
}

const ready = have('unshare', 'busybox') && spawnSync('unshare', ['-rm', 'true']).status === 0
/** No block and no inode is left. */
const FILL =
  'dd if=/dev/zero of=$DATA/log bs=1k 2>/dev/null; mkdir $DATA/logs; n=0; while touch $DATA/logs/$n 2>/dev/null; do n=$((n + 1)); done'
const ROOM = 'rm -r $DATA/log $DATA/logs'

describe.skipIf(!ready)('a data partition without any room', () => {
  test('the old release comes up when one that fell back has filled it; a trial ends instead', () => {
    const full = `start a 0.1 committed; stop; start b 0.2 try; stop; ${FILL}`
    const back = play(
      device('fall-back'),
      256,
      `${full}\nstart a 0.1 fallback\ncat $ROOT/etc/motd $ROOT/var/lib/a $ROOT/var/lib/b`,
    )
    expect(back).toEqual({
      code: 0,
      said: 'start a committed\nstart b try\nstart a fallback\nnote /var cannot be seeded: no space?\na\na\nb\n',
    })
    // Room was made: the next start does what this one could not.
    const after = `${full}\nstart a 0.1 fallback; stop; ${ROOM}; start a 0.1 committed\ncat $VAR_LIST.release; ls $SEEDING; grep -c /lib/ $VAR_LIST`
    expect(play(device('after'), 256, after).said).toMatch(/start a committed\n0\.1 f{64}\n4\n$/)
    const trial = `start a 0.1 committed; stop; ${FILL}\nstart b 0.2 try`
    const ended = play(device('trial'), 256, trial)
    expect([ended.code, ended.said]).toEqual([9, expect.stringContaining('\nfail: /etc cannot be made: no space?\n')])
  })

  test('a trial gets the room that was kept for it, where there is none besides; no other start does', () => {
    const log = 'dd if=/dev/zero of=$DATA/log bs=1k 2>/dev/null'
    const room = 'mkdir -p $DATA/bistable; dd if=/dev/urandom of=$DATA/bistable/room bs=1k count=100 2>/dev/null'
    const there = '[ ! -e $DATA/bistable/room ] || echo kept'
    const begin = `start a 0.1 committed; stop; ${room}`
    const full = `${begin}; ${log}\nstart a 0.1 committed; stop; ${there}\nstart b 0.2 try; ${there}; cat $ROOT/etc/motd $ROOT/var/lib/b`
    expect(play(device('room'), 256, full)).toEqual({
      code: 0,
      said: 'start a committed\nstart a committed\nkept\nstart b try\nb\nb\n',
    })
    // With 16 MiB besides.
    const ample = `${begin}\nstart b 0.2 try; ${there}`
    expect(play(device('ample'), 17 * 1024, ample).said).toBe('start a committed\nstart b try\nkept\n')
    expect(play(device('scarce'), 16 * 1024, ample).said).toBe('start a committed\nstart b try\n')
  })

  test('an /etc that is made anew at every boot is made in memory, with what the device owns', () => {
    const text = `start a 0.1 committed; echo of the device >$ROOT/etc/machine-id; echo x >$ROOT/etc/motd; stop; ${FILL}
start a 0.1 committed
cat $ROOT/etc/machine-id $ROOT/etc/motd
stop; ${ROOM}; start a 0.1 committed
cat $ROOT/etc/machine-id; [ ! -e $DATA/etc/a.new ] && [ ! -e $DATA/etc/a.old ] && echo clean`
    expect(play(device('transient', { transient: true }), 64, text)).toEqual({
      code: 0,
      said: `start a committed
start a committed
note /etc cannot be made: no space?
note /etc is in memory until the next start
of the device
a
start a committed
of the device
clean
`,
    })
  })

  test('an /etc that has lost its mark, and nothing else, is kept', () => {
    const text = `start a 0.1 committed; echo mine >$ROOT/etc/motd; stop
for how in 'rm' ': >' 'echo 0.7 x >'; do
  eval "$how $DATA/etc/a/.bistable-release"; start a 0.1 committed; cat $ROOT/etc/motd $DATA/etc/a/.bistable-release; stop
done`
    const mark = `0.1 ${'f'.repeat(64)}`
    const kept = `start a committed\nnote /etc of slot a had lost the mark of its release; it is kept\nmine\n${mark}\n`
    // That of another release is another one's.
    expect(play(device('mark'), 256, text)).toEqual({
      code: 0,
      said: `start a committed\n${kept}${kept}start a committed\na\n${mark}\n`,
    })
  })

  test('a copy of the state for the way back that finds no room is an error, and not the end of the shell', () => {
    const text = `WAY=$DATA/way; mkdir $WAY; ${FILL}; rm $DATA/logs/0\nkeep_copies 2>/dev/null; echo "code $?"`
    expect(play(device('keep'), 64, text)).toEqual({ code: 0, said: 'code 1\n' })
  })

  test('a declared place that cannot be made stays as the image has it, and a lost /var is made in memory', () => {
    const places = device('places', { places: 'data /opt/app\n' })
    const text = `start a 0.1 committed; stop; rm -rf $DATA/bind $DATA/var; ${FILL}
start a 0.1 committed
cat $ROOT/opt/app/x $ROOT/var/lib/a; grep -c . $RUN/bistable/notes`
    const { code, said } = play(places, 256, text)
    expect([code, said]).toEqual([
      0,
      expect.stringMatching(
        /note the device has no \/var\nnote \/var is in memory until the next start\nnote the data places .*\nnote \/opt\/app cannot be mounted as data: .*\na\na\n4\n$/,
      ),
    ])
  })
})

describe.skipIf(!have('busybox', 'chattr'))('an /etc with files that cannot be removed', () => {
  test('is replaced again and again', (context) => {
    const { base, at, script } = device('immutable', { transient: true })
    const loosen = () => spawnSync('chattr', ['-R', '-i', base])
    try {
      for (let n = 0; n < 4; n++) {
        const text = `mount() { :; }\n${script.replaceAll('mount -o bind', ':')}\nROOT='${at('image-a')}'\nstart a 0.1 committed`
        const ran = spawnSync('busybox', ['sh', '-c', text], { encoding: 'utf8' })
        expect([n, ran.stdout]).toEqual([n, 'start a committed\n'])
        expect(readFileSync(at('data/etc/a/motd'), 'utf8')).toBe('a\n')
        expect(existsSync(at('data/etc/a/a.new'))).toBe(false)
        writeFileSync(at('data/etc/a/resolv.conf'), `${n}`)
        if (spawnSync('chattr', ['+i', at('data/etc/a/resolv.conf')]).status !== 0)
          return context.skip('no immutable files here')
      }
    } finally {
      loosen()
    }
  })
})

/** Each program that changes something, counted; the power goes at the `cutAt`th. */
const cuttable = (cutAt: number) =>
  `n=0\n${['cp', 'mv', 'mkdir', 'rm', 'sync'].map((name) => `${name}() { n=$((n + 1)); [ $n != ${cutAt} ] || kill -9 $$; busybox ${name} "$@"; }`).join('\n')}\n`

describe.skipIf(!have('busybox'))('an /etc that is made anew at every boot', () => {
  test('has the owned paths of this slot, whatever moment the power went', () => {
    let cuts = 0
    for (let cutAt = 1, cut = true; cut; cutAt++) {
      const { at, script } = device(`anew-${cutAt}`, { transient: true })
      const start = (before: string) =>
        spawnSync('busybox', [
          ...['sh', '-c'],
          `mount() { :; }\numount() { :; }\n${before}${script.replaceAll('mount -o bind', ':')}\nROOT='${at('image-a')}'\nstart a 0.1 committed`,
        ])
      // The other slot was left long ago.
      mkdirSync(at('data/etc/b'), { recursive: true })
      writeFileSync(at('data/etc/b/machine-id'), 'of long ago\n')
      expect(start('').status).toBe(0)
      writeFileSync(at('data/etc/a/machine-id'), 'of this device\n')
      cut = start(cuttable(cutAt)).signal === 'SIGKILL'
      if (cut) cuts++
      expect([cutAt, start('').status]).toEqual([cutAt, 0])
      const files = ['machine-id', 'motd'].map((name) => readFileSync(at(`data/etc/a/${name}`), 'utf8'))
      expect([cutAt, ...files]).toEqual([cutAt, 'of this device\n', 'a\n'])
      expect(existsSync(at('data/etc/a.new')) || existsSync(at('data/etc/a.old'))).toBe(false)
    }
    expect(cuts).toBeGreaterThan(10)
  })
})

const loops =
  have('busybox', 'e2fsck', 'mke2fs', 'debugfs', 'losetup') &&
  process.getuid?.() === 0 &&
  existsSync('/dev/loop-control') &&
  readFileSync('/proc/filesystems', 'utf8').includes('\text4\n')

/** `mount_data` on a real ext4: a loop device for the partition. */
function ext4(name: string) {
  const image = join(dir, `${name}.img`)
  const data = join(dir, name)
  const at = (path: string) => join(dir, `${name}-tmp`, path)
  for (const folder of [data, at('run/bistable')]) mkdirSync(folder, { recursive: true })
  const functions = initFunctions(
    ['mount_data', 'data_in_memory', 'has_errors', 'mount_writable', 'repair_from_copy', 'holds', 'is_number'],
    { '/tmp/': `${at('')}/`, '/sbin/e2fsck': '/usr/bin/env', '/run/bistable/': at('run/bistable/') },
  )
  const start = (e2fsck: string, { boot = 'committed', readOnly = false } = {}) => {
    const loop = run('losetup', ['-f', '--show', ...(readOnly ? ['-r'] : []), image]).trim()
    try {
      const script = `DATA='${data}' data_partition=${loop} boot=${boot} LONG=900 RUN='${at('run')}'
. ${STATE_FUNCTIONS}
say() { echo "$*"; }
fail() { echo "fail: $1"; exit 9; }
patience() { echo "patience $1"; }
e2fsck() { ${e2fsck}; }
${functions}
mount_data
echo $filesystem; umount $DATA`
      const { stdout, stderr } = spawnSync('unshare', ['-m', 'busybox', 'sh', '-c', script], {
        encoding: 'utf8',
        timeout: 60_000,
      })
      return (stdout + stderr).replaceAll(loop, 'PARTITION')
    } finally {
      run('losetup', ['-d', loop])
    }
  }
  return { image, data, at, start }
}

describe.skipIf(!loops)('an ext4 in which the kernel met errors', () => {
  test('is checked before it is used, and serves all the same when e2fsck leaves some for a person', () => {
    const { image, at, start } = ext4('ext4')
    run('mke2fs', ['-q', '-t', 'ext4', image, '16m'])
    const wrong = () => {
      for (const field of ['error_count 3', 'state 3']) run('debugfs', ['-w', '-R', `ssv ${field}`, image])
    }
    const checked = 'note the kernel has met errors in the data partition; it is checked\npatience 901\next4\n'
    expect(start('true')).toBe('ext4\n')
    wrong()
    expect(start('/usr/sbin/e2fsck "$@"')).toBe(checked)
    // What it mended is not checked again.
    expect(start('exit 70')).toBe('ext4\n')
    wrong()
    expect(start('return 4')).toBe(checked)
    expect(existsSync(at('error'))).toBe(true)
    // Of a large one the check takes longer than the watchdog's patience with any stage.
    truncateSync(image, 2 ** 40)
    wrong()
    expect(start('return 4')).toContain(`patience ${900 + 2 ** 40 / 2 ** 24}\n`)
  })
})

describe.skipIf(!loops)('an ext4 that mounts and cannot be written', () => {
  test('is one that does not mount: the committed system comes up without it, a trial ends', () => {
    const { image, data, at, start } = ext4('worn-out')
    run('mke2fs', ['-q', '-t', 'ext4', image, '32m'])
    const check = '/usr/sbin/e2fsck "$@"'
    expect(start(check)).toBe('ext4\n')
    const without = start(check, { readOnly: true })
    expect(without).toMatch(/^patience 902\n.*note data=tmpfs: .*\ntmpfs\n$/s)
    expect([existsSync(at('run/bistable/data')), existsSync(join(data, 'bistable'))]).toEqual([true, false])
    expect(start(check, { readOnly: true, boot: 'try' })).toMatch(/\nfail: the data partition does not mount: /)
    // The place of the probe is damaged.
    run('debugfs', ['-w', '-R', 'clri bistable/seeding/probe', image])
    expect(start('return 4')).toMatch(/note data=tmpfs: .*\ntmpfs\n$/s)
  })

  test('for want of room alone serves as it is', () => {
    const { image, data, start } = ext4('no-inode')
    run('mke2fs', ['-q', '-t', 'ext4', '-N', '16', image, '1m'])
    expect(start('exit 70')).toBe('ext4\n')
    const fill = `mount -o loop ${image} ${data} && cd ${data} && rm bistable/seeding/probe && while touch $((n += 1)); do :; done; cd / && umount ${data}`
    expect(spawnSync('unshare', ['-m', 'sh', '-c', fill], { encoding: 'utf8' }).stderr).toContain('No space left')
    expect(start('exit 70')).toBe('ext4\n')
  })
})

describe.skipIf(!have('busybox'))('a btrfs without the subvolume of the state', () => {
  test('is one that does not mount, when it takes no new one', () => {
    const data = join(dir, 'subvolume')
    mkdirSync(join(data, 'run/bistable'), { recursive: true })
    const script = (boot: string) => `
DATA='${data}' RUN='${data}/run' ETC='${data}/etc' boot=${boot} filesystem=btrfs
. ${STATE_FUNCTIONS}
for name in mount umount btrfs; do eval "$name() { echo $name; [ $name != btrfs ]; }"; done
say() { echo "$*"; }
fail() { echo "fail: $1"; exit 9; }
${initFunctions(['require_state', 'data_in_memory'], { '/run/bistable/': `${data}/run/bistable/` })}
require_state && echo "$filesystem $STATE"`
    const start = (boot: string) => spawnSync('busybox', ['sh', '-c', script(boot)], { encoding: 'utf8' }).stdout
    const why = 'the state on the data partition cannot be found'
    expect(start('committed')).toBe(`btrfs\numount\nnote data=tmpfs: ${why}\nmount\ntmpfs ${data}\n`)
    expect(start('try')).toBe(`btrfs\nfail: ${why}\n`)
  })
})
