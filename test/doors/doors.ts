import type { ServerResponse } from 'node:http'
import type { ByteSource } from '../../base/source.ts'
import { bundleErrors } from '../../bundle/errors.ts'
import { openFileDoor } from '../../device/doors/file.ts'
import { asked, openQuick, serve } from '../device-install/web.ts'
import type { Medium } from './medium.ts'
import { openOnBroker } from './mqtt.ts'

/**
 * Every way in, for the tests that hold them equal. A new door is one more entry: what stands behind it is a `Medium`,
 * and all that the others are asked is asked of it.
 */
export interface DoorFactory {
  readonly name: string
  open(medium: Medium, limits: { readonly stallMs: number }): Promise<ByteSource>
  /** How this door names what it cannot repair. */
  readonly codes: {
    /** The size is as said, but the bytes end before. */
    readonly ends: RegExp
    readonly gone: string
    /** Another file is there, in the middle of a read. */
    readonly changes: string
    /** A web page instead of the bundle. */
    readonly page: string
  }
  /** True when a link that breaks is made again within one install. */
  readonly reconnects: boolean
}

export const DOORS: readonly DoorFactory[] = [
  {
    name: 'file',
    open: (medium, { stallMs }) => openFileDoor('/media/stick/a.bundle', { stallMs, open: async () => stick(medium) }),
    codes: {
      ends: /^TRANSPORT_FILE_FAILED$/,
      gone: 'TRANSPORT_FILE_FAILED',
      changes: 'BUNDLE_DIGEST',
      page: 'BUNDLE_NOT_A_BUNDLE',
    },
    reconnects: false,
  },
  {
    name: 'http',
    open: (medium, limits) => openWeb(medium, limits.stallMs, { ranges: true, etag: true }),
    codes: {
      ends: /^TRANSPORT_LOST$/,
      gone: 'TRANSPORT_LOST',
      changes: 'TRANSPORT_CHANGED',
      page: 'TRANSPORT_WRONG_ANSWER',
    },
    reconnects: true,
  },
  {
    name: 'http without validators',
    open: (medium, limits) => openWeb(medium, limits.stallMs, { ranges: true, etag: false }),
    codes: {
      ends: /^TRANSPORT_LOST$/,
      gone: 'TRANSPORT_LOST',
      changes: 'BUNDLE_DIGEST',
      page: 'TRANSPORT_WRONG_ANSWER',
    },
    reconnects: true,
  },
  {
    name: 'http without ranges',
    open: (medium, limits) => openWeb(medium, limits.stallMs, { ranges: false, etag: true }),
    codes: {
      // Each try reads it all again.
      ends: /^TRANSPORT_(LOST|NO_RANGES)$/,
      gone: 'TRANSPORT_LOST',
      changes: 'TRANSPORT_CHANGED',
      page: 'TRANSPORT_WRONG_ANSWER',
    },
    reconnects: true,
  },
  {
    name: 'mqtt',
    open: openOnBroker,
    codes: {
      // The publisher finds that it cannot read what it announced.
      ends: /^TRANSPORT_CHANGED$/,
      gone: 'TRANSPORT_LOST',
      changes: 'TRANSPORT_CHANGED',
      page: 'BUNDLE_NOT_A_BUNDLE',
    },
    reconnects: true,
  },
]

/** A file on a medium that fails as told: what the kernel's read calls would give. */
function stick(medium: Medium): ByteSource {
  return {
    name: 'stick',
    size: medium.size,
    async *read(offset, length, { signal } = {}) {
      for (let at = offset; at < offset + length; ) {
        signal?.throwIfAborted()
        const piece = medium.next(at, offset + length)
        if (piece === 'stall') await new Promise(() => undefined)
        else if (typeof piece === 'string') throw bundleErrors.SOURCE_READ(`the stick at byte ${at}: EIO`)
        else {
          at += piece.length
          yield piece
        }
      }
    },
    close: async () => undefined,
  }
}

async function openWeb(medium: Medium, stallMs: number, does: { ranges: boolean; etag: boolean }): Promise<ByteSource> {
  const web = await serve((request, response) => {
    if (!medium.reachable) return void response.destroy()
    if (!does.ranges) delete request.headers.range
    const { from, to, ranged } = asked(request, medium.size)
    const etag = medium.changed ? '"2"' : '"1"'
    const whole = request.headers['if-range'] !== undefined && request.headers['if-range'] !== etag
    if (does.etag) response.setHeader('ETag', etag)
    const range = ranged && !whole ? { from, to } : { from: 0, to: medium.size - 1 }
    const length = range.to + 1 - range.from
    // Without a length an answer may be of any; a whole file must say one.
    if (medium.fault.kind !== 'late' || !ranged) response.setHeader('Content-Length', length)
    if (ranged && !whole) response.setHeader('Content-Range', `bytes ${range.from}-${range.to}/${medium.size}`)
    response.writeHead(ranged && !whole ? 206 : 200)
    response.flushHeaders()
    send(medium, response, range.from, ranged ? medium.endOf(range.to + 1) : range.to + 1)
  })
  return openQuick(web.url, { rate: { windowMs: stallMs, bytes: 1 }, patience: { firstMs: 1, maxMs: 4, tries: 5 } })
}

/** Writes as fast as the other side reads, so that bytes given are bytes taken, within what sockets hold. */
function send(medium: Medium, response: ServerResponse, from: number, end: number): void {
  let at = from
  const more = (): void => {
    while (!response.destroyed) {
      const piece = at >= end ? 'end' : medium.next(at, end)
      if (piece === 'stall') return
      if (piece === 'end' && at >= end) return void response.end()
      if (typeof piece === 'string') return void setTimeout(() => response.destroy(), 5)
      at += piece.length
      if (!response.write(piece)) return void response.once('drain', more)
    }
  }
  response.on('error', () => undefined)
  more()
}
