import { readFileSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import { readExactly } from '../../base/source.ts'
import { openFileDoor } from '../../device/doors/file.ts'
import { proxyFor } from '../../device/doors/proxy.ts'
import { serveFolder } from '../../publisher/serve.ts'
import { haveTool, noise, scratch } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { openQuick, sendFile, serve } from '../device-install/web.ts'
import { makeBundle } from '../helpers/bundle.ts'
import { runInstall } from './bench.ts'
import { type Nginx, startNginx } from './nginx.ts'
import { startProxy } from './proxy-server.ts'

// How the web door reaches servers: a real nginx, TLS, client certificates, proxies.

const file = noise(400_000)
const missing = !haveTool('nginx') || !haveTool('openssl')
const nginx = (servers: Readonly<Record<string, string>>): Promise<Nginx> => startNginx({ file }, servers)
async function readAll(url: string, options: Parameters<typeof openQuick>[1] = {}): Promise<boolean> {
  const door = await openQuick(url, options)
  return Buffer.compare(await readExactly(door, 0, door.size), file) === 0
}
const codeOf = (url: string, options: Parameters<typeof openQuick>[1] = {}) => codeOfAsync(() => readAll(url, options))

describe.skipIf(missing)('nginx', () => {
  it('installs a bundle: plain, over TLS with a pinned authority and a client certificate, and without ranges', async () => {
    const dir = scratch()
    const bundle = await makeBundle(dir, 'one', { boot: noise(4096 * 30), rootfs: noise(4096 * 300, 'r') })
    const server = await startNginx(
      { 'one.bundle': readFileSync(bundle.path) },
      { plain: '', tls: 'ssl_verify_client on;', norange: 'max_ranges 0;' },
    )
    const { ca, client } = server.pki
    const journals = []
    for (const name of ['plain', 'tls', 'norange']) {
      const run = await runInstall(() => openQuick(`${server.at[name]}/one.bundle`, { tls: { ca, ...client } }), {
        trusted: bundle.trusted,
      })
      expect(run, name).toMatchObject({ code: 'accepted', holds: true })
      journals.push(run.journal)
    }
    expect(new Set(journals).size).toBe(1)
    expect(server.asked().filter((line) => line.startsWith('206')).length).toBeGreaterThan(4)
    expect(server.asked().some((line) => line.startsWith('200'))).toBe(true)
  })

  it('merges ranges that lie close and asks ahead for the others; each byte comes once', async () => {
    const server = await nginx({ plain: 'keepalive_requests 1000;' })
    const door = await openQuick(`${server.at['plain']}/file`, { requestCost: 2000 })
    const ranges = [
      { offset: 10, length: 20 },
      { offset: 8_188, length: 10 },
      { offset: 70_000, length: 1000 },
      { offset: 72_000, length: 1000 },
      { offset: 100_000, length: 90_000 },
      { offset: 200_000, length: 0 },
      { offset: 250_000, length: 1 },
      { offset: 399_999, length: 1 },
    ]
    const got: Uint8Array[] = []
    for await (const piece of door.readRanges?.(ranges) ?? []) got.push(Buffer.from(piece))
    const wanted = ranges.map(({ offset, length }) => file.subarray(offset, offset + length))
    expect(Buffer.concat(got).equals(Buffer.concat(wanted))).toBe(true)
    await door.close()
    const asked = server.asked()
    expect(asked[0]).toBe('206 bytes=0-8191')
    // What was begun in parallel may end in any order.
    expect(asked.slice(1).sort()).toEqual([
      '206 bytes=100000-189999',
      '206 bytes=250000-250000',
      '206 bytes=399999-399999',
      '206 bytes=70000-72999',
      '206 bytes=8192-8197',
    ])
  })

  it('waits for a slow line that makes progress, and is not fooled by compression', async () => {
    const server = await nginx({
      slow: 'limit_rate 1m;',
      zip: 'gzip on; gzip_types *; gzip_min_length 1; default_type text/plain;',
    })
    expect(await readAll(`${server.at['slow']}/file`, { rate: { windowMs: 3000, bytes: 4096 } })).toBe(true)
    expect(await readAll(`${server.at['zip']}/file`)).toBe(true)
  })

  it('names what the server refuses', async () => {
    const server = await nginx({
      plain: 'location /secret { return 403; } location /busy { return 503; } location /portal { return 511; }',
    })
    const at = server.at['plain']
    expect(await codeOf(`${at}/none`)).toBe('TRANSPORT_MISSING')
    expect(await codeOf(`${at}/secret`)).toBe('TRANSPORT_REFUSED')
    expect(await codeOf(`${at}/busy`)).toBe('TRANSPORT_SERVER')
    expect(await codeOf(`${at}/portal`)).toBe('TRANSPORT_WRONG_ANSWER')
    expect(await codeOf(`${at}/`)).toBe('TRANSPORT_REFUSED')
  })

  it('A17 redirects: to https and within it, never from https to http', async () => {
    const server = await nginx({
      plain: 'location /up { return 302 @tls@/file; }',
      tls: 'location /same { return 307 /file; } location /down { return 302 @plain@/file; }',
    })
    const tls = { ca: server.pki.ca }
    expect(await readAll(`${server.at['plain']}/up`, { tls })).toBe(true)
    expect(await readAll(`${server.at['tls']}/same`, { tls })).toBe(true)
    expect(await codeOf(`${server.at['tls']}/down`, { tls })).toBe('TRANSPORT_REDIRECT')
  })

  it('A17 TLS: the pinned authority and no other, and no switch that makes it careless', async () => {
    const server = await nginx({ tls: '' })
    const { ca, otherCa } = server.pki
    const url = `${server.at['tls']}/file`
    expect(await readAll(url, { tls: { ca } })).toBe(true)
    expect(await codeOf(url)).toBe('TRANSPORT_TLS')
    expect(await codeOf(url, { tls: { ca: otherCa } })).toBe('TRANSPORT_TLS')
    // Another name than the certificate's.
    expect(await codeOf(url.replace('127.0.0.1', '127.0.0.2'), { tls: { ca } })).toMatch(/^TRANSPORT_(TLS|LOST)$/)
    const before = process.env['NODE_TLS_REJECT_UNAUTHORIZED']
    process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0'
    onTestFinished(() => {
      if (before === undefined) delete process.env['NODE_TLS_REJECT_UNAUTHORIZED']
      else process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = before
    })
    expect(await codeOf(url)).toBe('TRANSPORT_TLS')
    expect(await codeOf(url, { tls: { ca: otherCa } })).toBe('TRANSPORT_TLS')
    expect(await codeOf(url, { tls: { ca: 'not a certificate' } })).toBe('TRANSPORT_TLS')
  })

  it('client certificates: the right one, none, one of a stranger, one that does not fit its key', async () => {
    const server = await nginx({ tls: 'ssl_verify_client on;' })
    const { ca, client, strange } = server.pki
    const url = `${server.at['tls']}/file`
    expect(await readAll(url, { tls: { ca, ...client } })).toBe(true)
    expect(await codeOf(url, { tls: { ca } })).toBe('TRANSPORT_REFUSED')
    expect(await codeOf(url, { tls: { ca, ...strange } })).toBe('TRANSPORT_REFUSED')
    expect(await codeOf(url, { tls: { ca, cert: client.cert, key: strange.key } })).toBe('TRANSPORT_TLS')
  })

  it('proxies: plain requests and tunnels go through, exceptions do not', async () => {
    const server = await nginx({ plain: '', tls: '' })
    const { ca } = server.pki
    const proxy = await startProxy()
    const withLogin = proxy.url.replace('//', '//edge:se%20cret@')
    const env = { http_proxy: withLogin, HTTPS_PROXY: proxy.url }
    expect(await readAll(`${server.at['plain']}/file`, { env })).toBe(true)
    expect(proxy.asked[0]).toBe(`GET ${server.at['plain']}/file Basic ${btoa('edge:se cret')}`)
    expect(await readAll(`${server.at['tls']}/file`, { env, tls: { ca } })).toBe(true)
    expect(proxy.asked.at(-1)).toBe(`CONNECT ${server.at['tls']?.slice('https://'.length)}`)
    // The tunnel hides nothing from the check of the certificate.
    expect(await codeOf(`${server.at['tls']}/file`, { env })).toBe('TRANSPORT_TLS')
    const before = proxy.asked.length
    expect(await readAll(`${server.at['plain']}/file`, { env: { ...env, NO_PROXY: 'example.org, 127.0.0.1' } })).toBe(
      true,
    )
    expect(proxy.asked.length).toBe(before)
  })
})

describe("the project's own server", () => {
  it('serves an install with the same journal as nginx or a file would', async () => {
    const dir = scratch()
    const bundle = await makeBundle(dir, 'one', { boot: noise(4096 * 30), rootfs: noise(4096 * 300, 'r') })
    const asked: string[] = []
    const server = await serveFolder(dir, { port: 0, host: '127.0.0.1', log: (line) => void asked.push(line) })
    onTestFinished(() => {
      server.closeAllConnections()
      server.close()
    })
    const { port } = server.address() as AddressInfo
    const plan = { trusted: bundle.trusted }
    const run = await runInstall(() => openQuick(`http://127.0.0.1:${port}/one.bundle`), plan)
    expect(run).toMatchObject({ code: 'accepted', holds: true })
    expect(run.journal).toBe((await runInstall(() => openFileDoor(bundle.path), plan)).journal)
    expect(asked.length).toBeGreaterThan(1)
    expect(asked.every((line) => line.startsWith('GET /one.bundle 206 bytes='))).toBe(true)
  })
})

describe('proxies that do not do as they should', () => {
  it('A17 refuse, stay silent, speak into the tunnel, or are not there', async () => {
    const url = 'https://127.0.0.1:9/file'
    for (const status of [403, 407, 502]) {
      const { url: proxy } = await startProxy({ status })
      expect(await codeOf(url, { env: { https_proxy: proxy } }), String(status)).toBe('TRANSPORT_PROXY')
    }
    const web = await serve((request, response) => sendFile(request, response, file))
    const target = `https://${new URL(web.url).host}/file`
    const ahead = await startProxy({ ahead: '\x16\x03\x03' })
    expect(await codeOf(target, { env: { https_proxy: ahead.url } })).toBe('TRANSPORT_PROXY')
    const silent = await startProxy({ silent: true })
    expect(await codeOf(url, { env: { https_proxy: silent.url }, answerMs: 30 })).toBe('TRANSPORT_STALLED')
    expect(await codeOf(url, { env: { https_proxy: 'http://127.0.0.1:1' } })).toBe('TRANSPORT_LOST')
    const login = await startProxy({ status: 407 })
    expect(await codeOf(web.url, { env: { http_proxy: login.url } })).toBe('TRANSPORT_PROXY')
  })

  it('which proxy: by scheme, upper and lower case, exceptions by host, domain and port', () => {
    const env = { http_proxy: 'http://low:1', HTTP_PROXY: 'http://up:2', HTTPS_PROXY: 'secure:3' }
    const of = (url: string, more: Record<string, string> = {}) => proxyFor(new URL(url), { ...env, ...more })?.host
    expect(of('http://a.example/')).toBe('low:1')
    expect(of('https://a.example/')).toBe('secure:3')
    expect(of('http://a.example/', { http_proxy: '' })).toBe('up:2')
    // Behind CGI a client's header would choose the proxy.
    expect(of('http://a.example/', { http_proxy: '', REQUEST_METHOD: 'GET' })).toBeUndefined()
    expect(proxyFor(new URL('https://a/'), { ALL_PROXY: 'http://all:4' })?.host).toBe('all:4')
    expect(proxyFor(new URL('https://a/'), {})).toBeUndefined()
    for (const [list, host, excepted] of [
      ['*', 'a.example', true],
      ['example', 'a.example', true],
      ['.example', 'a.example', true],
      ['*.example', 'a.example', true],
      ['example', 'badexample', false],
      ['A.Example', 'a.example', true],
      ['a.example:80', 'a.example', true],
      ['a.example:8080', 'a.example', false],
      ['a.example:8080', 'a.example:8080', true],
      ['127.0.0.1 b', '127.0.0.1', true],
      ['[::1]', '[::1]', true],
      ['::1', '[::1]', true],
      ['', 'a.example', false],
    ] as const)
      expect(of(`http://${host}/`, { no_proxy: list }) === undefined, `${list} ${host}`).toBe(excepted)
    for (const wrong of ['socks5://a:1', 'https://a:1', 'http://', '://'])
      expect(() => of('http://a/', { http_proxy: wrong }), wrong).toThrow(/proxy for http/)
  })
})
