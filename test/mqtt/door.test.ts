import { unlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { type ByteSource, readExactly } from '../../base/source.ts'
import { PIECE_BYTES } from '../../broker/topics.ts'
import type { Brokers } from '../../device/doors/brokers.ts'
import { type MqttDoorOptions, openMqttDoor } from '../../device/doors/mqtt.ts'
import { fetchRetained } from '../../device/doors/retained.ts'
import { noise, scratch } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { brokers, embedded, mosquitto, noMosquitto, OPEN, publisher, publishFolder, until } from './tools.ts'

const file = noise(10 * 256 * 1024 + 12_345)
const sameBytes = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0

async function open(address: string, device = 'd1', options: MqttDoorOptions = {}): Promise<ByteSource> {
  const door = await openMqttDoor(brokers(device), address, { askAgainMs: 300, ...options })
  onTestFinished(() => door.close())
  return door
}

async function text(from: Brokers, address: string): Promise<string | undefined> {
  const bytes = await fetchRetained(from, address, 100)
  return bytes === undefined ? undefined : Buffer.from(bytes).toString()
}

/** The two brokers of the tests: an address that devices use, and one for the publisher. */
const BROKERS = [
  [
    'mosquitto',
    async () => {
      const { port } = await mosquitto(OPEN, scratch())
      return { device: `mqtt://127.0.0.1:${port}`, publisher: `mqtt://127.0.0.1:${port}` }
    },
  ],
  [
    'the embedded broker',
    async () => {
      const { url, port } = await embedded()
      return { device: `mqtt://127.0.0.1:${port}`, publisher: url.href }
    },
  ],
] as const

describe.each(BROKERS)('MQTT door over %s', (name, start) => {
  const missing = name === 'mosquitto' && noMosquitto()

  it.skipIf(missing)('reads any range of a bundle exactly, and small files whole', async () => {
    const at = await start()
    const patch = noise(PIECE_BYTES + 77, 'patch')
    const files = { 'bundles/x.bundle': file, 'deltas/x.delta': patch, 'channels/stable.json': '{"a":1}' }
    const folder = publishFolder(scratch(), files)
    const { sent, said } = await publisher(folder, at.publisher)
    const door = await open(`${at.device}/bundles/x.bundle`)
    expect(door.size).toBe(file.length)
    for (const [from, length] of [
      [0, 10],
      [PIECE_BYTES - 5, 10],
      [PIECE_BYTES, 1],
      [100_000, 1_500_000],
      [file.length - 1, 1],
    ] as const)
      expect(sameBytes(await readExactly(door, from, length), file.subarray(from, from + length))).toBe(true)
    expect(await readExactly(door, 5, 0)).toHaveLength(0)
    const before = sent.pieces
    expect(sameBytes(await readExactly(door, 0, file.length), file)).toBe(true)
    // One reader: nothing is sent twice but what had been dropped behind it.
    expect(sent.pieces - before).toBeLessThanOrEqual(Math.ceil(file.length / PIECE_BYTES))

    expect(sameBytes(await readExactly(await open(`${at.device}/deltas/x.delta`), 0, patch.length), patch)).toBe(true)

    const asking = brokers('d2')
    expect(await text(asking, `${at.device}/channels/stable.json`)).toBe('{"a":1}')
    expect(await fetchRetained(asking, `${at.device}/assignments/d2.json`, 100)).toBeUndefined()
    writeFileSync(join(folder, 'channels/stable.json'), '{"a":2}')
    await until(() => said.some((line) => line === 'mqtt: announced channels/stable.json'))
    await expect.poll(() => text(asking, `${at.device}/channels/stable.json`)).toBe('{"a":2}')
    unlinkSync(join(folder, 'channels/stable.json'))
    await expect.poll(() => text(asking, `${at.device}/channels/stable.json`)).toBeUndefined()
  })

  it.skipIf(missing)('says what is missing, what is too large and what cannot be meant', async () => {
    const at = await start()
    const folder = publishFolder(scratch(), { 'channels/stable.json': 'x'.repeat(101) })
    await publisher(folder, at.publisher)
    expect(await codeOfAsync(() => open(`${at.device}/bundles/none.bundle`))).toBe('TRANSPORT_MISSING')
    const asking = brokers('d2')
    expect(await codeOfAsync(() => fetchRetained(asking, `${at.device}/channels/stable.json`, 100))).toBe(
      'TRANSPORT_TOO_LARGE',
    )
    for (const path of ['', 'x', 'bundles/a/b', 'other/x', 'bundles/%2b', 'bundles/+', 'bundles/x?y', 'channels/#'])
      expect(await codeOfAsync(() => open(`${at.device}/${path}`)), path).toBe('TRANSPORT_ADDRESS')
  })
})

describe.skipIf(noMosquitto())('a broker that restarts', () => {
  it('in mid-transfer, and forgets everything: the transfer goes on where it was, and nothing is sent twice for it', async () => {
    const broker = await mosquitto(OPEN, scratch())
    const folder = publishFolder(scratch(), { 'bundles/x.bundle': file, 'channels/stable.json': '{"a":1}' })
    const { sent } = await publisher(folder, `mqtt://127.0.0.1:${broker.port}`)
    const door = await open(`mqtt://127.0.0.1:${broker.port}/bundles/x.bundle`)
    const parts: Uint8Array[] = []
    let at = 0
    let restarts = 0
    for await (const piece of door.read(0, file.length)) {
      parts.push(Uint8Array.from(piece))
      at += piece.length
      if (at < ((restarts + 1) * file.length) / 4 || restarts === 3) continue
      restarts++
      await broker.kill()
      await broker.start()
    }
    expect(restarts).toBe(3)
    expect(Buffer.compare(Buffer.concat(parts), file)).toBe(0)
    // What was on its way at each restart, at most a window of it, is sent again.
    expect(sent.pieces).toBeLessThanOrEqual(Math.ceil(file.length / PIECE_BYTES) + 3 * 64)
    // What had been announced is announced again.
    const asking = brokers('d2')
    expect(await text(asking, `mqtt://127.0.0.1:${broker.port}/channels/stable.json`)).toBe('{"a":1}')
  })
})
