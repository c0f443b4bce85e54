import type { MergedTree, TreeEntry } from './tree.ts'

/** Which program starts an image's services, and whether it starts the agent. */

export type Init = 'systemd' | 'openrc' | 'sysvinit' | 'busybox'

export const INITTAB = 'etc/inittab'
const INITTAB_MAX_BYTES = 64 * 1024
export const RUNLEVELS = 'etc/runlevels'
/** What ours is called, in whatever way an init calls things. */
const AGENT_NAME = 'bistable-agent'

const isFile = (entry: TreeEntry | undefined) => entry?.node.type === 'file'
const isFolder = (entry: TreeEntry | undefined) => entry?.node.type === 'dir'

/**
 * The init of an image; undefined when it is none of those that are known here. Pure. OpenRC is run by sysvinit (Debian),
 * busybox (Alpine) or its own first program, so it is known by its runlevels.
 */
export function initOf(tree: MergedTree): Init | undefined {
  const first = tree.resolve('sbin/init')
  if (first === undefined || !isFile(first)) return undefined
  const name = first.path.slice(first.path.lastIndexOf('/') + 1)
  if (name === 'systemd') return 'systemd'
  const openrc = ['sbin/openrc-run', 'usr/sbin/openrc-run'].some((path) => isFile(tree.resolve(path)))
  if (openrc && isFolder(tree.resolve(RUNLEVELS))) return 'openrc'
  if (name === 'busybox') return 'busybox'
  return name === 'init' && isFile(tree.resolve(INITTAB)) ? 'sysvinit' : undefined
}

/** Services that mount what the system has of local file systems: OpenRC's own, and Debian's of sysvinit. */
const MOUNTING = ['localmount', 'mountall.sh', 'mountall']

/**
 * The runlevel of OpenRC that mounts local file systems: all of it has started before any service of a later one does. Elsewhere
 * it is `boot`; Debian never starts that by itself, but together with `default`, in whatever order dependencies allow, and
 * mounts in `sysinit`. Pure.
 */
export const mountingRunlevel = (tree: MergedTree): string =>
  ['sysinit', 'boot'].find((level) =>
    MOUNTING.some((name) => tree.get(`${RUNLEVELS}/${level}/${name}`) !== undefined),
  ) ?? 'boot'

/** Whether this init starts the agent, as far as its own files say. */
export async function startsAgent(tree: MergedTree, init: Init): Promise<boolean> {
  if (init === 'systemd')
    return SYSTEMD_FOLDERS.flatMap((folder) => tree.children(folder)).some(
      ({ path }) => /\.(?:wants|requires)$/.test(path) && tree.get(`${path}/${AGENT_NAME}.service`) !== undefined,
    )
  if (init === 'openrc')
    return tree.children(RUNLEVELS).some(({ path }) => tree.children(path).some((service) => isOurs(service.path)))
  const scripts = init === 'busybox' ? [INITTAB, 'etc/init.d/rcS'] : [INITTAB]
  for (const path of scripts) if (namesAgent((await textOf(tree, path)) ?? '')) return true
  return false
}

const SYSTEMD_FOLDERS = ['etc/systemd/system', 'usr/lib/systemd/system', 'lib/systemd/system']

const isOurs = (path: string) => /\/bistable(?:-agent)?$/.test(path)

/** Whether a line that is no comment starts the agent. Pure. */
const namesAgent = (text: string) => /^[^#\n]*(?:bistable agent\b|\/start-agent\b)/m.test(text)

/** A file of the image as text, byte for character; undefined when there is none, or when it is too large for a table. */
export async function textOf(tree: MergedTree, path: string): Promise<string | undefined> {
  const entry = tree.resolve(path)
  if (entry?.node.type !== 'file' || entry.node.size > INITTAB_MAX_BYTES) return undefined
  return Buffer.from(await tree.readSmall(entry.node, INITTAB_MAX_BYTES)).toString('latin1')
}

/** The lines that start add-ons, then the agent. Fields of busybox: terminal, nothing, when, what. */
const INITTAB_LINES: Readonly<Record<'sysvinit' | 'busybox', string>> = {
  sysvinit: 'bsad::bootwait:/usr/lib/bistable/start-addons\nbsag:2345:respawn:/usr/lib/bistable/start-agent\n',
  busybox: '::wait:/usr/lib/bistable/start-addons\n::respawn:/usr/lib/bistable/start-agent\n',
}

/** An inittab that starts the agent too. Pure. */
export function withAgent(inittab: string, init: 'sysvinit' | 'busybox'): string {
  const ended = inittab === '' || inittab.endsWith('\n') ? inittab : `${inittab}\n`
  return ended + INITTAB_LINES[init]
}
