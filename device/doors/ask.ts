import type { BrokerFailure } from '../../broker/failure.ts'
import { type Ask, encodeMessage } from '../../broker/messages.ts'
import { deviceTopic } from '../../broker/topics.ts'
import { brokerError, type Lease } from './brokers.ts'
import { doorErrors } from './errors.ts'

/** What the retained files and the bundles of a broker share: asking, and what it means when nobody answers. */

export function askMessage({ root, device }: Lease, ask: Ask) {
  return { topic: deviceTopic(root, device, 'ask'), payload: encodeMessage(ask) }
}

/** What waiting does not mend. */
export function throwIfFinal(failure: BrokerFailure | undefined): void {
  if (failure !== undefined && !failure.passing) throw brokerError(failure)
}

export function unanswered({ link, file }: Lease): Error {
  if (link.failure !== undefined) return brokerError(link.failure)
  // Whoever asks next should not wait for a connection that may be dead.
  if (link.silentMs > 10_000) link.renew()
  return doorErrors.TRANSPORT_STALLED(
    link.connected ? `nobody on ${link.name} answers for ${file}` : `${link.name} does not answer`,
    link.connected ? { next: "Start 'bistable serve' with this broker." } : {},
  )
}
