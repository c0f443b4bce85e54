import { cliErrors } from '../../base/cli.ts'
import { addDeviceRule, isPolicy } from '../etc/choices.ts'
import type { EtcReport } from '../etc/prepare.ts'
import type { Core } from './core.ts'
import { heard, mover } from './heard.ts'

/** `bistable etc`: preview, report, resolve. */

export interface EtcAnswer {
  readonly report?: EtcReport
  readonly message?: string
}

/** @throws USAGE, and as `planEtc` */
export async function operateEtc(
  core: Core,
  args: Readonly<Record<string, unknown>>,
  signal: AbortSignal,
): Promise<EtcAnswer> {
  const { engine, files, etcRules } = core.ports
  const [what, first, second] = ['what', 'first', 'second'].map((name) => {
    const value = args[name]
    return typeof value === 'string' ? value : undefined
  })
  if (engine.etc === undefined) throw cliErrors.USAGE('this device keeps no /etc for each slot')
  if (what === 'report') {
    const report = (await engine.etc.lastReport()) as EtcReport | undefined
    return report === undefined ? { message: 'nothing was merged yet' } : { report }
  }
  if (what === 'preview' && first !== undefined) {
    const source = heard(await engine.open(first, signal), mover(core))
    try {
      const head = await engine.head(source, core.trusted, signal)
      return { report: await engine.etc.preview(core.line.slot, source, head, signal) }
    } finally {
      await source.close()
    }
  }
  if (what === 'resolve' && first !== undefined && isPolicy(second) && etcRules !== undefined) {
    await addDeviceRule(etcRules, { path: first, policy: second }, files)
    return { message: `${first}: ${second} from the next merge on; the rule stands in ${etcRules}` }
  }
  throw cliErrors.USAGE(`'etc ${[what, first, second].filter(Boolean).join(' ')}' is not understood`)
}
