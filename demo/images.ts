import { chmod, copyFile, mkdir, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { deviceAddon } from '../scripts/device-addon.ts'
import { deviceNode } from '../scripts/device-node.ts'
import { cache, cached, type OtherInit, otherInit, tool } from './debian.ts'
import { TARGETS, type Target } from './targets.ts'

// The demo's operating systems as OCI images, made with ordinary tools: mmdebstrap builds the root, umoci stacks layers.

const here = import.meta.dirname
const root = resolve(here, '..')

export type Flavour = 'fast' | 'debian'

export interface ReleaseSpec {
  readonly tag: string
  readonly version: string
  readonly app: 'app' | 'app-broken'
  /** True: the first process ends at once and the kernel panics. */
  readonly brokenInit?: boolean
  /** True: the second set of packages (Debian only). */
  readonly newPackages?: boolean
}

export interface ImageFactory {
  /** Path of the OCI layout directory. */
  readonly layout: string
  /** Makes one release's image; returns "oci:LAYOUT:TAG". */
  release(spec: ReleaseSpec): Promise<string>
}

export interface FactoryOptions {
  readonly flavour: Flavour | OtherInit
  readonly target: Target
  readonly work: string
  /** Envelope of the product's root statement, the trust anchor in the image. Wanted only when the root is packed already. */
  readonly rootStatement: string | Promise<string>
  readonly say: (line: string) => void
  /** Overrides in system.json's agent part. */
  readonly agent?: Readonly<Record<string, unknown>>
}

const BUSYBOX_LINKS =
  'sh ash ls cat cp mv rm mkdir rmdir ln chmod chown echo printf test [ true false sleep sync mount umount ps kill date uname hostname ip modprobe insmod lsmod dmesg grep sed awk head tail wc sort cut tr seq base64 sha256sum dd df du find xargs stty reboot poweroff halt stat touch id env vi free top od hexdump losetup'

const isOtherInit = (flavour: Flavour | OtherInit): flavour is OtherInit =>
  flavour === 'sysvinit' || flavour === 'openrc'

async function baseImages(
  flavour: Flavour | OtherInit,
  target: Target,
  say: (line: string) => void,
): Promise<{ first: string; second: string }> {
  const kernelHook = join(here, 'kernel-hook.sh')
  const kernelText = await readFile(kernelHook, 'utf8')
  if (flavour === 'fast') {
    const packages = 'busybox-static,dmsetup,libstdc++6,e2fsprogs'
    const name = target.arch === 'x64' ? 'fast-base' : `fast-base-${target.debian}`
    const first = await cached(name, [packages, kernelText], say, async (out) => {
      say(`${name}: mmdebstrap unpacks ${packages} and a kernel`)
      await tool('mmdebstrap', [
        '--quiet',
        '--variant=extract',
        `--include=${packages}`,
        `--architectures=${target.debian}`,
        `--extract-hook=${kernelHook} "$1" slim ${target.debian}`,
        '--format=tar',
        'bookworm',
        out,
      ])
    })
    return { first, second: first }
  }
  if (isOtherInit(flavour)) {
    const base = await otherInit(flavour, say)
    return { first: base, second: base }
  }
  if (target.arch !== 'x64') throw new Error(`the Debian system is built for x86 only, not for ${target.debian}`)
  const packages =
    'systemd,systemd-sysv,udev,dbus,iproute2,kmod,procps,busybox-static,dmsetup,e2fsprogs,libstdc++6,tzdata,ca-certificates,openssl,less,nano,libjq1'
  const hook = join(here, 'files', 'debian', 'hook.sh')
  const key = [packages, kernelText, await readFile(hook, 'utf8')]
  const firstOut = join(cache, 'debian-first.partial.tar')
  const second = await cached('debian-second', key, say, async (out) => {
    say('debian-base: mmdebstrap builds Debian 12 with systemd (a minute or two)')
    const hooks = [`--customize-hook=${kernelHook} "$1"`, `--customize-hook=${hook} "$1" ${firstOut}`]
    await tool('mmdebstrap', [
      '--quiet',
      '--variant=minbase',
      `--include=${packages}`,
      ...hooks,
      '--format=tar',
      'bookworm',
      out,
    ])
  })
  const first = await cached('debian-first', key, say, (out) => rename(firstOut, out))
  return { first, second }
}

/** Two root file systems of Debian 12 as tars; the second is a small change from the first. */
export function debianBase(say: (line: string) => void): Promise<{ first: string; second: string }> {
  return baseImages('debian', TARGETS.x86, say)
}

/** A folder that becomes a layer: files are added by path, then packed with fixed owner and times. */
class Layer {
  readonly #folder: string

  constructor(folder: string) {
    this.#folder = folder
  }

  async write(path: string, content: string | Uint8Array, mode = 0o644): Promise<void> {
    const full = join(this.#folder, path)
    await mkdir(dirname(full), { recursive: true })
    await writeFile(full, content)
    await chmod(full, mode)
  }

  async copy(path: string, from: string, mode = 0o644): Promise<void> {
    const full = join(this.#folder, path)
    await mkdir(dirname(full), { recursive: true })
    await copyFile(from, full)
    await chmod(full, mode)
  }

  async link(path: string, target: string): Promise<void> {
    const full = join(this.#folder, path)
    await mkdir(dirname(full), { recursive: true })
    await symlink(target, full)
  }

  async dir(path: string): Promise<void> {
    await mkdir(join(this.#folder, path), { recursive: true })
  }

  async pack(out: string): Promise<void> {
    const names = await readdir(this.#folder)
    await tool('tar', [
      '-C',
      this.#folder,
      '--sort=name',
      '--owner=0',
      '--group=0',
      '--numeric-owner',
      '--mtime=@1763683200',
      '--mode=u+rwX,go+rX,go-w',
      '-cf',
      out,
      ...names.sort(),
    ])
  }
}

export const POLL_SECONDS: Readonly<Record<Flavour, number>> = { fast: 1, debian: 5 }

function systemJson(flavour: Flavour, target: Target, agent: Readonly<Record<string, unknown>>): string {
  const system = {
    product: 'demo-appliance',
    hardware: [target.hardware],
    kernelArgs: [`console=${target.tty},115200`, 'panic=1', ...target.kernelArgs],
    writable: ['/opt/app/logs'],
    owned: ['/etc/machine-id', '/etc/hostname'],
    health: {
      deadlineSeconds: flavour === 'fast' ? 6 : 120,
      required: ['/usr/lib/bistable/health.d/required/*'],
      wanted: [],
    },
    agent: {
      channel: 'http://10.0.2.100/channels/stable.json',
      pollSeconds: POLL_SECONDS[flavour],
      apply: 'reboot',
      // busybox init gives the agent the console as its output; systemd gives it the journal.
      ...(flavour === 'debian' ? { console: '/dev/console' } : {}),
      ...agent,
    },
  }
  return `${JSON.stringify(system, null, 2)}\n`
}

async function agentLayer(layer: Layer, options: FactoryOptions): Promise<void> {
  const file = (name: string) => join(here, 'files', name)
  await layer.copy('usr/lib/bistable/health.d/required/10-app', file('common/health-app'), 0o755)
  await layer.dir('data')
  await layer.dir('opt/app/logs')
  const { flavour } = options
  if (isOtherInit(flavour)) return
  const dist = join(root, 'dist', 'device')
  for (const name of await readdir(dist)) await layer.copy(`usr/lib/bistable/agent/${name}`, join(dist, name))
  const { arch, tty } = options.target
  await layer.copy('usr/lib/bistable/agent/binding.node', await deviceAddon(arch))
  await layer.copy('usr/lib/bistable/agent/node', await deviceNode(arch), 0o755)
  await layer.copy('usr/bin/bistable', join(root, 'device', 'bin', 'bistable'), 0o755)
  await layer.write('usr/lib/bistable/system.json', systemJson(flavour, options.target, options.agent ?? {}))
  await layer.copy('usr/lib/bistable/root.json', await options.rootStatement)
  if (flavour === 'fast') {
    await layer.link('sbin/init', '/bin/busybox')
    for (const name of BUSYBOX_LINKS.split(' ')) await layer.link(`bin/${name}`, 'busybox')
    await layer.write('etc/inittab', (await readFile(file('fast/inittab'), 'utf8')).replaceAll('ttyS0', tty))
    await layer.copy('etc/init.d/rcS', file('fast/rcS'), 0o755)
    await layer.write('etc/passwd', 'root:x:0:0:root:/root:/bin/sh\n')
    await layer.write('etc/group', 'root:x:0:\n')
    await layer.write('etc/hostname', 'appliance\n')
    await layer.write('etc/machine-id', '')
    for (const name of ['proc', 'sys', 'dev', 'run', 'tmp', 'var', 'root', 'mnt']) await layer.dir(name)
    return
  }
  await layer.copy('etc/systemd/network/10-eth.network', file('debian/10-eth.network'))
  await layer.copy('etc/systemd/system/app.service', file('debian/app.service'))
  await layer.link('etc/systemd/system/multi-user.target.wants/app.service', '/etc/systemd/system/app.service')
  await layer.copy('etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf', file('debian/autologin.conf'))
  for (const name of await readdir(join(root, 'device', 'systemd'))) {
    const place = name.endsWith('.rules') ? 'usr/lib/udev/rules.d' : 'usr/lib/systemd/system'
    await layer.copy(`${place}/${name}`, join(root, 'device', 'systemd', name))
    const target = { 'bistable-agent.service': 'multi-user', 'bistable-addons.service': 'basic' }[name]
    if (target !== undefined)
      await layer.link(`etc/systemd/system/${target}.target.wants/${name}`, `/usr/lib/systemd/system/${name}`)
  }
}

/** Builds what all releases share (root, agent) once; releases are thin layers on top. */
export async function imageFactory(options: FactoryOptions): Promise<ImageFactory> {
  const { flavour, work, say } = options
  const layout = join(work, `${flavour}-oci`)
  const base = await baseImages(flavour, options.target, say)
  await rm(layout, { recursive: true, force: true })
  await tool('umoci', ['init', '--layout', layout])
  const tags = base.second === base.first ? (['first'] as const) : (['first', 'second'] as const)
  for (const tag of tags) {
    say(`umoci: image ${tag}: root layer`)
    await tool('umoci', ['new', '--image', `${layout}:${tag}`])
    await tool('umoci', ['raw', 'add-layer', '--image', `${layout}:${tag}`, base[tag]])
  }
  const agentTar = join(work, 'agent-layer.tar')
  const folder = join(work, 'agent-layer')
  await rm(folder, { recursive: true, force: true })
  await agentLayer(new Layer(folder), options)
  await new Layer(folder).pack(agentTar)
  for (const tag of tags) {
    say(`umoci: image ${tag}: agent layer`)
    await tool('umoci', ['raw', 'add-layer', '--image', `${layout}:${tag}`, agentTar])
  }
  return {
    layout,
    release: async (spec) => {
      const from = spec.newPackages === true && base.second !== base.first ? 'second' : 'first'
      const app = join(work, `app-${spec.tag}`)
      await rm(app, { recursive: true, force: true })
      const layer = new Layer(app)
      await layer.copy('opt/app/app', join(here, 'files', 'common', spec.app), 0o755)
      await layer.write('opt/app/version', `${spec.version}\n`)
      await layer.write('opt/app/legacy.conf', 'kept only by the first release\n')
      if (spec.brokenInit === true)
        // Not below /sbin, which is a link in Debian: a folder in this layer would take its place.
        await layer.copy('opt/app/init.broken', join(here, 'files', 'common', 'broken-init'), 0o755)
      await layer.pack(`${app}.tar`)
      const image = `${layout}:${spec.tag}`
      await tool('umoci', ['raw', 'add-layer', '--image', `${layout}:${from}`, '--tag', spec.tag, `${app}.tar`])
      // Later releases drop a file of the layer below, and one of the root: whiteouts.
      if (spec.tag !== 'r1') await tool('umoci', ['insert', '--image', image, '--whiteout', '/opt/app/legacy.conf'])
      if (spec.brokenInit === true)
        await tool('umoci', [
          'insert',
          '--image',
          image,
          join(app, 'opt', 'app', 'init.broken'),
          flavour === 'fast' ? '/sbin/init' : '/usr/lib/systemd/systemd',
        ])
      await tool('umoci', [
        'config',
        '--image',
        image,
        '--architecture',
        options.target.debian,
        '--os',
        'linux',
        '--created',
        '2025-11-21T00:00:00Z',
      ])
      return `oci:${layout}:${spec.tag}`
    },
  }
}
