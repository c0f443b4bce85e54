import { expect, test } from 'vitest'
import { debianFiles } from '../helpers/debian-files.ts'
import { makeVm } from '../helpers/initramfs-vm.ts'
import { have } from '../helpers/run.ts'

/** A system of sysvinit and OpenRC on the real initramfs: everything is in place before the first of its programs runs. */

const ready = have(
  'qemu-system-x86_64',
  'mksquashfs',
  'veritysetup',
  'sgdisk',
  'mke2fs',
  'dmsetup',
  'depmod',
  'apt-get',
)

const APPLETS =
  'awk cat chmod chown cut dirname echo env find grep head kill ln ls mkdir mktemp mount mountpoint mv ps readlink rm sed sleep sort stat tail test touch tr true uname wc'
const INITTAB = `id:3:initdefault:
si::sysinit:/sbin/openrc sysinit
rc::bootwait:/sbin/openrc boot
l3:3:wait:/sbin/openrc default
te:3:once:/opt/app/report
`
/** As docs/addons.md and docs/operations.md have it for OpenRC: something early, a service, and a check of it. */
const EARLY = `#!/sbin/openrc-run
depend() { before app; }
start() { echo "early $(cat /etc/marker)" >/dev/console; cp /etc/marker /run/early; }
`
const APP = `#!/sbin/openrc-run
supervisor=supervise-daemon
command=/opt/app/app
pidfile=/run/app.pid
`
const REPORT = `#!/bin/sh
exec >/dev/console 2>&1
echo "report: begin"
rc-service app status >/dev/null && echo "report: app is healthy"
rc-service app stop >/dev/null && { rc-service app status >/dev/null || echo "report: app is stopped"; }
for file in /run/early /etc/marker /var/lib/app/seed /opt/app/logs/log; do while read -r line; do echo "report: $file $line"; done <$file; done
touch /usr/x 2>/dev/null || echo "report: read-only"
echo by the device >/etc/marker
echo "report: end"
sync
poweroff -f
`

/** Lines that the system printed with "report:", which end as they should. */
function reported(console: string): string[] {
  const lines = console.split(/\r?\n/).flatMap((line) => /report: (.*)/.exec(line)?.[1] ?? [])
  expect(lines.at(-1), console).toBe('end')
  return lines
}

test.skipIf(!ready)('sysvinit with OpenRC: its own /etc, /var and places, services and a check of them', async () => {
  const applets = APPLETS.split(' ').map((name) => [`bin/${name}`, `#!/bin/sh\nexec /bin/busybox ${name} "$@"\n`])
  const vm = await makeVm({ mounts: [{ path: '/opt/app/logs', policy: 'data' }] }, 32)
  try {
    const slot = vm.fill('a', {
      ...Object.fromEntries(applets),
      ...debianFiles(['sysvinit-core', 'openrc', 'librc1', 'libeinfo1']),
      'etc/inittab': INITTAB,
      'etc/fstab': '',
      'etc/marker': 'of the image\n',
      'etc/rc.conf': 'rc_sys=""\nrc_logger="NO"\n',
      'etc/init.d/early': EARLY,
      'etc/init.d/app': APP,
      'etc/runlevels/boot/early': EARLY,
      'etc/runlevels/default/app': APP,
      'opt/app/app': '#!/bin/sh\necho started >>/opt/app/logs/log\nexec sleep 600\n',
      'opt/app/report': REPORT,
      'opt/app/logs/log': 'of the image\n',
      'var/lib/app/seed': 'seeded\n',
    })
    const report = async () => reported(await vm.boot('a', slot, {}))
    const always = ['begin', 'app is healthy', 'app is stopped']
    const first = ['/run/early of the image', '/etc/marker of the image', '/var/lib/app/seed seeded']
    const log = ['of the image', 'started'].map((line) => `/opt/app/logs/log ${line}`)
    expect(await report()).toEqual([...always, ...first, ...log, 'read-only', 'end'])
    const then = ['/run/early by the device', '/etc/marker by the device', '/var/lib/app/seed seeded']
    expect(await report()).toEqual([...always, ...then, ...log, '/opt/app/logs/log started', 'read-only', 'end'])
  } finally {
    vm.remove()
  }
})

const TRANSIENT = `#!/bin/sh
exec >/dev/console 2>&1
echo "report: begin"
for file in /etc/issue /etc/machine-id; do read -r line <$file; echo "report: $file $line"; done
echo changed >/etc/issue
echo of the device >/etc/machine-id
echo "report: end"
/bin/busybox sync
/bin/busybox poweroff -f
`

test.skipIf(!ready)('a transient /etc is made anew at every boot, but for what the device owns', async () => {
  const vm = await makeVm({ transientEtc: true, owned: ['/etc/machine-id'] }, 32)
  try {
    const slot = vm.fill('a', { 'sbin/init': TRANSIENT, 'etc/issue': 'of the image\n', 'etc/machine-id': 'none\n' })
    const id = async () => reported(await vm.boot('a', slot, {}))
    expect(await id()).toEqual(['begin', '/etc/issue of the image', '/etc/machine-id none', 'end'])
    expect(await id()).toEqual(['begin', '/etc/issue of the image', '/etc/machine-id of the device', 'end'])
  } finally {
    vm.remove()
  }
})

const MARKED = `#!/bin/sh
exec >/dev/console 2>&1
echo "report: begin"
while read -r line; do echo "report: $line"; done </etc/marker
echo "changed by the device" >/etc/marker
echo "report: end"
/bin/busybox sync
/bin/busybox poweroff -f
`

test.skipIf(!ready)(
  'no room for an /etc, or a place that the image has not: a trial ends with that reason, and the old system is as it was',
  async () => {
    const vm = await makeVm({ mounts: [{ path: '/opt/none', policy: 'data' }] }, 16)
    try {
      const files = { 'sbin/init': MARKED, 'etc/marker': 'of the image\n' }
      const old = vm.fill('a', files)
      const runs = async (line: string) => {
        const console = await vm.boot('a', old, {})
        expect(reported(console)).toEqual(['begin', line, 'end'])
        // The old release has no such place either; it comes up all the same, and says so.
        expect(console).toContain('note declared path /opt/none is not in the image')
      }
      const ends = async (slot: ReturnType<typeof vm.fill>, text: string) => {
        const console = await vm.boot('b', slot, { boot: 'try', release: '0.2' })
        expect(console).not.toContain('report: begin')
        expect(vm.reason().failure).toEqual({
          slot: 'b',
          stage: expect.any(String),
          text: expect.stringContaining(text),
        })
      }
      await runs('of the image')
      await ends(vm.fill('b', { ...files, 'etc/large': new Uint8Array(24 << 20) }), '/etc cannot be made: no space?')
      await runs('changed by the device')
      await ends(vm.fill('b', files), 'declared path /opt/none is not in the image')
      await runs('changed by the device')
    } finally {
      vm.remove()
    }
  },
)
