import { type ChildProcess, fork } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { type ByteRange, readRanges } from '../base/source.ts'
import { PIECE_BYTES } from '../broker/topics.ts'
import { Brokers } from '../device/doors/brokers.ts'
import { openMqttDoor } from '../device/doors/mqtt.ts'
import { piecesOf } from '../device/doors/window.ts'
import { startBroker } from '../publisher/mqtt/embedded.ts'
import { MqttPublisher } from '../publisher/mqtt/publisher.ts'
import { OPEN, startMosquitto } from '../test/helpers/mosquitto.ts'

/**
 * What a fleet costs the publisher: many devices (the real door, each with a connection of its own) fetch the same bundle
 * together; then again, and one more joins late and lacks only a part.
 *
 * usage: npm run mqtt-fleet -- [--devices 100] [--mib 16] [--processes 2] [--broker mosquitto|embedded]
 *        [--spread MS] [--uneven FACTOR]
 */

const MiB = 1024 * 1024

interface Plan {
  readonly address: string
  readonly first: number
  readonly devices: number
  /** Devices begin at random moments within so many milliseconds. */
  readonly spreadMs: number
  /** The slowest takes its bytes so many times slower than the fastest, which takes 8 MiB a second. 0: all at full speed. */
  readonly uneven: number
  readonly ranges: readonly ByteRange[]
}

interface Fetched {
  readonly digest: string
  /** Bytes of all messages with pieces that reached the device. */
  readonly heard: number
  readonly ms: number
}

/** One device: fetches the ranges, and counts every piece that reaches it, wanted or not. */
async function device(plan: Plan, n: number, together: () => Promise<void>): Promise<Fetched> {
  const brokers = new Brokers({ device: `device-${n}`, presence: true, backoff: { firstMs: 500, maxMs: 5000 } })
  const lease = brokers.lease(plan.address)
  // As agents are when something is announced: connected.
  while (!lease.link.connected) await sleep(20)
  await together()
  await sleep(((n * 7919) % 1000) * (plan.spreadMs / 1000))
  const started = performance.now()
  let heard = 0
  const stop = lease.link.listen({
    message: (topic, payload) => {
      if (topic.includes('/pieces/')) heard += payload.length
      return false
    },
  })
  const door = await openMqttDoor(brokers, plan.address)
  const hash = createHash('sha256')
  const pace = plan.uneven === 0 ? 0 : (1000 / (8 * MiB)) * (1 + (plan.uneven - 1) * ((n * 104_729) % 1000) * 0.001)
  let behind = 0
  for await (const piece of readRanges(door, plan.ranges)) {
    hash.update(piece)
    behind += piece.length * pace
    if (behind < 50) continue
    await sleep(behind)
    behind = 0
  }
  await door.close()
  stop()
  const ms = performance.now() - started
  await brokers.close()
  return { digest: hash.digest('hex'), heard, ms }
}

/** @param others resolves when the devices of other processes are connected too */
async function runDevices(plan: Plan, others: () => Promise<void>): Promise<Fetched[]> {
  let connected = 0
  let all: () => void = () => undefined
  const here = new Promise<void>((done) => {
    all = done
  })
  const everywhere = here.then(others)
  const together = async () => {
    if (++connected === plan.devices) all()
    await everywhere
  }
  return await Promise.all(Array.from({ length: plan.devices }, (_, i) => device(plan, plan.first + i, together)))
}

export interface FleetPlan {
  readonly devices: number
  readonly mib: number
  /** 0: all devices in this process. */
  readonly processes: number
  readonly broker: 'mosquitto' | 'embedded'
  readonly spreadMs: number
  readonly uneven: number
  /** One more device joins when half is sent. */
  readonly late: boolean
}

export interface FleetFigures {
  /** Pieces of the bundle; times that each was sent, on average. */
  readonly pieces: number
  readonly sentEach: number
  readonly seconds: number
  /** Of the late one: bytes of the pieces that it lacked, and of all pieces that reached it. */
  readonly lateLacked: number
  readonly lateHeard: number
}

/** @throws when any device did not get exactly the bundle's bytes */
export async function measureFleet(plan: FleetPlan): Promise<FleetFigures> {
  const folder = mkdtempSync(join(tmpdir(), 'bistable-fleet-'))
  mkdirSync(join(folder, 'bundles'))
  const file = join(folder, 'bundles/x.bundle')
  const block = createHash('shake256', { outputLength: MiB })
  const one = block.update('fleet').digest()
  for (let i = 0; i < plan.mib; i++) {
    one.writeUInt32BE(i)
    writeFileSync(file, one, { flag: 'a' })
  }
  const size = plan.mib * MiB
  const embedded = plan.broker === 'embedded' ? await startBroker('127.0.0.1', 0, () => undefined) : undefined
  const real = embedded === undefined ? await startMosquitto([...OPEN, 'set_tcp_nodelay true'], folder) : undefined
  const url = embedded?.url ?? new URL(`mqtt://127.0.0.1:${real?.port}`)
  const publisher = await MqttPublisher.start({ folder, broker: url, say: () => undefined })
  try {
    const address = `mqtt://127.0.0.1:${url.port}/bundles/x.bundle`
    const whole = [{ offset: 0, length: size }]
    const base = { address, spreadMs: plan.spreadMs, uneven: plan.uneven }
    const started = performance.now()
    const fleet = inProcesses({ ...base, first: 0, devices: plan.devices, ranges: whole }, plan.processes)
    // The late one has three quarters already, in stripes: it lacks a quarter.
    const stripes = Array.from({ length: plan.mib }, (_, i) => ({ offset: i * MiB + MiB / 2, length: MiB / 4 }))
    const late = (async () => {
      if (!plan.late) return undefined
      while (publisher.sent.bytes < size / 2) await sleep(5)
      return await device(
        { ...base, spreadMs: 0, first: 0, devices: 1, ranges: stripes },
        plan.devices,
        async () => undefined,
      )
    })()
    const got = await fleet
    const seconds = (performance.now() - started) / 1000
    const wanted = await digestOf(file, whole)
    for (const { digest } of got) if (digest !== wanted) throw new Error('a device got other bytes')
    const last = await late
    if (last !== undefined && last.digest !== (await digestOf(file, stripes)))
      throw new Error('the late device got other bytes')
    const pieces = Math.ceil(size / PIECE_BYTES)
    const lacked = [...piecesOf(stripes)].length
    const sentEach = publisher.sent.pieces / pieces
    return { pieces, sentEach, seconds, lateLacked: lacked * PIECE_BYTES, lateHeard: last?.heard ?? 0 }
  } finally {
    await publisher.close()
    await embedded?.close()
    await real?.kill()
    rmSync(folder, { recursive: true, force: true })
  }
}

async function digestOf(file: string, ranges: readonly ByteRange[]): Promise<string> {
  const hash = createHash('sha256')
  for (const { offset, length } of ranges)
    for await (const piece of createReadStream(file, { start: offset, end: offset + length - 1 })) hash.update(piece)
  return hash.digest('hex')
}

async function inProcesses(plan: Plan, processes: number): Promise<Fetched[]> {
  if (processes === 0) return await runDevices(plan, async () => undefined)
  const share = Math.ceil(plan.devices / processes)
  const children: ChildProcess[] = []
  let ready = 0
  const results = Array.from({ length: processes }, (_, i) => {
    const child = fork(import.meta.filename, ['--child'], { execArgv: ['--import', 'tsx'] })
    children.push(child)
    child.send({ ...plan, first: plan.first + i * share, devices: Math.min(share, plan.devices - i * share) })
    return new Promise<Fetched[]>((done, reject) => {
      child.on('message', (message) => {
        if (message !== 'ready') done(message as Fetched[])
        else if (++ready === processes) for (const one of children) one.send('go')
      })
      child.once('exit', (code) => reject(new Error(`a process of devices ended with ${code}`)))
    })
  })
  try {
    return (await Promise.all(results)).flat()
  } finally {
    for (const child of children) child.kill()
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      devices: { type: 'string', default: '100' },
      mib: { type: 'string', default: '16' },
      processes: { type: 'string', default: '2' },
      broker: { type: 'string', default: 'mosquitto' },
      spread: { type: 'string', default: '0' },
      uneven: { type: 'string', default: '0' },
    },
  })
  const broker = values.broker === 'embedded' ? 'embedded' : 'mosquitto'
  const plan: Omit<FleetPlan, 'late'> = {
    devices: Number(values.devices),
    mib: Number(values.mib),
    processes: Number(values.processes),
    broker,
    spreadMs: Number(values.spread),
    uneven: Number(values.uneven),
  }
  const { sentEach, seconds } = await measureFleet({ ...plan, late: false })
  const { lateLacked, lateHeard } = await measureFleet({ ...plan, late: true })
  console.log(
    `${broker}: ${values.devices} devices, ${values.mib} MiB, spread ${values.spread} ms, uneven ${values.uneven}: each piece sent ${sentEach.toFixed(3)} times, ${seconds.toFixed(1)} s; late one lacked ${(lateLacked / MiB).toFixed(2)} MiB, heard ${(lateHeard / MiB).toFixed(2)} MiB`,
  )
}

if (process.argv.includes('--child'))
  process.once('message', (plan) => {
    const others = () =>
      new Promise<void>((go) => {
        process.once('message', () => go())
        process.send?.('ready')
      })
    runDevices(plan as Plan, others).then(
      (done) => process.send?.(done),
      (error: unknown) => {
        console.error(error)
        process.exit(1)
      },
    )
  })
else if (process.argv[1] === import.meta.filename) await main()
