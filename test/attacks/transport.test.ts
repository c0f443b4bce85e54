import { existsSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import type { ServerResponse } from 'node:http'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { ByteSource } from '../../base/source.ts'
import { doorErrors } from '../../device/doors/errors.ts'
import { noise, run, scratch } from '../bundle/tools.ts'
import { tampered } from '../helpers/tampered.ts'
import { signedRoot } from '../keys/helpers.ts'
import { Device } from './device.ts'
import { forge } from './forge.ts'
import { attempt, refused, WHOLE } from './refused.ts'
import { freshness, PublishSite } from './web.ts'

// Servers, caches and sticks that send too much, too little, something else, or something else the second time.

const anchor = await signedRoot({}, [1, 2])

/** Sends as fast as it is read, for ever; counts. */
function endless(sent: { bytes: number }, headers: Record<string, string> = {}) {
  return (response: ServerResponse) => {
    response.writeHead(200, headers)
    const piece = Buffer.alloc(16384, 0x7b)
    const more = (): void => {
      while (!response.destroyed && sent.bytes < 1e9) {
        sent.bytes += piece.length
        if (!response.write(piece)) return void response.once('drain', more)
      }
    }
    response.on('error', () => undefined)
    more()
  }
}

describe('A6 endless data', () => {
  it('the channel file: longer than allowed, without end, or with a length that is not true', async () => {
    const site = await PublishSite.open()
    const device = await Device.make(scratch(), { anchor, channel: site.channel })
    const start = await device.fingerprint()
    const good = await freshness()
    for (const [what, headers] of [
      ['without a length', {}],
      ['with a length of 1 GB', { 'content-length': '1000000000' }],
      ['with a length just over the limit', { 'content-length': String(16 * 1024 + 1) }],
    ] as const) {
      const sent = { bytes: 0 }
      site.files.set('/channels/stable.json', endless(sent, headers))
      refused(what, await attempt(() => device.poll()))
      // What the sockets took before they were closed; nothing is kept.
      expect(sent.bytes, what).toBeLessThan(20e6)
    }
    for (const [what, length] of [
      ['one byte more than the signed envelope', 1],
      ['a megabyte more', 1 << 20],
    ] as const) {
      site.files.set('/channels/stable.json', Buffer.concat([good, Buffer.alloc(length, 0x20)]))
      refused(what, await attempt(() => device.poll()))
    }
    site.files.set('/channels/stable.json', Buffer.alloc(0))
    refused('nothing', await attempt(() => device.poll()))
    expect(await device.fingerprint()).toBe(start)
  })

  it('the bundle: no byte behind the signed size is ever written', async () => {
    const site = await PublishSite.open()
    const device = await Device.make(scratch(), { anchor })
    const start = await device.fingerprint()
    const bytes = await forge()
    site.files.set('/more', Buffer.concat([bytes, noise(3 << 20)]))
    refused('3 MiB more', await attempt(() => device.install(`${site.origin}/more`)), 'BUNDLE_TRAILING_BYTES')
    const sent = { bytes: 0 }
    site.files.set('/endless', endless(sent))
    refused('without end', await attempt(() => device.install(`${site.origin}/endless`)))
    expect(sent.bytes).toBeLessThan(20e6)
    expect(await device.fingerprint()).toBe(start)
  })
})

describe('servers that hold no trust', () => {
  it('A17 malicious mirror: garbage, pages, nothing, another file; a good place then serves', async () => {
    const site = await PublishSite.open()
    const device = await Device.make(scratch(), { anchor })
    const start = await device.fingerprint()
    const bytes = await forge()
    site.files.set('/garbage', noise(bytes.length))
    site.files.set('/page', Buffer.from(`<!doctype html>${' '.repeat(5000)}`))
    site.files.set('/half', bytes.subarray(0, bytes.length / 2))
    site.files.set('/anchor', anchor)
    site.files.set('/moved', (response) => void response.writeHead(302, { location: 'file:///etc/passwd' }).end())
    site.files.set('/loop', (response) => void response.writeHead(302, { location: '/loop' }).end())
    site.files.set('/forbidden', (response) => void response.writeHead(403).end())
    for (const path of ['garbage', 'page', 'half', 'anchor', 'moved', 'loop', 'forbidden', 'none']) {
      refused(path, await attempt(() => device.install(`${site.origin}/${path}`)))
      expect(await device.fingerprint()).toBe(start)
      // Which place it was is said.
      expect(device.core.body.outcomes.at(-1)?.ok).toBe(false)
    }
    site.files.set('/good', bytes)
    expect(await attempt(() => device.install(`${site.origin}/good`))).toBe('accepted')
  })

  it('C3 hostile file names and places: a name is a name, and nothing of it runs', async () => {
    const folder = scratch()
    const device = await Device.make(folder, { anchor })
    const start = await device.fingerprint()
    const bytes = await forge({ by: [99] })
    const names = [
      '$(touch owned)',
      '`touch owned`',
      '; touch owned',
      'a\nb',
      '-rf',
      '%s%n',
      'x;y|z&',
      '…',
      '\u202egnp.exe',
      "'",
    ]
    for (const name of names) {
      const path = join(folder, name)
      writeFileSync(path, bytes)
      refused(JSON.stringify(name), await attempt(() => device.install(path)), 'SIGNATURE_UNKNOWN')
      refused(
        `${JSON.stringify(name)}, missing`,
        await attempt(() => device.install(`${path}.not`)),
        'TRANSPORT_MISSING',
      )
    }
    mkdirSync(join(folder, 'folder.bundle'))
    symlinkSync('loop.bundle', join(folder, 'loop.bundle'))
    symlinkSync('/proc/kmsg', join(folder, 'kmsg.bundle'))
    run('mkfifo', join(folder, 'fifo.bundle'))
    for (const name of ['folder', 'loop', 'kmsg', 'fifo'])
      refused(name, await attempt(() => device.install(join(folder, `${name}.bundle`))))
    for (const path of ['/dev/zero', '/dev/null', '/proc/self/mem', '', '.'])
      refused(`path '${path}'`, await attempt(() => device.install(path)))
    expect(existsSync(join(folder, 'owned')) || existsSync('owned')).toBe(false)
    expect(device.ran).toEqual([])
    expect(await device.fingerprint()).toBe(start)
  })
})

describe('sticks and files that change', () => {
  it('C1 changed between check and use: other bytes on the second or third read are never armed', async () => {
    const folder = scratch()
    const path = join(folder, 'stick.bundle')
    const bytes = await forge()
    writeFileSync(path, bytes)
    let lie: ((at: number, piece: Uint8Array, readSoFar: number) => Uint8Array) | undefined
    const tamper = (source: ByteSource) => (lie === undefined ? source : tampered(source, lie))
    const device = await Device.make(folder, { anchor, tamper })
    for (const pass of [1, 2])
      for (const target of [
        700,
        2500,
        5000,
        bytes.indexOf('data/boot\0') + 600,
        bytes.indexOf('data/rootfs\0') + 70_000,
        bytes.length - 5,
      ]) {
        let seen = 0
        lie = (at, piece) => {
          if (at > target || at + piece.length <= target || seen++ < pass) return piece
          const changed = Uint8Array.from(piece)
          changed[target - at] = (changed[target - at] ?? 0) ^ 4
          return changed
        }
        const code = await attempt(() => device.install(path))
        const state = await device.bootState()
        if (code === 'accepted') {
          // It was not read that often: then what stands in the slot is what was signed.
          expect(seen).toBeLessThanOrEqual(pass)
          expect(
            await device.ports.engine.slotFault('b', await signedStatement(device), new AbortController().signal),
          ).toBeUndefined()
          await device.core.update((body) => ({ ...body, state: { name: 'idle' } }))
        } else {
          refused(`byte ${target} on read ${pass + 1}`, code)
          expect(state).toMatchObject({ primary: 'a', trial: undefined })
        }
        await device.reset()
      }
  })

  it('C2 a stick swapped for another genuine one of the same name: never a mixture', async () => {
    const folder = scratch()
    const path = join(folder, 'stick.bundle')
    const bytes = await forge()
    const other = await forge({ rootfs: noise(30 * 4096, 'other'), release: { number: { epoch: 0, counter: 9 } } })
    expect(other.length).toBe(bytes.length)
    writeFileSync(path, bytes)
    let swapAfter = 0
    const tamper = (source: ByteSource) =>
      tampered(source, (at, piece, readSoFar) =>
        readSoFar > swapAfter ? other.subarray(at, at + piece.length) : piece,
      )
    const device = await Device.make(folder, { anchor, tamper })
    const step = WHOLE ? 0.01 : 0.1
    for (let part = step; part < 2; part += step) {
      swapAfter = Math.floor(bytes.length * part)
      const code = await attempt(() => device.install(path))
      if (code === 'accepted') {
        // One of the two, whole.
        const statement = await signedStatement(device)
        expect(await device.ports.engine.slotFault('b', statement, new AbortController().signal)).toBeUndefined()
        await device.core.update((body) => ({ ...body, state: { name: 'idle' } }))
      } else {
        refused(`swapped after ${part} reads`, code)
        expect(await device.bootState()).toMatchObject({ primary: 'a', trial: undefined })
      }
      await device.reset()
    }
  })

  it('A15 C2 partial bundle: a stick pulled at any percent leaves nothing that boots, and the next try works', async () => {
    const folder = scratch()
    const path = join(folder, 'stick.bundle')
    const bytes = await forge()
    writeFileSync(path, bytes)
    let most = Number.POSITIVE_INFINITY
    let read = 0
    const tamper = (source: ByteSource) =>
      tampered(source, (_, piece, readSoFar) => {
        if (readSoFar > most) throw doorErrors.TRANSPORT_FILE_FAILED('the stick is gone')
        read = readSoFar
        return piece
      })
    mkdirSync(join(folder, 'whole'))
    const whole = await Device.make(join(folder, 'whole'), { anchor, tamper })
    expect(await attempt(() => whole.install(path))).toBe('accepted')
    // The bundle is read twice, once to verify it, once to install it; what lies between its members the first time only.
    const all = read
    expect(all).toBeGreaterThan(bytes.length * 1.5)
    const device = await Device.make(folder, { anchor, tamper })
    const step = WHOLE ? 0.005 : 0.04
    for (let part = 0; part < 0.995; part += step) {
      most = Math.floor(all * part)
      refused(
        `pulled after ${Math.round(part * 100)} %`,
        await attempt(() => device.install(path)),
        'TRANSPORT_FILE_FAILED',
      )
      expect(await device.bootState()).toMatchObject({ primary: 'a', trial: undefined })
      expect(device.core.body.state.name).toBe('idle')
    }
    most = Number.POSITIVE_INFINITY
    expect(await attempt(() => device.install(path))).toBe('accepted')
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
  })
})

/** What the device keeps about slot b. */
async function signedStatement(device: Device) {
  const stored = await device.ports.engine.storedRelease('b')
  if (stored === undefined) throw new Error('nothing is kept about slot b')
  return stored.statement
}
