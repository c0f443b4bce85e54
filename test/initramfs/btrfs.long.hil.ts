import { afterAll, beforeAll, expect, test } from 'vitest'
import { type InitramfsVm, makeVm } from '../helpers/initramfs-vm.ts'
import { have } from '../helpers/run.ts'

/** A btrfs data partition on a real kernel: seeded, migrated, undone by its snapshot. Three boots. */

const ready = have(
  'qemu-system-x86_64',
  'mksquashfs',
  'veritysetup',
  'sgdisk',
  'mkfs.btrfs',
  'btrfs',
  'dmsetup',
  'depmod',
)

let vm: InitramfsVm
beforeAll(async () => {
  if (!ready) return
  const state = {
    schema: 1,
    readableBy: 1,
    seconds: 20,
    migrations: [{ to: 1, run: '/opt/migrate' }],
    kept: ['var/lib'],
  }
  const mounts = [
    { path: '/opt/app', policy: 'overlay' },
    { path: '/opt/logs', policy: 'data' },
  ] as const
  vm = await makeVm({ btrfs: true, state, mounts }, 160)
})
afterAll(() => vm?.remove())

const init = (commands: string) => `#!/bin/sh
b=/bin/busybox
for word in $($b cat /proc/mounts | $b grep ' /data ' | $b cut -d ' ' -f 3); do echo "said: data $word"; done
echo "said: state $($b cat /run/bistable/state)"
echo "said: db $($b cat /var/lib/db) app $($b cat /opt/app/conf) logs $($b ls /opt/logs)"
for path in /data/snapshots/*; do echo "said: $path"; done
${commands}
$b sync
$b poweroff -f
`
const FILES = {
  'var/lib/db': 'seed',
  'opt/app/conf': 'shipped',
  'opt/logs/first': '',
  'opt/migrate': '#!/bin/sh\necho migrated >/var/lib/db\n',
}
const said = (console: string) => [...console.matchAll(/^said: (.*?)\r?$/gm)].map(([, line]) => line)

test.skipIf(!ready)('a snapshot is made before a trial, and undoes its migration', async () => {
  // As if the first release knew no schema: the second has something to migrate.
  const old = 'echo rows >/var/lib/db; echo mine >/opt/app/conf; echo "0 0" >/data/state/schema'
  const a = vm.fill('a', { 'sbin/init': init(`[ -e /opt/logs/x ] || { ${old}; }; echo >/opt/logs/x`), ...FILES })
  const b = vm.fill('b', { 'sbin/init': init('echo new >/opt/app/conf'), ...FILES })
  const none = '/data/snapshots/*'
  const first = await vm.boot('a', a, {})
  expect(said(first), first).toEqual(['data btrfs', 'state btrfs 1 1 1', 'db seed app shipped logs first', none])
  const trial = await vm.boot('b', b, { release: '0.2', boot: 'try', left: '2' })
  const snapshot = '/data/snapshots/000001-0.1-0.2'
  expect(said(trial), trial).toEqual([
    ...['data btrfs', 'state btrfs 1 1 1'],
    expect.stringMatching(/^db migrated app mine logs first/),
    snapshot,
  ])
  const back = await vm.boot('a', a, { boot: 'fallback' })
  // All state is one: what the trial wrote beside its program is put aside with the rest.
  expect(said(back), back).toEqual([
    ...['data btrfs', 'state btrfs 0 0 1'],
    expect.stringMatching(/^db rows app mine logs first/),
    ...[snapshot, '/data/snapshots/000002-0.2-left'],
  ])
})
