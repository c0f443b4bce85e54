import { createHash } from 'node:crypto'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { encodeFloor } from '../../bootloader/floor.ts'
import { readAt, writeAt } from '../helpers/disk.ts'
import { type InitramfsVm, makeVm, type Slot } from '../helpers/initramfs-vm.ts'
import { have } from '../helpers/run.ts'

/** The real initramfs on a real kernel: tiny slots, one boot each, about four seconds without KVM. */

const ready = have('qemu-system-x86_64', 'mksquashfs', 'veritysetup', 'sgdisk', 'mke2fs', 'dmsetup', 'depmod')

/** An init that runs `commands`, prints what was asked for between two lines and powers off. */
const init = (commands: string): string => `#!/bin/sh
for applet in cat dd find ls mount poweroff readlink rm sha256sum sync touch; do alias $applet="/bin/busybox $applet"; done
for word in $(cat /proc/cmdline); do
  case $word in
    bistable.testfloor=*) word=\${word#*=}; printf '%s\\n%s\\n' "\${word%_*}" "\${word#*_}" >/data/bistable/floor ;;
  esac
done
echo "system: up"
${commands}
echo "system: end"
sync
poweroff -f
`

/** An application that logs beside its program and rewrites its own configuration, as ones from before read-only roots do. */
const LEGACY = `b=/bin/busybox
cd /opt/legacy
. ./app.conf
runs=$((runs + 1))
echo "runs=$runs" >app.conf.new && $b mv app.conf.new app.conf
[ -d logs ] || $b mkdir logs
echo "program $1 run $runs" >>logs/app.log
$b rm -f shipped
`
/** What it did so far, and what else stands at declared places. */
const PLACES = `/bin/busybox sh /opt/legacy/bin/app $(cat /opt/legacy/version)
{ cat /opt/legacy/logs/app.log; ls -1 /opt/legacy; cat /var/lib/pkg/db /var/cache/index; ls -1 /opt/fresh; /bin/busybox find /var/lib/sub -name migrated; } |
  while read -r line; do echo "place: $line"; done
touch /opt/fresh/$(cat /opt/legacy/version) /var/cache/x
touch /opt/legacy/bin/x 2>/dev/null && echo "bin is writable"
touch /var/lib/pkg/x 2>/dev/null && echo "pkg is writable"`
const MIGRATE = {
  'opt/migrate': '#!/bin/sh\n[ -c /dev/null ] && [ -e /proc/1 ] && echo "schema $BISTABLE_TO" >/var/lib/sub/migrated\n',
}
const places = (version: string) => ({
  ...MIGRATE,
  'opt/legacy/bin/app': LEGACY,
  'opt/legacy/app.conf': 'runs=0\n',
  'opt/legacy/version': version,
  'opt/legacy/shipped': '',
  'opt/fresh/of-the-image': '',
  'var/cache/index': `index ${version}\n`,
  'var/lib/pkg/db': `packages ${version}\n`,
})
const placeLines = (lines: readonly string[]) =>
  lines.filter((line) => line.startsWith('place: ')).map((line) => line.slice(7).trim())

let vm: InitramfsVm
let a: Slot
let b: Slot
/** The data partition's, before it was first mounted. */
let superblock: Uint8Array

beforeAll(async () => {
  if (!ready) return
  vm = await makeVm({
    owned: ['/etc/machine-id', '/etc/ssh/ssh_host_*'],
    mounts: [
      { path: '/opt/app/logs', policy: 'data' },
      { path: '/opt/fresh', policy: 'overlay', release: 'reset' },
      { path: '/opt/legacy', policy: 'overlay' },
      { path: '/opt/legacy/bin', policy: 'image' },
      { path: '/var/cache', policy: 'tmpfs', sizeMiB: 1 },
      { path: '/var/lib/pkg', policy: 'image' },
    ],
    state: {
      schema: 1,
      readableBy: 1,
      seconds: 20,
      migrations: [{ to: 1, run: '/opt/migrate' }],
      kept: ['var/lib/sub'],
    },
  })
  superblock = readAt(vm.disk.path, vm.disk.offsets.data + 1024, 1024)
})
afterAll(() => vm?.remove())

/** Lines between "system: up" and "system: end". */
function output(console: string): string[] {
  const lines = console.split(/\r?\n/).map((line) => line.trim())
  const start = lines.findIndex((line) => line.endsWith('system: up'))
  const end = lines.indexOf('system: end')
  expect(start, console).toBeGreaterThan(-1)
  expect(end, console).toBeGreaterThan(start)
  return lines.slice(start + 1, end).filter((line) => !/^\[ *\d+\.\d+\]/.test(line))
}

function flip(slot: 'a' | 'b', offset: number): void {
  const at = vm.disk.offsets[`rootfs-${slot}`] + offset
  const [byte = 0] = readAt(vm.disk.path, at, 1)
  writeAt(vm.disk.path, at, Uint8Array.of(byte ^ 1))
}

test.skipIf(!ready)('the first boot seeds /etc, /var and writable paths, and mounts the rest read-only', async () => {
  a = vm.fill('a', {
    'sbin/init': init(`
cat /etc/app.conf /etc/.bistable-release /var/lib/seed /var/lib/sub/deep /opt/app/logs/first
touch /bin/x 2>/dev/null && echo "the root is writable"
touch /tmp/x /run/x /var/x /opt/app/logs/x && echo "the rest is"
echo of-the-device >/etc/machine-id
/bin/busybox mkdir /etc/ssh; echo key >/etc/ssh/ssh_host_key
echo changed >/var/lib/sub/deep
# As if an older release had been here.
echo "0 0" >/data/bistable/schema
rm /var/lib/seed
echo log >/opt/app/logs/first
mount | /bin/busybox grep -E ' on (/|/data|/etc) '
${PLACES}`),
    ...places('1'),
    'etc/app.conf': 'release 1\n',
    'etc/machine-id': 'uninitialized\n',
    'var/lib/seed': 'seed\n',
    'var/lib/sub/deep': 'deep\n',
    'opt/app/logs/first': 'first\n',
  })
  const console = await vm.boot('a', a, {})
  const lines = output(console)
  expect(lines.slice(0, 6)).toEqual(['release 1', `0.1 ${a.root}`, 'seed', 'deep', 'first', 'the rest is'])
  expect(lines.slice(6, 9)).toEqual([
    expect.stringMatching(/^\/dev\/mapper\/bistable-root on \/ type squashfs \(ro,/),
    expect.stringMatching(/^\/dev\/vda7 on \/data type ext4 \(rw,nosuid,nodev,noatime/),
    expect.stringMatching(/^\/dev\/vda7 on \/etc type ext4 \(rw,nosuid,nodev,noatime/),
  ])
  expect(placeLines(lines)).toEqual([
    ...['program 1 run 1', 'app.conf', 'bin', 'logs', 'version', 'packages 1', 'index 1', 'of-the-image'],
  ])
  expect(lines.slice(9).filter((line) => !line.startsWith('place: '))).toEqual([])
  expect(console).toMatch(/bistable-init: stage switch slot=a boot=committed uptime=/)
})

test.skipIf(!ready)(
  'a release on trial gets its own /etc with device-owned paths, and new paths of /var only; what an application wrote beside its program follows it there and back, what a migration did does not',
  async () => {
    b = vm.fill('b', {
      'sbin/init': init(`
cat /etc/app.conf /etc/machine-id /etc/ssh/ssh_host_key
ls -1 /etc/ssh; ls -1 /var/lib; ls -1 /var/lib/sub
cat /var/lib/sub/deep /var/lib/sub/new /opt/app/logs/first
${PLACES}`),
      ...places('2'),
      'etc/app.conf': 'release 2\n',
      'etc/machine-id': 'uninitialized\n',
      'var/lib/seed': 'a new seed\n',
      'var/lib/sub/deep': 'new deep\n',
      'var/lib/sub/new': 'new\n',
      'opt/app/logs/first': 'new first\n',
    })
    const lines = output(await vm.boot('b', b, { release: '0.2', boot: 'try', left: '2' }))
    expect(lines.filter((line) => !line.startsWith('place: '))).toEqual([
      ...['release 2', 'of-the-device', 'key'],
      ...['ssh_host_key', 'pkg', 'sub', 'deep', 'migrated', 'new'],
      ...['changed', 'new', 'log'],
    ])
    // The program and the packages are those of release 2; the configuration, the log and what was deleted are the device's.
    const kept = ['app.conf', 'bin', 'logs', 'version']
    const runs = ['program 1 run 1', 'program 2 run 2', 'program 1 run 3']
    expect(placeLines(lines)).toEqual([
      ...[...runs.slice(0, 2), ...kept, 'packages 2', 'index 2', 'of-the-image', '/var/lib/sub/migrated'],
    ])
    const back = output(await vm.boot('a', a, {}))
    expect(back[0]).toBe('release 1')
    // What release 1 wrote in the place that begins anew is there again; what release 2 wrote is not.
    expect(placeLines(back)).toEqual([...runs, ...kept, 'packages 1', 'index 1', '1', 'of-the-image'])
  },
)

test.skipIf(!ready)('C8 a slot under the security floor does not start; a torn floor stops trials only', async () => {
  // The system itself writes the file: the data partition has a journal.
  const put = async (bytes: Uint8Array): Promise<void> => {
    const testfloor = Buffer.from(bytes).toString('latin1').trimEnd().replace('\n', '_')
    output(await vm.boot('a', a, { testfloor }))
  }
  await put(encodeFloor({ epoch: 0, counter: 10 }))
  expect(await vm.boot('a', a, {})).toContain('under the security floor')
  const refused = await vm.boot('b', b, { release: '0.9', boot: 'try' })
  expect(refused).toContain(
    'bistable-init: fail stage=data slot=b boot=try reason=release 0.9 is under the security floor 0.10',
  )
  expect(refused).not.toContain('system: up')
  expect(vm.reason()).toEqual({
    starts: { a: 1, b: 1, up: 'a' },
    failure: { slot: 'b', stage: 'data', text: 'release 0.9 is under the security floor 0.10' },
  })
  // At the floor it starts; the system tears the floor.
  output(await vm.boot('b', b, { release: '0.10', boot: 'try', testfloor: '0.1_not-its-checksum' }))

  expect(await vm.boot('b', b, { release: '0.2', boot: 'try' })).toContain('reason=the floor is not readable')
  await put(encodeFloor({ epoch: 0, counter: 1 }))
})

test.skipIf(!ready)('C4 a flipped bit stops the slot, and its reason is found', async () => {
  // In the first block: the file system does not even mount.
  flip('b', 100)
  vm.setStarts({ a: 0, b: 1, up: 'a' })
  const early = await vm.boot('b', b, { boot: 'try', release: '0.2' })
  expect(early).toMatch(/fail stage=verity slot=b boot=try reason=rootfs-b does not open with its root hash/)
  flip('b', 100)

  // Somewhere in the middle: dm-verity resets the device as soon as anything reads it, without a word to anybody.
  const noise = Buffer.concat(
    Array.from({ length: 4096 }, (_, n) => createHash('sha512').update(`noise ${n}`).digest()),
  )
  const image = vm.fill('b', {
    'sbin/init': init('cat /noise >/dev/null; echo "still here"'),
    noise,
    'opt/app/logs/first': '',
    ...places('3'),
  })
  const start = Buffer.from(readAt(vm.disk.path, vm.disk.offsets['rootfs-b'], image.length)).indexOf(
    noise.subarray(0, 64),
  )
  const bad = Math.ceil(start / 4096) + 20
  flip('b', bad * 4096 + 7)
  vm.setStarts({ a: 0, b: 1, up: 'a' })
  const silent = await vm.boot('b', image, { boot: 'try', release: '0.2' })
  expect(silent).toContain('system: up')
  expect(silent).not.toContain('still here')
  expect(silent).toContain(`data block ${bad} is corrupted`)
  expect(vm.reason().failure).toBeUndefined()

  // The next start finds that the last one was never answered, and looks at every block.
  vm.setStarts({ a: 0, b: 2, up: 'a' })
  const told = await vm.boot('b', image, { boot: 'try', release: '0.2' })
  expect(told).toMatch(/fail stage=check slot=b boot=try reason=rootfs-b is damaged/)
  expect(told).not.toContain('system: up')
  expect(vm.reason()).toMatchObject({
    starts: { a: 0, b: 3, up: 'a' },
    failure: { slot: 'b', stage: 'check', text: expect.stringContaining(`data block ${bad} is corrupted`) },
  })
})

test.skipIf(!ready)('a superblock of the data partition, torn between its sectors, comes from its copy', async () => {
  writeAt(vm.disk.path, vm.disk.offsets.data + 1024 + 512, superblock.subarray(512))
  const console = await vm.boot('a', a, { boot: 'try' })
  expect(console).toContain('bistable-init: note superblock of the data partition from its copy at block 4096')
  expect(output(console)).toContain('changed')
})

test.skipIf(!ready)('a broken data partition stops a trial; the committed slot comes up without it', async () => {
  // Its superblock, what follows, and the copy of both.
  for (const at of [0, 4096 * 4096]) writeAt(vm.disk.path, vm.disk.offsets.data + at, new Uint8Array(64 * 1024))
  const trial = await vm.boot('b', b, { boot: 'try', release: '0.2' })
  expect(trial).toMatch(/fail stage=(?:data|verity)/)
  const a2 = vm.fill('a', { 'sbin/init': init('cat /run/bistable/data /etc/app.conf'), 'etc/app.conf': 'release 1\n' })
  const lines = output(await vm.boot('a', a2, { boot: 'fallback', why: 'tries-spent' }))
  expect(lines).toEqual(['tmpfs', 'release 1'])
})
