import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Files } from '../../base/durable.ts'
import type { System } from '../../bundle/system.ts'
import type { Paths } from '../config.ts'
import type { Taken } from '../space/biggest.ts'
import type { Space } from '../space/space.ts'
import { slotsOfDevice } from './engine.ts'
import type { EtcOfDevice } from './etc.ts'
import type { GivenPlaces } from './places.ts'
import type { Engine, Processes } from './ports.ts'

/** Puts the merge of /etc between a verified slot and its arming. */

export type EtcWork = Pick<EtcOfDevice, 'prepare' | 'refresh' | 'rollBack' | 'preview' | 'released' | 'lastReport'>

/** Slow flash with much to write. */
const SYNC_MS = 120_000

/** Everything of the merge is imported when asked for: most commands have nothing to merge. */
export function withEtc(
  engine: Engine,
  paths: Paths,
  system: Pick<System, 'owned'>,
  files: Files,
  processes: Processes,
  given: GivenPlaces | undefined,
  space: Space,
): Engine {
  const load = async (): Promise<EtcOfDevice> => {
    const [{ EtcOfDevice }, { attrTools }, { etcErrors }] = await Promise.all([
      import('./etc.ts'),
      import('../etc/xattrs.ts'),
      import('../etc/errors.ts'),
    ])
    const flush = async () => {
      // The data partition only: what others have to write elsewhere is not waited for. An old busybox does all.
      if ((await processes.run(['sync', '-f', paths.etcFolders], SYNC_MS)).exit === 0) return
      const { exit, said } = await processes.run(['sync'], SYNC_MS)
      if (exit !== 0) throw etcErrors.ETC_WRITE_FAILED(`sync ended with ${exit ?? 'a signal'}: ${said}`)
    }
    const { etc: running, etcFolders: folders, etcRules: rules, etcReport: report } = paths
    const inMemory = () =>
      stat(join(paths.run, 'etc')).then(
        () => true,
        () => false,
      )
    const where = { running, folders, rules, report, owned: system.owned }
    const makeRoom = (wanted: Taken) => space.make(wanted)
    const around = { ...where, files, xattrs: attrTools, flush, inMemory, makeRoom }
    return new EtcOfDevice(around, slotsOfDevice(given), paths.data, files)
  }
  const etc: EtcWork = {
    prepare: async (...asked) => (await load()).prepare(...asked),
    refresh: async (...asked) => (await load()).refresh(...asked),
    rollBack: async (...asked) => (await load()).rollBack(...asked),
    preview: async (...asked) => (await load()).preview(...asked),
    released: async (...asked) => (await load()).released(...asked),
    lastReport: async () => (await load()).lastReport(),
  }
  return {
    ...engine,
    etc,
    install: (call) =>
      engine.install({
        ...call,
        beforeArm: async () => {
          await etc.prepare(call.running, call.head.statement, call.signal)
          await call.beforeArm()
        },
      }),
  }
}
