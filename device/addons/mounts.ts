import { lstat, mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { AddonStatement } from '../../bundle/addon.ts'
import { BLOCK } from '../../bundle/tree.ts'
import type { Processes } from '../agent/ports.ts'
import { runTool, TOOL_MS } from './tool.ts'

/**
 * Puts add-ons over /usr: a loop device, dm-verity with the signed root, SquashFS; then systemd-sysext, or an overlay of our
 * own where there is none. All of it is in memory: a reboot starts afresh, and nothing is mounted that was not verified.
 */

export interface AddonMounts {
  /** Names that are over /usr now. */
  active(): Promise<readonly string[]>
  /**
   * Makes exactly these be over /usr, the first one topmost.
   * @param image where an add-on's image with its tree is
   * @returns what failed, by name; the others are in place
   */
  merge(addons: readonly AddonStatement[], image: (name: string) => string): Promise<ReadonlyMap<string, Error>>
}

export interface MountSurroundings {
  readonly processes: Processes
  readonly systemd: boolean
  /** "/run": mount points are below `bistable/addons`, links for systemd-sysext in `extensions`. */
  readonly run: string
  /** "/usr" */
  readonly usr: string
  /** "/dev/mapper" */
  readonly mapper: string
  /** Whether systemd-sysext is here. */
  readonly sysext: () => Promise<boolean>
}

export class KernelMounts implements AddonMounts {
  readonly #around: MountSurroundings
  readonly #folder: string
  readonly #state: string
  readonly #extensions: string

  constructor(around: MountSurroundings) {
    this.#around = around
    this.#folder = join(around.run, 'bistable/addons')
    // Beside the mount points: which loop device is whose, and what our own overlay has.
    this.#state = join(around.run, 'bistable/addons-state')
    this.#extensions = join(around.run, 'extensions')
  }

  async active(): Promise<readonly string[]> {
    return (await this.#covered()).split('\n').filter(Boolean).sort()
  }

  /** Names that are mounted, over /usr or not. */
  async #opened(): Promise<readonly string[]> {
    const names = await readdir(this.#state).catch((): string[] => [])
    return names
      .filter((name) => name.endsWith('.loop'))
      .map((name) => name.slice(0, -'.loop'.length))
      .sort()
  }

  async merge(addons: readonly AddonStatement[], image: (name: string) => string): Promise<ReadonlyMap<string, Error>> {
    const failed = new Map<string, Error>()
    const before = await this.#opened()
    const wanted = addons.map(({ name }) => name)
    const covered = await this.#covered()
    // Nothing to do: whoever uses /usr is not disturbed.
    if (before.join() === [...wanted].sort().join() && covered === wanted.join('\n')) return failed
    await Promise.all([this.#folder, this.#state].map((path) => mkdir(path, { recursive: true })))
    for (const addon of addons) {
      if (before.includes(addon.name)) continue
      try {
        await this.#open(addon, image(addon.name))
      } catch (error) {
        failed.set(addon.name, error instanceof Error ? error : new Error(String(error)))
      }
    }
    const open = wanted.filter((name) => !failed.has(name))
    const gone = before.filter((name) => !open.includes(name))
    if (covered !== open.join('\n')) {
      // Until it has gone well, nobody says that anything is over /usr.
      await rm(join(this.#state, 'covered'), { force: true })
      await this.#cover(open, covered)
      await writeFile(join(this.#state, 'covered'), open.join('\n'))
    }
    for (const name of gone) await this.#close(name)
    return failed
  }

  async #open({ name, image }: AddonStatement, path: string): Promise<void> {
    const { processes, mapper, systemd } = this.#around
    // Built in, or loaded already: no failure. Missing: what follows says so.
    await processes.run(['modprobe', '-a', 'loop', 'overlay', 'squashfs'], TOOL_MS)
    const device = mapperName(name)
    // Left by a process that was ended in the middle of this: its name would be taken until the next start.
    if (await isThere(join(mapper, device))) await this.#close(name)
    const loop = (await this.#tool('losetup', '-f')).trim()
    await this.#tool('losetup', '-r', loop, path)
    try {
      const blocks = image.length / BLOCK
      const table = `0 ${image.length / 512} verity 1 ${loop} ${loop} ${BLOCK} ${BLOCK} ${blocks} ${blocks} sha256 ${image.root} -`
      const env = systemd ? {} : { DM_DISABLE_UDEV: '1' }
      await this.#tool('dmsetup', 'create', device, '--readonly', '--table', table, env)
      try {
        await mkdir(join(this.#folder, name), { recursive: true })
        await this.#tool('mount', '-t', 'squashfs', '-o', 'ro,nodev', join(mapper, device), join(this.#folder, name))
        await writeFile(join(this.#state, `${name}.loop`), loop)
      } catch (error) {
        await processes.run(['dmsetup', 'remove', device], TOOL_MS)
        throw error
      }
    } catch (error) {
      await processes.run(['losetup', '-d', loop], TOOL_MS)
      throw error
    }
  }

  /** In the order of opening, backwards. Whatever is still used goes when its last user does. */
  async #close(name: string): Promise<void> {
    const { processes } = this.#around
    const file = join(this.#state, `${name}.loop`)
    const loop = (await readFile(file, 'utf8').catch(() => '')).trim()
    await processes.run(['umount', '-l', join(this.#folder, name)], TOOL_MS)
    await processes.run(['dmsetup', 'remove', '--deferred', mapperName(name)], TOOL_MS)
    if (loop !== '') await processes.run(['losetup', '-d', loop], TOOL_MS)
    await rm(file, { force: true })
    await rm(join(this.#folder, name), { recursive: false, force: true }).catch(() => undefined)
  }

  /** The names that were put over /usr last, the first one topmost. */
  async #covered(): Promise<string> {
    return await readFile(join(this.#state, 'covered'), 'utf8').catch(() => '')
  }

  /** @param before what is over /usr now. @throws ADDON_MOUNT */
  async #cover(names: readonly string[], before: string): Promise<void> {
    if (this.#around.systemd && (await this.#around.sysext())) {
      await mkdir(this.#extensions, { recursive: true })
      for (const name of await this.#opened())
        if (!names.includes(name)) await rm(join(this.#extensions, name), { force: true })
      for (const name of names) {
        await rm(join(this.#extensions, name), { force: true })
        await symlink(join(this.#folder, name), join(this.#extensions, name))
      }
      await this.#tool('systemd-sysext', 'refresh')
      return
    }
    const { processes, usr } = this.#around
    if (before !== '') {
      try {
        await this.#tool('umount', '-l', usr)
      } catch (error) {
        // It is still there: no second one shall come over it.
        await writeFile(join(this.#state, 'covered'), before)
        throw error
      }
    }
    if (names.length === 0) return
    await processes.run(['modprobe', 'overlay'], TOOL_MS)
    const lower = [...names.map((name) => join(this.#folder, name, 'usr')), usr].join(':')
    await this.#tool('mount', '-t', 'overlay', 'bistable-addons', '-o', `ro,lowerdir=${lower}`, usr)
  }

  async #tool(program: string, ...rest: (string | Readonly<Record<string, string>>)[]): Promise<string> {
    const args = rest.filter((arg) => typeof arg === 'string')
    const env = rest.find((arg) => typeof arg === 'object')
    return await runTool(this.#around.processes, [program, ...args], `${program} ${args[0] ?? ''}`, env)
  }
}

const isThere = (path: string): Promise<boolean> =>
  lstat(path).then(
    () => true,
    () => false,
  )

const mapperName = (name: string) => `bistable-addon-${name}`
