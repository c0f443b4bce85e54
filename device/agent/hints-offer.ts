import { isAddress } from '../../base/address.ts'
import { KiB } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import type { ByteSource } from '../../base/source.ts'
import { PIECE_BYTES } from '../../broker/topics.ts'
import { HINTS_SUFFIX, type HintedRelease, type OpenHints, readHints } from '../../bundle/hints/format.ts'
import { openImpatient } from '../doors/impatient.ts'
import { shown } from '../doors/request.ts'
import { type Core, failureFrom } from './core.ts'
import { arriving } from './heard.ts'
import type { OfferedHints } from './ports.ts'

/** Hints are asked for where they may spare this: a request more has its price, too. */
const WORTH = 32 * KiB
/** A broker sends whole pieces, and some of those in front of the data are needed in any case. */
const WORTH_PIECES = 8 * PIECE_BYTES
/** The bundle's own server gave its first bytes just now; one that has no hints and does not say so is not waited for. */
const PATIENCE_MS = 15_000

/** Where the hints of a bundle are: beside it. Pure. */
export function hintsAddress(bundle: string): string {
  const url = new URL(bundle)
  url.pathname += HINTS_SUFFIX
  return url.href
}

/**
 * The hints beside a bundle, opened when they are asked for. Those that cannot be had are told of and given up: the bundle has
 * everything in any case. The caller closes them.
 * @returns undefined for what is no address: there, reading costs nothing
 */
export function offerHints(
  core: Core,
  from: string,
  signal: AbortSignal,
): (OfferedHints & { close(): Promise<void> }) | undefined {
  if (!isAddress(from) || !URL.canParse(from)) return undefined
  const address = hintsAddress(from)
  const { engine, clock } = core.ports
  const [worth, grain] = /^mqtt/i.test(from) ? [WORTH_PIECES, PIECE_BYTES] : [WORTH, 1]
  let source: ByteSource | undefined
  let found: Promise<OpenHints | undefined> | undefined
  let bytes = 0

  const onRefused = (error: Error): void => {
    const { code, message } = failureFrom(error)
    const instead = 'chunk indexes and inventory are fetched without hints'
    // A publisher need not have them: that is no failure, and must not read as one.
    if (code === 'TRANSPORT_MISSING') core.say(`bistable: no hints at ${shown(new URL(address))}; ${instead}`, 'info')
    else core.say(`bistable: ${code}: ${message}; ${instead}`, 'warning')
  }
  const open = async (release: HintedRelease): Promise<OpenHints | undefined> => {
    try {
      const patient = (stop: AbortSignal) => engine.open(address, stop)
      source = arriving(core, await openImpatient(patient, address, PATIENCE_MS, clock, signal))
      const hints = await readHints(source, release, { signal })
      bytes += hints.length
      return { source, hints, grain }
    } catch (error) {
      if (signal.aborted || !isBistableError(error)) throw error
      onRefused(error)
      return undefined
    }
  }
  return {
    onRefused,
    of: async (release, spares) => {
      if (found === undefined && spares < worth) return undefined
      found ??= open(release)
      return await found
    },
    told: (more) => {
      bytes += more
    },
    get bytes() {
      return bytes
    },
    close: async () => {
      await source?.close()
    },
  }
}
