import type { OtherInit } from '../demo/debian.ts'
import type { Flavour, ReleaseSpec } from '../demo/images.ts'
import { type BootloaderName, TARGETS, type Target } from '../demo/targets.ts'

// What each test kit is made of: a system, its releases, add-ons and disks.

export interface KitRelease {
  readonly name: string
  readonly counter: number
  readonly spec: ReleaseSpec
  /** More of system.json. */
  readonly system?: object
}

export interface KitAddon {
  /** Arguments of `bistable addon build`. */
  readonly kind: readonly string[]
  /** Debian packages that it brings; without, one program of its name. */
  readonly packages?: readonly string[]
}

export interface KitPlan {
  readonly target: Target
  readonly flavour: Flavour | OtherInit
  /** system.json of every release. */
  readonly system: Readonly<Record<string, unknown>> & { readonly product: string }
  readonly releases: readonly KitRelease[]
  /** By a release's tag: path to content of what is put over its image, executable. */
  readonly files: Readonly<Record<string, Readonly<Record<string, string>>>>
  /** By name; each is for release `base`. */
  readonly addons: Readonly<Record<string, KitAddon>>
  /** Bundles of another product, for another board, and signed after a rotation of keys. */
  readonly strangers: boolean
  readonly sizes: { readonly rootfs: string; readonly boot: string; readonly data: string }
  readonly disks: readonly BootloaderName[]
}

const required = ['/usr/lib/bistable/health.d/required/*']

const system = ({ hardware, tty, kernelArgs }: Target) => ({
  product: 'hil-appliance',
  hardware: [hardware],
  // An emulated processor speculates about nothing, and jumps that guard against it are what it is slowest at: an install takes
  // 16.8 s of its time for 19.8 with them.
  kernelArgs: [`console=${tty},115200`, 'panic=1', 'mitigations=off', ...kernelArgs],
  writable: ['/opt/app/logs'],
  owned: ['/etc/machine-id', '/etc/hostname'],
  health: { deadlineSeconds: 25, required, wanted: [] },
  agent: { apply: 'manual' },
})

const good = { tag: 'good', version: '1.0', app: 'app' } as const
/** A fix that an add-on brings, and the release after it. */
const FIX = 'HIL-1'

const TOOLS: KitAddon = { kind: ['--debug'] }
/** What people look at a problem with, and the libraries of theirs that the image lacks. */
const DEBUG: KitAddon = { kind: ['--debug'], packages: ['strace', 'libunwind8', 'tcpdump', 'libpcap0.8'] }

/** What never becomes healthy is waited for no longer than this; the others may be slow on a busy machine. */
const NEVER_HEALTHY = { health: { deadlineSeconds: 5, required, wanted: [] } }

const BUSYBOX_RELEASES: readonly KitRelease[] = [
  { name: 'old', counter: 1, spec: good },
  { name: 'base', counter: 2, spec: good },
  { name: 'next', counter: 3, spec: { tag: 'next', version: '3.0', app: 'app' } },
  {
    ...{ name: 'unhealthy', counter: 4, spec: { tag: 'unhealthy', version: '4.0', app: 'app-broken' } },
    system: NEVER_HEALTHY,
  },
  { name: 'panics', counter: 5, spec: { tag: 'panics', version: '5.0', app: 'app', brokenInit: true } },
  { ...{ name: 'hangs', counter: 6, spec: { tag: 'hangs', version: '6.0', app: 'app' } }, system: NEVER_HEALTHY },
  {
    ...{ name: 'workbench', counter: 7, spec: { tag: 'workbench', version: '7.0', app: 'app' } },
    system: { development: true, fixes: [FIX] },
  },
]

/** The release for people who develop: every kind of check that a system without systemd can pass. */
const WORKBENCH_FILES = {
  '/usr/lib/bistable/health.json': JSON.stringify({
    ...{ soakSeconds: 6, everySeconds: 2, holdSeconds: 900 },
    checks: [
      { name: 'listens', level: 'required', kind: 'tcp', host: '127.0.0.1', port: 8080, seconds: 5 },
      { name: 'answers', level: 'required', kind: 'http', url: 'http://127.0.0.1:8080/version', contains: '7.0' },
      { name: 'beeps', level: 'wanted', kind: 'program', path: '/opt/app/beep', seconds: 5 },
      { name: 'broker', level: 'wanted', kind: 'broker', url: 'mqtt://127.0.0.1:1', seconds: 5 },
    ],
  }),
  '/opt/app/beep': '#!/bin/sh\necho there is no speaker\nexit 1\n',
  // Serves its own folder, then does what the other releases' application does.
  '/opt/app/app':
    '#!/bin/sh\n/bin/busybox httpd -p 127.0.0.1:8080 -h /opt/app\necho 7.0 >/run/app.version\nexec sleep 36000\n',
}

const busybox = (target: Target, boot: string): KitPlan => ({
  ...{ target, flavour: 'fast', system: system(target), releases: BUSYBOX_RELEASES, strangers: true },
  files: {
    hangs: { '/usr/lib/bistable/health.d/required/10-app': '#!/bin/sh\nexec sleep 3600\n' },
    workbench: WORKBENCH_FILES,
  },
  addons: { tools: TOOLS, mend: { kind: ['--fixes', FIX] } },
  sizes: { rootfs: '128M', boot, data: '48M' },
  disks: Object.keys(target.disk) as BootloaderName[],
})

const lines = (first: string, last: string) =>
  [`greeting = ${first}`, ...Array.from({ length: 20 }, (_, n) => `option${n} = ${n}`), `colour = ${last}`, ''].join(
    '\n',
  )
/** Brings the diary of the application to another form: once, and not twice. */
const migration = (to: number, from: string) =>
  `#!/bin/sh\nset -e\ncd /var/lib/app\nmv ${from} diary-${to}\necho "schema $BISTABLE_FROM to $BISTABLE_TO" >>migrated\n`
const MIGRATE_1 = { to: 1, run: '/usr/lib/app/migrate-1' }
const MIGRATE_2 = { to: 2, run: '/usr/lib/app/migrate-2' }
const HEALTH_BY_UNITS = JSON.stringify({
  ...{ soakSeconds: 4, everySeconds: 2 },
  checks: [
    { name: 'app runs', level: 'required', kind: 'unit', unit: 'app.service', seconds: 10 },
    { name: 'all units', level: 'wanted', kind: 'no-failed-units' },
  ],
})
const DEBIAN_FILES = { '/usr/lib/bistable/health.json': HEALTH_BY_UNITS, '/opt/app/app.conf': 'level = 1\n' }

/** Debian with systemd: what outlives a slot. */
const debian = (target: Target): KitPlan => ({
  ...{ target, flavour: 'debian', strangers: false, addons: { tools: TOOLS, debug: DEBUG } },
  system: {
    ...system(target),
    mounts: [{ path: '/opt/app', policy: 'overlay' }],
    owned: ['machine-id', 'hostname', 'passwd', 'shadow', 'group', 'gshadow'].map((name) => `/etc/${name}`),
    health: { deadlineSeconds: 240, required, wanted: [] },
    // systemd gives the agent the journal as its output.
    agent: { apply: 'manual', console: '/dev/console' },
  },
  releases: [
    { name: 'base', counter: 2, spec: good },
    {
      ...{ name: 'next', counter: 3, spec: { tag: 'next', version: '3.0', app: 'app', newPackages: true } },
      system: { state: { schema: 1, readableBy: 0, migrations: [MIGRATE_1], paths: ['/var/lib/app'] } },
    },
    {
      ...{ name: 'broken', counter: 4, spec: { tag: 'broken', version: '4.0', app: 'app-broken' } },
      system: {
        state: { schema: 2, migrations: [MIGRATE_1, MIGRATE_2], paths: ['/var/lib/app'] },
        health: { deadlineSeconds: 90, required: [], wanted: [] },
      },
    },
  ],
  files: {
    good: { ...DEBIAN_FILES, '/etc/app/app.conf': lines('hello', 'red') },
    next: {
      ...DEBIAN_FILES,
      '/etc/app/app.conf': lines('hello', 'blue'),
      '/etc/issue': 'of release 3\n',
      '/usr/lib/sysusers.d/app.conf': 'u appliance 950 "The application" /var/lib/app\n',
      '/usr/lib/app/migrate-1': migration(1, 'starts'),
    },
    broken: {
      ...DEBIAN_FILES,
      '/etc/app/app.conf': lines('hello', 'red'),
      '/usr/lib/app/migrate-1': migration(1, 'starts'),
      '/usr/lib/app/migrate-2': migration(2, 'diary-1'),
    },
  },
  sizes: { rootfs: '320M', boot: '64M', data: '128M' },
  disks: ['grub-bios'],
})

/** Says what it found of an add-on when it started. */
const APP_WITH_TOOLS = `#!/bin/sh
tools >/run/app.tools 2>/dev/null
cat /opt/app/version >/run/app.version
echo started >>/opt/app/logs/app.log
exec sleep 36000
`
const SERVICE_RUNS = '#!/bin/sh\n/etc/init.d/app status || { echo the service app is not running; exit 1; }\n'
const OTHER_INIT_FILES = {
  '/opt/app/app': APP_WITH_TOOLS,
  '/usr/lib/bistable/health.d/required/20-service': SERVICE_RUNS,
  '/usr/lib/bistable/health.json': JSON.stringify({
    ...{ soakSeconds: 4, everySeconds: 2 },
    checks: [{ name: 'runlevel', level: 'wanted', kind: 'program', path: '/sbin/runlevel', seconds: 10 }],
  }),
}

/** Debian with sysvinit or OpenRC. */
const otherInit = (target: Target, init: OtherInit): KitPlan => ({
  ...{ target, flavour: init, strangers: false, addons: { tools: TOOLS } },
  system: {
    ...system(target),
    owned: ['machine-id', 'hostname', 'passwd', 'shadow', 'group', 'gshadow'].map((name) => `/etc/${name}`),
    health: { deadlineSeconds: 90, required, wanted: [] },
  },
  releases: [
    { name: 'base', counter: 2, spec: good },
    { name: 'next', counter: 3, spec: { tag: 'next', version: '3.0', app: 'app' } },
    {
      ...{ name: 'unhealthy', counter: 4, spec: { tag: 'unhealthy', version: '4.0', app: 'app-broken' } },
      system: { health: { deadlineSeconds: 20, required, wanted: [] } },
    },
  ],
  files: { good: OTHER_INIT_FILES, next: OTHER_INIT_FILES },
  sizes: { rootfs: '192M', boot: '48M', data: '96M' },
  disks: ['grub-bios'],
})

export const KIT_PLANS = {
  x86: busybox(TARGETS.x86, '32M'),
  // The kernel of arm64 is not compressed.
  arm64: busybox(TARGETS.arm64, '64M'),
  debian: debian(TARGETS.x86),
  sysvinit: otherInit(TARGETS.x86, 'sysvinit'),
  openrc: otherInit(TARGETS.x86, 'openrc'),
} as const satisfies Readonly<Record<string, KitPlan>>
