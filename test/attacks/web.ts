import type { ServerResponse } from 'node:http'
import { encodeFreshness, FRESHNESS_PAYLOAD_TYPE, type FreshnessStatement } from '../../bundle/freshness.ts'
import { openBundle } from '../../bundle/reader.ts'
import { encodeEnvelope } from '../../keys/dsse.ts'
import { trustAnchor } from '../../keys/root.ts'
import { signStatement } from '../../keys/statement.ts'
import { memorySource } from '../bundle/fixture.ts'
import { sendFile, serve } from '../device-install/web.ts'
import { signer } from '../keys/helpers.ts'

/** A publish directory on a web server whose owner is the attacker: files by path, and answers of any kind. */
export class PublishSite {
  readonly files = new Map<string, Uint8Array | ((response: ServerResponse) => void)>()
  /** "/path bytes=0-9", in order. */
  readonly asked: string[] = []
  origin = ''

  static async open(): Promise<PublishSite> {
    const site = new PublishSite()
    const { url } = await serve((request, response) => {
      site.asked.push(`${request.url} ${request.headers.range ?? ''}`)
      const found = site.files.get(request.url ?? '')
      if (found === undefined) response.writeHead(404).end()
      else if (found instanceof Uint8Array) sendFile(request, response, found, {})
      else found(response)
    })
    site.origin = new URL(url).origin
    return site
  }

  get channel(): string {
    return `${this.origin}/channels/stable.json`
  }
}

const STATEMENT: FreshnessStatement = {
  type: 'freshness',
  product: 'demo',
  channel: 'stable',
  number: { epoch: 0, counter: 7 },
  release: 'ab'.repeat(32) as FreshnessStatement['release'],
  path: 'bundles/7.bundle',
  size: 1000,
  rootVersion: 1,
  issued: '2026-11-21T00:00:00Z',
  expires: '2026-11-22T00:00:00Z',
}

/** A freshness envelope, signed by fleet key 21 or others. */
export async function freshness(
  change: Partial<FreshnessStatement> = {},
  by: readonly number[] = [21],
): Promise<Uint8Array> {
  const payload = encodeFreshness({ ...STATEMENT, ...change })
  return encodeEnvelope(await signStatement(FRESHNESS_PAYLOAD_TYPE, payload, by.map(signer)))
}

/** Any payload under any payload type, by whichever test keys. */
export async function signedBy(type: string, payload: unknown, by: readonly number[]): Promise<Uint8Array> {
  const bytes = payload instanceof Uint8Array ? payload : Buffer.from(JSON.stringify(payload))
  return encodeEnvelope(await signStatement(type, bytes, by.map(signer)))
}

/** What a channel says of a bundle. */
export async function announcing(
  bundle: Uint8Array,
  anchor: Uint8Array,
  path: string,
): Promise<Pick<FreshnessStatement, 'number' | 'release' | 'path' | 'size'>> {
  const { digest, statement } = await openBundle(memorySource(bundle), { trusted: trustAnchor(anchor) })
  return { number: statement.number, release: digest, path, size: bundle.length }
}
