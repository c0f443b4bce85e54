import { randomBytes } from 'node:crypto'
import { KiB, MiB } from '../../base/bytes.ts'
import type { BrokerTls } from '../../broker/connection.ts'
import type { BrokerFailure } from '../../broker/failure.ts'
import { type Backoff, BrokerLink } from '../../broker/link.ts'
import { encodeMessage } from '../../broker/messages.ts'
import { deviceTopic, isDeviceName, type MqttPlace, placeOf } from '../../broker/topics.ts'
import { type DoorClock, systemClock } from './clock.ts'
import { doorErrors } from './errors.ts'

/** The device's ties to brokers: one for each, shared by all that the device does there, kept a moment after use. */

/** More than any retained statement or piece. */
const MAX_PACKET = 64 * KiB
/** What may come unasked in ten seconds: more than crossing messages ever are, and far less than a flood. */
const FLOOD = { messages: 2000, bytes: 8 * MiB }
const LINGER_MS = 5000

export interface BrokersOptions {
  /** The name by which assignments call this device; without one it takes a name that no access list knows. */
  readonly device?: string | undefined
  /** Read at each connection: a certificate that was renewed counts at once. */
  readonly tls?: () => Promise<BrokerTls>
  readonly clock?: DoorClock
  readonly backoff?: Backoff
  /** Tells the fleet that the device is there and, by its last will, that it is gone: for the agent, not for a command. */
  readonly presence?: boolean
  readonly lingerMs?: number
}

export interface Lease extends MqttPlace {
  readonly link: BrokerLink
  readonly device: string
  /** Lets go of the tie. */
  release(): void
}

export class Brokers {
  readonly device: string
  readonly clock: DoorClock
  readonly #options: BrokersOptions
  readonly #links = new Map<string, { link: BrokerLink; users: number; timer?: NodeJS.Timeout }>()

  constructor(options: BrokersOptions = {}) {
    this.#options = options
    this.clock = options.clock ?? systemClock
    this.device =
      options.device !== undefined && isDeviceName(options.device)
        ? options.device
        : `nameless-${randomBytes(8).toString('hex')}`
  }

  /** @throws TRANSPORT_ADDRESS */
  lease(address: string): Lease {
    const url = URL.canParse(address) ? new URL(address) : undefined
    const place = url === undefined ? undefined : placeOf(url)
    if (url === undefined || place === undefined)
      throw doorErrors.TRANSPORT_ADDRESS(
        `'${url === undefined ? address : `${url.protocol}//${url.host}${url.pathname}`}' names no published file on a broker`,
        { next: 'Give mqtts://BROKER/channels/NAME.json or mqtts://BROKER/bundles/NAME.bundle.' },
      )
    const key = `${place.root} ${url.protocol}//${url.username}:${url.password}@${url.host}`
    const entry = this.#links.get(key) ?? { link: this.#open(url, place.root), users: 0 }
    this.#links.set(key, entry)
    clearTimeout(entry.timer)
    entry.users++
    let released = false
    return {
      ...place,
      link: entry.link,
      device: this.device,
      release: () => {
        if (released) return
        released = true
        if (--entry.users > 0) return
        // Not kept alive for it: a command that is done ends.
        entry.timer = setTimeout(() => this.#drop(key), this.#options.lingerMs ?? LINGER_MS)
        entry.timer.unref()
      },
    }
  }

  /** Says goodbye to all brokers. */
  async close(): Promise<void> {
    const links = [...this.#links.values()]
    this.#links.clear()
    for (const { timer } of links) clearTimeout(timer)
    await Promise.all(links.map(({ link }) => link.close()))
  }

  #open(url: URL, root: string): BrokerLink {
    const { tls, backoff, presence } = this.#options
    const topic = deviceTopic(root, this.device, 'link')
    const told = (online: boolean) => ({
      topic,
      payload: encodeMessage({ v: 1, online }),
      retain: true,
      qos: 1 as const,
    })
    const link = new BrokerLink({
      url,
      name: this.device,
      clock: this.clock,
      maxPacket: MAX_PACKET,
      flood: FLOOD,
      ...(tls === undefined ? {} : { tls }),
      ...(backoff === undefined ? {} : { backoff }),
      ...(presence === true ? { will: told(false), farewell: told(false) } : {}),
    })
    if (presence === true) link.listen({ message: () => false, up: () => void link.publish(told(true)) })
    return link
  }

  #drop(key: string): void {
    const entry = this.#links.get(key)
    this.#links.delete(key)
    entry?.link.close().catch(() => undefined)
  }
}

/** A broker's failure in the words of a door. */
export function brokerError({ trouble, message }: BrokerFailure): Error {
  if (trouble === 'tls') return doorErrors.TRANSPORT_TLS(message)
  if (trouble === 'refused') return doorErrors.TRANSPORT_REFUSED(message)
  if (trouble === 'address') return doorErrors.TRANSPORT_ADDRESS(message)
  if (trouble === 'wrong-answer' || trouble === 'flood') return doorErrors.TRANSPORT_WRONG_ANSWER(message)
  return doorErrors.TRANSPORT_LOST(message)
}
