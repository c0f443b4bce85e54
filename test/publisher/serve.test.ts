import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { request, type Server } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { parseRange, requestPath, serveFolder } from '../../publisher/serve.ts'

interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: string
}

let work: string
let server: Server
let port: number
const lines: string[] = []

beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'bistable-serve-'))
  mkdirSync(join(work, 'www', 'bundles'), { recursive: true })
  writeFileSync(join(work, 'www', 'bundles', 'x.bundle'), '0123456789')
  writeFileSync(join(work, 'www', 'empty.json'), '')
  writeFileSync(join(work, 'www', 'bundles', '.hidden'), 'no')
  writeFileSync(join(work, 'secret'), 'no')
  symlinkSync('../../secret', join(work, 'www', 'bundles', 'link'))
  server = await serveFolder(join(work, 'www'), { port: 0, host: '127.0.0.1', log: (line) => void lines.push(line) })
  const address = server.address()
  port = typeof address === 'object' && address !== null ? address.port : 0
})
afterAll(() => {
  server.close()
  server.closeAllConnections()
  rmSync(work, { recursive: true, force: true })
})

/** With node:http and not fetch: fetch would tidy the path up first. */
function get(path: string, headers: Record<string, string> = {}, method = 'GET'): Promise<Answer> {
  return new Promise((resolve, reject) => {
    request({ host: '127.0.0.1', port, path, headers, method, agent: false }, (response) => {
      let body = ''
      response.setEncoding('latin1').on('data', (text: string) => {
        body += text
      })
      response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body }))
    })
      .on('error', reject)
      .end()
  })
}

describe('serve', () => {
  it('logs one line for each request, with nothing in it that steers a terminal', async () => {
    lines.length = 0
    const socket = connect(port, '127.0.0.1')
    // C1 control characters as single bytes: 0x9b begins an escape sequence.
    socket.end(Buffer.from('GET /none HTTP/1.1\r\nHost: x\r\nRange: \x9b31m\r\nConnection: close\r\n\r\n', 'latin1'))
    await once(socket.resume(), 'close')
    await expect.poll(() => lines).toEqual(['GET /none 404 \\u009b31m'])
  })

  it('whole files, HEAD, and a strong ETag', async () => {
    const whole = await get('/bundles/x.bundle?query')
    expect(whole).toMatchObject({ status: 200, body: '0123456789' })
    expect(whole.headers).toMatchObject({ 'content-length': '10', 'accept-ranges': 'bytes' })
    expect(whole.headers['etag']).toMatch(/^"[0-9a-f]{32}"$/)
    expect(await get('/bundles/x.bundle', {}, 'HEAD')).toMatchObject({ status: 200, body: '' })
    expect(await get('/empty.json')).toMatchObject({ status: 200, body: '' })
    expect(await get('/bundles/x.bundle', { 'if-none-match': String(whole.headers['etag']) })).toMatchObject({
      status: 304,
    })
  })

  it('ranges, and If-Range', async () => {
    const part = await get('/bundles/x.bundle', { range: 'bytes=2-4' })
    expect(part).toMatchObject({ status: 206, body: '234' })
    expect(part.headers['content-range']).toBe('bytes 2-4/10')
    expect(await get('/bundles/x.bundle', { range: 'bytes=-3' })).toMatchObject({ status: 206, body: '789' })
    const beyond = await get('/bundles/x.bundle', { range: 'bytes=10-' })
    expect(beyond.status).toBe(416)
    expect(beyond.headers['content-range']).toBe('bytes */10')
    const etag = String(part.headers['etag'])
    expect((await get('/bundles/x.bundle', { range: 'bytes=2-4', 'if-range': etag })).status).toBe(206)
    expect((await get('/bundles/x.bundle', { range: 'bytes=2-4', 'if-range': '"old"' })).body).toBe('0123456789')
  })

  it('nothing outside the folder, nothing hidden, no folders, no writing', async () => {
    for (const path of [
      '/../secret',
      '/bundles/../../secret',
      '/%2e%2e/secret',
      '/bundles/..%2f..%2fsecret',
      '/bundles/link',
      '/bundles/.hidden',
      '/bundles',
      '/bundles/',
      '/',
      '//bundles/x.bundle',
      '/nowhere',
      '/%',
      '/a%00b',
      'bundles/x.bundle',
    ])
      expect([path, (await get(path)).status]).toEqual([path, expect.toSatisfy((s: number) => s === 404 || s === 400)])
    expect(await get('/bundles/x.bundle', {}, 'PUT')).toMatchObject({ status: 405 })
  })

  it('waits for no client that takes nothing any more', async () => {
    writeFileSync(join(work, 'www', 'bundles', 'large.bundle'), Buffer.alloc(64 << 20))
    const said: string[] = []
    const log = (line: string) => void said.push(line)
    const patient = await serveFolder(join(work, 'www'), { port: 0, host: '127.0.0.1', log, idleMs: 100 })
    const { port: at } = patient.address() as AddressInfo
    const socket = connect(at, '127.0.0.1').pause()
    socket.on('error', () => undefined)
    socket.write('GET /bundles/large.bundle HTTP/1.1\r\nHost: x\r\n\r\n')
    await once(patient, 'request')
    // The file is closed and the request over, though the client never said so.
    await expect.poll(() => said).toEqual(['GET /bundles/large.bundle 200'])
    socket.destroy()
    patient.close()
  })

  it('ETags change with the content', async () => {
    writeFileSync(join(work, 'www', 'channel.json'), 'a')
    const first = (await get('/channel.json')).headers['etag']
    writeFileSync(join(work, 'www', 'channel.json'), 'bb')
    expect((await get('/channel.json')).headers['etag']).not.toBe(first)
  })

  it('reads ranges as RFC 9110 says', () => {
    expect(parseRange(undefined, 10)).toBeUndefined()
    expect(parseRange('bytes=0-', 10)).toEqual([0, 9])
    expect(parseRange('bytes=5-99', 10)).toEqual([5, 9])
    expect(parseRange('bytes=-99', 10)).toEqual([0, 9])
    expect(parseRange('bytes=-0', 10)).toBe('outside')
    expect(parseRange('bytes=0-0', 0)).toBe('outside')
    for (const text of ['bytes=5-4', 'bytes=-', 'bytes=0-1,3-4', 'lines=0-1', 'bytes= 0-1'])
      expect(parseRange(text, 10)).toBeUndefined()
    expect(requestPath('/a/b.json?x=/../')).toBe('a/b.json')
  })
})
