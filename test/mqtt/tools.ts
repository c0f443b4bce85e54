import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { onTestFinished } from 'vitest'
import { Brokers, type BrokersOptions } from '../../device/doors/brokers.ts'
import { startBroker } from '../../publisher/mqtt/embedded.ts'
import { MqttPublisher, type MqttPublisherOptions } from '../../publisher/mqtt/publisher.ts'
import { MOSQUITTO, type Mosquitto, startMosquitto } from '../helpers/mosquitto.ts'

export { authority, freePort, OPEN, type Pem, shippedConfig } from '../helpers/mosquitto.ts'

/** Real brokers on loopback ports of their own: Mosquitto as a process, and the embedded one. */

/** A missing Mosquitto is a skip on a desk and a failure in CI. */
export function noMosquitto(): boolean {
  if (MOSQUITTO === undefined && process.env['CI'] !== undefined) throw new Error('mosquitto is not installed')
  return MOSQUITTO === undefined
}

/** As `startMosquitto`; ended with the test. */
export async function mosquitto(...given: Parameters<typeof startMosquitto>): Promise<Mosquitto> {
  const broker = await startMosquitto(...given)
  onTestFinished(() => broker.kill())
  return broker
}

/** Tries again quickly, so that tests do not wait for the pauses of a fleet. */
export const QUICK = { firstMs: 100, maxMs: 300 }

/** A device's brokers, closed with the test. */
export function brokers(device: string, options: BrokersOptions = {}): Brokers {
  const made = new Brokers({ device, backoff: QUICK, lingerMs: 100, ...options })
  onTestFinished(() => made.close())
  return made
}

/** A publisher, closed with the test. */
export async function publisher(
  folder: string,
  broker: string | URL,
  options: Partial<MqttPublisherOptions> = {},
): Promise<MqttPublisher & { said: string[] }> {
  const said: string[] = []
  const made = await MqttPublisher.start({
    folder,
    broker: new URL(broker),
    backoff: QUICK,
    say: (line) => said.push(line),
    ...options,
  })
  onTestFinished(() => made.close())
  return Object.assign(made, { said })
}

/** The embedded broker on a port of its own. */
export async function embedded(port = 0) {
  const said: string[] = []
  const broker = await startBroker('127.0.0.1', port, (line) => said.push(line))
  onTestFinished(() => broker.close())
  return Object.assign(broker, { said })
}

/** A publish folder with these files. */
export function publishFolder(folder: string, files: Readonly<Record<string, Uint8Array | string>>): string {
  for (const name of ['channels', 'assignments', 'roots', 'bundles', 'deltas'])
    mkdirSync(join(folder, name), { recursive: true })
  for (const [path, content] of Object.entries(files)) writeFileSync(join(folder, path), content)
  return folder
}

/** Waits until something holds; the test's own time limit ends a wait that is in vain. */
export async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await sleep(10)
}
