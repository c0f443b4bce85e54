import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Files } from '../../base/durable.ts'
import { KernelMounts } from '../addons/mounts.ts'
import { AddonStarts } from '../addons/starts.ts'
import { AddonStore } from '../addons/store.ts'
import { Unlocking } from '../addons/unlock.ts'
import type { Paths } from '../config.ts'
import type { Ports, Processes } from './ports.ts'

/** What lies over /usr on a real device: add-ons, and a writable layer while a development release is unlocked. */
export function overUsr(
  { root, data }: Pick<Paths, 'root' | 'data'>,
  files: Files,
  processes: Processes,
  systemd: boolean,
): Required<Pick<Ports, 'addons' | 'unlocking'>> {
  const at = (path: string) => (root === '' ? path : join(root, path))
  const there = (path: string) =>
    stat(at(path)).then(
      () => true,
      () => false,
    )
  const sysext = async () => (await there('/usr/bin/systemd-sysext')) || (await there('/bin/systemd-sysext'))
  const around = { processes, systemd, run: at('/run'), usr: at('/usr'), mapper: at('/dev/mapper'), sysext }
  return {
    addons: {
      store: new AddonStore(join(data, 'addons'), files),
      mounts: new KernelMounts(around),
      starts: new AddonStarts(join(data, 'addons/.starts'), files),
    },
    unlocking: new Unlocking({ processes, run: at('/run/bistable'), usr: at('/usr'), uptime: '/proc/uptime' }),
  }
}
