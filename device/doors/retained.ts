import { readAnswer } from '../../broker/messages.ts'
import { deviceTopic, MAX_RETAINED_BYTES } from '../../broker/topics.ts'
import { askMessage, throwIfFinal, unanswered } from './ask.ts'
import type { Brokers } from './brokers.ts'
import { doorErrors } from './errors.ts'
import type { MqttDoorOptions } from './mqtt.ts'
import { Waiter } from './waiter.ts'

/**
 * A retained file: what `GET` is on a web server.
 * @returns undefined when the publisher says that there is none, or when the broker has none and nobody answers
 * @throws TRANSPORT_…; the signal's reason when aborted
 */
export async function fetchRetained(
  brokers: Brokers,
  address: string,
  limit: number,
  { signal, answerMs = 30_000 }: Pick<MqttDoorOptions, 'signal' | 'answerMs'> = {},
): Promise<Uint8Array | undefined> {
  const lease = brokers.lease(address)
  const { link, root, file, device } = lease
  const topic = `${root}/${file}`
  const answers = deviceTopic(root, device, 'answer')
  const waiter = new Waiter(brokers.clock)
  let found: Uint8Array | undefined
  let missing = false
  let refused = false
  /** When the broker had answered something that was said after it granted the subscription: a retained message came before. */
  let standing: number | undefined
  const ask = (): void => void link.publish(askMessage(lease, { v: 1, file }))
  const confirm = async (): Promise<void> => {
    if (!(await link.publish({ ...askMessage(lease, { v: 1, file }), qos: 1 }))) return
    standing ??= brokers.clock.now()
    waiter.ring()
  }
  const listener = {
    message: (heard: string, payload: Uint8Array, retained: boolean): boolean => {
      if (heard === answers) {
        const answer = retained ? undefined : readAnswer(payload)
        if (answer === undefined || !('missing' in answer) || answer.file !== file) return false
        missing = true
      } else if (heard === topic && payload.length > 0) found = payload
      else return false
      waiter.ring()
      return true
    },
    subscribed: (heard: string, granted: boolean): void => {
      if (heard === topic && granted) void confirm()
      if (!granted) refused = true
      waiter.ring()
    },
    up: ask,
    down: () => waiter.ring(),
  }
  const detach = link.listen(listener)
  try {
    link.want(listener, answers)
    link.want(listener, topic)
    const ends = brokers.clock.now() + answerMs
    // What the last asker met may be over: a certificate renewed, a clock set.
    link.again()
    ask()
    for (;;) {
      if (found !== undefined) return sized(found, limit, link.name, file)
      if (missing) return undefined
      if (refused) throw doorErrors.TRANSPORT_REFUSED(`${link.name} does not let this device hear of ${file}`)
      throwIfFinal(link.failure)
      const now = brokers.clock.now()
      // Nobody answers for the publisher; the broker alone has nothing retained.
      if (standing !== undefined && now - standing >= RETAINED_MS) return undefined
      if (now >= ends) throw unanswered(lease)
      await waiter.next(Math.min(ends, standing === undefined ? ends : standing + RETAINED_MS) - now, signal)
    }
  } finally {
    detach()
    lease.release()
  }
}

/** Time for the publisher to say that there is none; the broker alone would have said by then what it has. */
const RETAINED_MS = 3000

function sized(bytes: Uint8Array, limit: number, name: string, file: string): Uint8Array {
  if (bytes.length > Math.min(limit, MAX_RETAINED_BYTES))
    throw doorErrors.TRANSPORT_TOO_LARGE(`${file} on ${name} has ${bytes.length} bytes, at most ${limit} are read`)
  return Uint8Array.from(bytes)
}
