import { randomBytes } from 'node:crypto'
import { copyFileSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { startBroker } from '../publisher/mqtt/embedded.ts'
import { MqttPublisher } from '../publisher/mqtt/publisher.ts'
import { announcing, freshness } from '../test/attacks/web.ts'
import { makeBundle } from '../test/helpers/bundle.ts'
import type { Followed } from '../test/helpers/process.ts'
import { signedRoot } from '../test/keys/helpers.ts'

/**
 * Milliseconds from the moment at which a channel file stands in the publish folder until an agent, connected to a broker on
 * this machine and idle, says that its install began: it has fetched and verified the channel and the bundle's head then.
 * @param begin starts an agent that follows this channel and installs by itself
 */
export async function publishToStart(
  base: string,
  begin: (channel: string, name: string) => Promise<Followed>,
  rounds: number,
): Promise<readonly number[]> {
  const site = join(base, 'news')
  for (const folder of ['channels', 'bundles']) mkdirSync(join(site, folder), { recursive: true })
  const images = { boot: randomBytes(64 << 10), rootfs: randomBytes(512 << 10) }
  const { path } = await makeBundle(base, 'news', { ...images, number: { epoch: 0, counter: 3 } })
  copyFileSync(path, join(site, 'bundles/news.bundle'))
  const channel = join(site, 'channels/stable.json')
  const issued = () => new Date().toISOString().replace(/\.\d+Z/, 'Z')
  const old = await freshness({ number: { epoch: 0, counter: 2 }, issued: issued(), expires: '2099-01-01T00:00:00Z' })
  const named = await announcing(readFileSync(path), await signedRoot({}, [1, 2]), 'bundles/news.bundle')
  const broker = await startBroker('127.0.0.1', 0, () => undefined)
  try {
    const took: number[] = []
    for (let round = 0; round < rounds; round++) {
      writeFileSync(channel, old)
      const publisher = await MqttPublisher.start({ folder: site, broker: broker.url, say: () => undefined })
      const agent = await begin(`mqtt://127.0.0.1:${broker.port}/channels/stable.json`, `news-${round}`)
      try {
        while (publisher.fleet.online < 1) await sleep(20)
        await sleep(2000)
        const hidden = join(site, 'channels/.new')
        writeFileSync(hidden, await freshness({ ...named, issued: issued(), expires: '2099-01-01T00:00:00Z' }))
        const started = performance.now()
        renameSync(hidden, channel)
        await agent.until(/state=downloading/)
        took.push(performance.now() - started)
      } finally {
        await agent.stop()
        await publisher.close()
      }
    }
    return took
  } finally {
    await broker.close()
  }
}
