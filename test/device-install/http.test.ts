import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import https from 'node:https'
import net, { type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { readExactly } from '../../base/source.ts'
import { haveTool, noise, scratch } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { asked, openQuick, sendFile, serve } from './web.ts'

const file = noise(300_000)
const FIRST = 8192
const read = async (door: Awaited<ReturnType<typeof openQuick>>, from: number, length: number) =>
  Buffer.from(await readExactly(door, from, length))
// toEqual on large buffers takes half a second each.
const sameBytes = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0
const openCode = (url: string, options = {}) => codeOfAsync(() => openQuick(url, options))

describe('HTTP door with a proper server', () => {
  it('reads any range exactly, over one connection, with If-Range on every part', async () => {
    const web = await serve((request, response) => sendFile(request, response, file))
    const door = await openQuick(web.url)
    expect(door.size).toBe(file.length)
    for (const [from, length] of [
      [0, 10],
      [FIRST - 5, 10],
      [FIRST, 1],
      [100_000, 150_000],
      [file.length - 1, 1],
      [0, file.length],
    ] as const)
      expect(sameBytes(await read(door, from, length), file.subarray(from, from + length))).toBe(true)
    expect(await read(door, 5, 0)).toEqual(Buffer.alloc(0))
    expect(web.connections).toBe(1)
    expect(web.seen[0]).toMatchObject({ method: 'GET', range: 'bytes=0-8191', ifRange: undefined })
    expect(web.seen.slice(1).map((one) => one.ifRange)).toEqual(Array(web.seen.length - 1).fill('"1"'))
    expect(web.seen.map((one) => one.range)).toContain(`bytes=${FIRST}-${FIRST + 4}`)
  })

  it('takes one request for a small file', async () => {
    const web = await serve((request, response) => sendFile(request, response, Buffer.from('{"a":1}\n')))
    const door = await openQuick(web.url)
    expect((await read(door, 0, door.size)).toString()).toBe('{"a":1}\n')
    expect(web.seen).toHaveLength(1)
  })

  it('uses the date as validator when the ETag is weak or missing', async () => {
    const date = 'Sat, 21 Nov 2026 00:00:00 GMT'
    for (const headers of [{ lastModified: date }, { lastModified: date, etag: 'W/"1"' }]) {
      const web = await serve((request, response) => sendFile(request, response, file, headers))
      const door = await openQuick(web.url)
      expect(sameBytes(await read(door, 200_000, 10), file.subarray(200_000, 200_010))).toBe(true)
      expect(web.seen[1]?.ifRange).toBe(date)
    }
  })

  it('never yields beyond what was asked, and refuses to read beyond the end', async () => {
    const web = await serve((request, response) => sendFile(request, response, file))
    const door = await openQuick(web.url)
    expect(await codeOfAsync(() => readExactly(door, file.length - 5, 6))).toBe('TRANSPORT_SHORT')
    expect(await codeOfAsync(() => openQuick(`${web.url}#frag`).then((other) => readExactly(other, 0, 1)))).toBe(
      'accepted',
    )
  })
})

describe('HTTP door with broken connections', () => {
  it('resumes at the exact byte, whatever the place of the break', async () => {
    const breaks = [1, 17, 1000, 70_000, 3, 40_000]
    const web = await serve((request, response, count) => {
      const limit = count === 1 ? undefined : breaks[count - 2]
      sendFile(request, response, file, { etag: '"1"' }, limit)
    })
    const door = await openQuick(web.url, { patience: { firstMs: 1, maxMs: 2, tries: 8 } })
    expect(sameBytes(await read(door, FIRST, file.length - FIRST), file.subarray(FIRST))).toBe(true)
    let at = FIRST
    for (const [i, limit] of breaks.entries()) {
      expect(web.seen[i + 1]?.range).toBe(`bytes=${at}-${file.length - 1}`)
      at += limit
    }
    expect(web.seen).toHaveLength(breaks.length + 2)
  })

  it('resumes while it opens', async () => {
    const web = await serve((request, response, count) =>
      sendFile(request, response, file, { etag: '"1"' }, count < 3 ? 100 : undefined),
    )
    const door = await openQuick(web.url)
    expect(sameBytes(await read(door, 0, file.length), file)).toBe(true)
  })

  it('gives up after a bounded number of tries without progress', async () => {
    const pauses: number[] = []
    const clock = {
      now: () => performance.now(),
      sleep: async (ms: number, signal?: AbortSignal) => {
        // A long sleep is a timeout that never comes in this test.
        if (ms >= 1000)
          await new Promise((_, reject) => signal?.addEventListener('abort', () => reject(new Error('x'))))
        pauses.push(ms)
      },
    }
    const web = await serve((request, response, count) =>
      count === 1 ? sendFile(request, response, file) : response.destroy(),
    )
    const patience = { firstMs: 16, maxMs: 64, tries: 6 }
    const door = await openQuick(web.url, { clock, patience, random: () => 0.5 })
    expect(await codeOfAsync(() => readExactly(door, FIRST, 10))).toBe('TRANSPORT_LOST')
    expect(pauses).toEqual([12, 24, 48, 48, 48])
    expect(web.seen).toHaveLength(7)
  })

  it('A7 slow retrieval: does not take a byte a time for progress', async () => {
    const web = await serve((request, response, count) =>
      sendFile(request, response, file, { etag: '"1"' }, count === 1 ? undefined : 1),
    )
    const door = await openQuick(web.url)
    expect(await codeOfAsync(() => readExactly(door, FIRST, 100_000))).toBe('TRANSPORT_LOST')
    expect(web.seen).toHaveLength(5)
  })

  it('refuses a connection that nobody answers', async () => {
    const web = await serve(() => undefined)
    expect(await openCode(web.url, { answerMs: 30 })).toBe('TRANSPORT_STALLED')
    expect(web.seen).toHaveLength(4)
    expect(await openCode('http://127.0.0.1:1/file')).toBe('TRANSPORT_LOST')
  })

  it('A7 slow retrieval: drops a connection that is too slow, and keeps what came', async () => {
    const web = await serve((request, response, count) => {
      if (count !== 2) return sendFile(request, response, file)
      const { from, to } = asked(request, file.length)
      response.writeHead(206, { 'Content-Range': `bytes ${from}-${to}/${file.length}`, ETag: '"1"' })
      response.write(file.subarray(from, from + 1000))
    })
    const door = await openQuick(web.url, { rate: { windowMs: 50, bytes: 100 } })
    expect(sameBytes(await read(door, FIRST, 50_000), file.subarray(FIRST, FIRST + 50_000))).toBe(true)
    expect(web.seen[2]?.range).toBe(`bytes=${FIRST + 1000}-${FIRST + 49_999}`)
  })

  it('A7 slow retrieval: stops with TRANSPORT_STALLED when it never gets faster', async () => {
    const web = await serve((request, response, count) => {
      if (count === 1) return sendFile(request, response, file)
      const { from, to } = asked(request, file.length)
      response.writeHead(206, { 'Content-Range': `bytes ${from}-${to}/${file.length}`, ETag: '"1"' })
      response.flushHeaders()
    })
    const door = await openQuick(web.url, { rate: { windowMs: 30, bytes: 100 } })
    expect(await codeOfAsync(() => readExactly(door, FIRST, 50_000))).toBe('TRANSPORT_STALLED')
  })

  it('waits through errors of the server, then gives up', async () => {
    const patient = await serve((request, response, count) =>
      count % 3 === 0 ? sendFile(request, response, file) : response.writeHead(503, { 'Retry-After': '0' }).end('busy'),
    )
    const door = await openQuick(patient.url)
    expect(sameBytes(await read(door, FIRST, 10), file.subarray(FIRST, FIRST + 10))).toBe(true)
    for (const status of [500, 502, 503, 429, 408]) {
      const web = await serve((_, response) => response.writeHead(status).end())
      expect(await openCode(web.url)).toBe('TRANSPORT_SERVER')
      expect(web.seen).toHaveLength(4)
    }
  })

  it('ends with the reason of the signal, at once', async () => {
    const web = await serve((request, response, count) => {
      if (count === 1) sendFile(request, response, file)
      else sendFile(request, response, file, { etag: '"1"' }, 2000)
    })
    const door = await openQuick(web.url, { patience: { firstMs: 60_000, maxMs: 60_000, tries: 9 } })
    const abort = new AbortController()
    const reason = new Error('enough')
    const reading = (async () => {
      for await (const piece of door.read(FIRST, 100_000, { signal: abort.signal }))
        if (piece.length > 0) abort.abort(reason)
    })()
    await expect(reading).rejects.toBe(reason)
    const never = await serve(() => undefined)
    const opening = new AbortController()
    setTimeout(() => opening.abort(reason), 20)
    await expect(openQuick(never.url, { signal: opening.signal })).rejects.toBe(reason)
  })
})

describe('HTTP door with servers that do not do ranges', () => {
  it('reads on in one body while the ranges go forward', async () => {
    const web = await serve((request, response) => {
      request.headers.range = undefined
      sendFile(request, response, file)
    })
    const door = await openQuick(web.url)
    for (const [from, length] of [
      [0, 70_000],
      [70_000, 10],
      [100_000, 100_000],
      [250_000, 50_000],
    ] as const)
      expect(sameBytes(await read(door, from, length), file.subarray(from, from + length))).toBe(true)
    expect(web.seen).toHaveLength(2)
  })

  it('skips again after a break, and stops when that takes too much', async () => {
    const once = await serve((request, response, count) => {
      request.headers.range = undefined
      sendFile(request, response, file, { etag: '"1"' }, count === 2 ? 150_000 : undefined)
    })
    const door = await openQuick(once.url)
    expect(sameBytes(await read(door, FIRST, 200_000), file.subarray(FIRST, FIRST + 200_000))).toBe(true)

    const web = await serve((request, response) => {
      request.headers.range = undefined
      sendFile(request, response, file)
    })
    const back = await openQuick(web.url)
    const code = await codeOfAsync(async () => {
      for (let i = 0; i < 10; i++) await readExactly(back, 200_000, 50_000)
    })
    expect(code).toBe('TRANSPORT_NO_RANGES')
  })

  it('goes over to a whole body when ranges stop in the middle', async () => {
    const web = await serve((request, response, count) => {
      if (count > 1) request.headers.range = undefined
      sendFile(request, response, file)
    })
    const door = await openQuick(web.url)
    expect(sameBytes(await read(door, 100_000, 150_000), file.subarray(100_000, 250_000))).toBe(true)
  })
})

describe('HTTP door with wrong answers', () => {
  const page = Buffer.from('<!DOCTYPE html><html><body>Welcome to the hotel</body></html>')

  it('A17 wrong server: knows a captive portal, by type or by content', async () => {
    for (const [body, type] of [
      [page, 'text/html; charset=utf-8'],
      [page, 'application/octet-stream'],
      [Buffer.from('\ufeff \n<HTML>'), 'text/plain'],
      [Buffer.from('<p>login</p>'), 'text/html'],
    ] as const) {
      const web = await serve((request, response) => sendFile(request, response, body, { type }))
      expect(await openCode(web.url)).toBe('TRANSPORT_WRONG_ANSWER')
    }
    // A server that calls everything a page is only clumsy.
    const clumsy = await serve((request, response) => sendFile(request, response, file, { type: 'text/html' }))
    expect(await openCode(clumsy.url)).toBe('accepted')
  })

  it('knows one that appears in the middle', async () => {
    const web = await serve((request, response, count) => {
      if (count === 1) return sendFile(request, response, file)
      response.writeHead(200, { 'Content-Type': 'text/html', 'Content-Length': page.length }).end(page)
    })
    const door = await openQuick(web.url)
    expect(await codeOfAsync(() => readExactly(door, FIRST, 10))).toBe('TRANSPORT_WRONG_ANSWER')
  })

  it('refuses answers that are not what was asked', async () => {
    const size = file.length
    const answers: [number, Record<string, string>][] = [
      [206, {}],
      [206, { 'Content-Range': `bytes 5-8196/${size}` }],
      [206, { 'Content-Range': `bytes 0-8192/${size}` }],
      [206, { 'Content-Range': `bytes 0-8191/*` }],
      [206, { 'Content-Range': `bytes 0-8191/100` }],
      [206, { 'Content-Range': `bytes 0-8191/${size}`, 'Content-Type': 'multipart/byteranges; boundary=x' }],
      [206, { 'Content-Range': `bytes 0-8191/${size}`, 'Content-Encoding': 'gzip' }],
      [200, { 'Transfer-Encoding': 'chunked' }],
      [204, {}],
      [304, {}],
      [511, {}],
    ]
    for (const [status, headers] of answers) {
      const web = await serve((_, response) => response.writeHead(status, headers).end())
      expect(await openCode(web.url), `${status} ${JSON.stringify(headers)}`).toBe('TRANSPORT_WRONG_ANSWER')
    }
    const shell = net.createServer((socket) => socket.end('SSH-2.0-OpenSSH_9\r\n'))
    await new Promise<void>((resolve) => shell.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void shell.close())
    expect(await openCode(`http://127.0.0.1:${(shell.address() as AddressInfo).port}/`)).toBe('TRANSPORT_WRONG_ANSWER')
  })

  it('A6 endless data: cuts a part that is too long, and goes on after one that is too short', async () => {
    const web = await serve((request, response, count) => {
      if (count === 1) return sendFile(request, response, file)
      const { from, to } = asked(request, file.length)
      if (count === 2) {
        // Chunked: more bytes than the range says.
        response.writeHead(206, { 'Content-Range': `bytes ${from}-${to}/${file.length}`, ETag: '"1"' })
        response.end(file.subarray(from, to + 20_000))
      } else {
        const end = Math.min(to, from + 69_999)
        response.writeHead(206, {
          'Content-Range': `bytes ${from}-${end}/${file.length}`,
          'Content-Length': end + 1 - from,
        })
        response.end(file.subarray(from, end + 1))
      }
    })
    const door = await openQuick(web.url)
    expect(sameBytes(await read(door, 70_000, 1000), file.subarray(70_000, 71_000))).toBe(true)
    expect(sameBytes(await read(door, 70_000, 200_000), file.subarray(70_000, 270_000))).toBe(true)
    expect(web.seen).toHaveLength(5)
  })

  it('notices that the file changed', async () => {
    const other = noise(file.length, 'other')
    const date = (day: number) => `Sat, ${day} Nov 2026 00:00:00 GMT`
    const cases: [Parameters<typeof sendFile>[3], Uint8Array, Parameters<typeof sendFile>[3]][] = [
      [{ etag: '"1"' }, other, { etag: '"2"' }],
      [{ etag: 'W/"1"' }, other, { etag: 'W/"2"' }],
      [{ lastModified: date(20) }, other, { lastModified: date(21) }],
      [{}, file.subarray(0, file.length - 1), {}],
    ]
    for (const [before, bytes, after] of cases) {
      const web = await serve((request, response, count) =>
        count === 1 ? sendFile(request, response, file, before) : sendFile(request, response, bytes, after),
      )
      const door = await openQuick(web.url)
      expect(await codeOfAsync(() => readExactly(door, 100_000, 10)), JSON.stringify(before)).toBe('TRANSPORT_CHANGED')
    }
  })

  it('names what is missing, refused, too large or not an address', async () => {
    for (const [status, code] of [
      [404, 'TRANSPORT_MISSING'],
      [410, 'TRANSPORT_MISSING'],
      [401, 'TRANSPORT_REFUSED'],
      [403, 'TRANSPORT_REFUSED'],
      [416, 'TRANSPORT_SHORT'],
    ] as const) {
      const web = await serve((_, response) => response.writeHead(status).end())
      expect(await openCode(web.url)).toBe(code)
      expect(web.seen).toHaveLength(1)
    }
    const web = await serve((request, response) => sendFile(request, response, file))
    expect(await openCode(web.url, { maxSize: 1000 })).toBe('TRANSPORT_TOO_LARGE')
    for (const address of ['ftp://example.org/x', 'file:///etc/passwd', 'no address', ''])
      expect(await openCode(address)).toBe('TRANSPORT_ADDRESS')
  })
})

describe('HTTP door and redirects', () => {
  it('follows a few, asks the target directly afterwards, and comes back when that expires', async () => {
    const web = await serve((request, response, count) => {
      if (request.url === '/file') response.writeHead(302, { Location: `/signed?token=${count}` }).end()
      else if (count === 3) response.writeHead(403).end()
      else sendFile(request, response, file)
    })
    const door = await openQuick(web.url)
    expect(sameBytes(await read(door, FIRST, 10), file.subarray(FIRST, FIRST + 10))).toBe(true)
    expect(web.seen.map((one) => one.url)).toEqual([
      '/file',
      '/signed?token=1',
      '/signed?token=1',
      '/file',
      '/signed?token=4',
    ])
    expect(door.name).not.toContain('token')
  })

  it('refuses loops, nowhere, and other schemes', async () => {
    for (const location of ['/file', undefined, 'file:///etc/passwd', 'http://[']) {
      const web = await serve((_, response) =>
        response.writeHead(302, location === undefined ? {} : { Location: location }).end(),
      )
      expect(await openCode(web.url), String(location)).toBe('TRANSPORT_REDIRECT')
      expect(web.seen.length).toBeLessThanOrEqual(6)
    }
  })

  it.skipIf(!haveTool('openssl'))('refuses an unknown certificate', async () => {
    const dir = scratch()
    const [key, cert] = [join(dir, 'key.pem'), join(dir, 'cert.pem')]
    const subject = [
      '-subj',
      '/CN=localhost',
      '-days',
      '2',
      '-nodes',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
    ]
    execFileSync('openssl', ['req', '-x509', ...subject, '-keyout', key, '-out', cert], { stdio: 'ignore' })
    const server = https.createServer({ key: readFileSync(key), cert: readFileSync(cert) }, (_, response) =>
      response.end(),
    )
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void server.close())
    expect(await openCode(`https://127.0.0.1:${(server.address() as AddressInfo).port}/`)).toBe('TRANSPORT_TLS')
  })
})
