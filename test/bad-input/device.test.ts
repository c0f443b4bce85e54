import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { freshState } from '../../bootloader/machine.ts'
import { TAR_BLOCK, tarHeader } from '../../bundle/tar.ts'
import { type Made, makeBundle, type Plan } from '../bundle/fixture.ts'
import { noise } from '../bundle/tools.ts'
import { asked, sendFile } from '../device-install/web.ts'
import { type DevicePlan, deviceLab, TestDevice } from '../helpers/device.ts'
import { have } from '../helpers/run.ts'
import { signedRoot } from '../keys/helpers.ts'
import { expectRefusal, type Wanted } from './expect.ts'

// Bad input to a device, by its real command: it names what it found and what it wanted and says what to do next, and
// neither a slot nor the boot state is touched.

let lab: Awaited<ReturnType<typeof deviceLab>>
let good: Made
const servers: Server[] = []

beforeAll(async () => {
  lab = await deviceLab()
})
afterAll(() => lab.remove())
afterEach(() => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections()
    server.close()
  }
})

/** Bundles live as long as the test that makes them; this one is wanted by many. */
async function goodBundle(): Promise<Made> {
  if (good === undefined) {
    const made = await makeBundle()
    const path = join(lab.base, 'good.bundle')
    copyFileSync(made.path, path)
    good = { ...made, path }
  }
  return good
}

function given(name: string, bytes: Uint8Array | string): string {
  const path = join(lab.base, name)
  writeFileSync(path, bytes)
  return path
}

async function bundleWith(plan: Plan): Promise<string> {
  return (await makeBundle(plan)).path
}

/** Runs `install` on a new device and expects the refusal, and that nothing was touched. */
async function refuses(source: string, wanted: Wanted, plan: DevicePlan = {}, wrap?: readonly string[]) {
  const device = await TestDevice.make(lab.base, lab.program, plan)
  const before = device.digests()
  const ran = await device.run(['install', source], wrap)
  expectRefusal({ exit: ran.exit, err: ran.err.replace(/^checking the file \d+%\n/gm, '') }, wanted)
  expect(device.digests()).toEqual(before)
  if (plan.missing !== 'bootstate') expect(await device.bootState()).toEqual(freshState('a'))
  return device
}

async function serve(answer: Parameters<typeof createServer>[1]): Promise<string> {
  const server = createServer(answer)
  servers.push(server)
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready))
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/r7.bundle`
}

describe('a file that is no bundle', () => {
  it('a truncated bundle', async () => {
    const { bytes } = await goodBundle()
    const size = bytes.length
    await refuses(given('cut.bundle', bytes.subarray(0, size - 5000)), {
      family: 'input',
      code: 'BUNDLE_TRUNCATED',
      says: [`${size - 5000}`, `${size}`],
    })
    await refuses(given('stump.bundle', bytes.subarray(0, 100)), {
      family: 'input',
      code: 'BUNDLE_TRUNCATED',
      says: ['100', 'header'],
    })
    await refuses(given('empty.bundle', ''), { family: 'input', code: 'BUNDLE_TRUNCATED', says: ['empty'] })
  })

  it('trailing bytes', async () => {
    const { bytes } = await goodBundle()
    await refuses(given('long.bundle', Buffer.concat([bytes, Buffer.alloc(512)])), {
      family: 'input',
      code: 'BUNDLE_TRAILING_BYTES',
      says: [`${bytes.length + 512}`, `${bytes.length}`],
    })
  })

  it('an HTML page', async () => {
    const page = `<!doctype html><title>Sign in</title>${' '.repeat(2000)}`
    await refuses(given('page.bundle', page), {
      family: 'input',
      code: 'BUNDLE_NOT_A_BUNDLE',
      says: ['web page', 'page.bundle'],
    })
    const portal = await serve((_, response) => {
      response.setHeader('content-type', 'text/html; charset=utf-8')
      response.end(page)
    })
    await refuses(portal, { family: 'transport', code: 'TRANSPORT_WRONG_ANSWER', says: ['web page', '/r7.bundle'] })
  })

  it('something else altogether', async () => {
    await refuses(given('photo.jpg', noise(5000)), {
      family: 'input',
      code: 'BUNDLE_NOT_A_BUNDLE',
      says: ['photo.jpg starts with the bytes', 'bistable-bundle'],
    })
    await refuses(join(lab.base, 'none.bundle'), {
      family: 'transport',
      code: 'TRANSPORT_MISSING',
      says: [/no file .*none\.bundle/],
    })
    mkdirSync(join(lab.base, 'folder'), { recursive: true })
    await refuses(join(lab.base, 'folder'), {
      family: 'transport',
      code: 'TRANSPORT_FILE_FAILED',
      says: ['folder', 'neither a file nor'],
    })
  })

  it('an unknown format version', async () => {
    const { bytes } = await goodBundle()
    const marker = Buffer.alloc(TAR_BLOCK)
    marker.write('bistable bundle 2\n')
    const next = Buffer.concat([tarHeader('bistable-bundle', 18), marker, bytes.subarray(2 * TAR_BLOCK)])
    await refuses(given('next.bundle', next), {
      family: 'input',
      code: 'BUNDLE_FORMAT_UNKNOWN',
      says: ['version 2', 'version 1'],
    })
  })

  it('a digest mismatch: one flipped bit in the data', async () => {
    const { bytes } = await goodBundle()
    const flipped = Buffer.from(bytes)
    flipped.writeUInt8(flipped.readUInt8(bytes.length - 3000) ^ 1, bytes.length - 3000)
    await refuses(given('flipped.bundle', flipped), {
      family: 'authenticity',
      code: 'BUNDLE_DIGEST',
      says: ['12288 bytes', 'wanted', /[0-9a-f]{64}/],
    })
  })
})

describe('a release that is not for this device', () => {
  it('of another product', async () => {
    const roots = [await signedRoot({ product: 'toaster' }, [1, 2])]
    const release = { product: 'toaster' }
    await refuses(await bundleWith({ roots, release }), {
      family: 'policy',
      code: 'ROOT_PRODUCT',
      says: ["'toaster'", "'demo'"],
    })
    // With keys of its own, as it should be, nothing that it says of itself is believed.
    const strange = [await signedRoot({ product: 'toaster', root: [4, 5, 6] }, [4, 5])]
    await refuses(await bundleWith({ roots: strange, release }), {
      family: 'authenticity',
      code: 'SIGNATURE_THRESHOLD',
      says: ["root 1 of 'demo'", 'trusted'],
    })
  })

  it('for other hardware', async () => {
    await refuses(await bundleWith({ release: { hardware: ['board-x', 'board-y'] } }), {
      family: 'policy',
      code: 'RELEASE_WRONG_HARDWARE',
      says: ['board-x, board-y', 'qemu-x86_64'],
    })
  })

  it('older than what is committed', async () => {
    const release = { number: { epoch: 0, counter: 1 }, securityFloor: { epoch: 0, counter: 0 } }
    await refuses(await bundleWith({ release }), {
      family: 'policy',
      code: 'RELEASE_BELOW_FLOOR',
      says: ['0.1', '0.2'],
    })
  })

  it('signed by strangers', async () => {
    const roots = [await signedRoot({ release: [14] }, [1, 2])]
    await refuses(await bundleWith({ roots, by: [14] }), {
      family: 'authenticity',
      code: 'ROOT_FORK',
      says: ['second root 1'],
    })
  })
})

describe('a device that cannot take it', () => {
  it('an image larger than the slot', async () => {
    const rootfs = noise(1 << 20)
    await refuses(await bundleWith({ rootfs }), {
      family: 'device',
      code: 'SLOT_TOO_SMALL',
      says: ['1048576', 'rootfs-b'],
    })
  })

  it.each(['rootfs-b', 'boot-b', 'boot-a'] as const)('no slot device %s', async (missing) => {
    const { path } = await goodBundle()
    await refuses(path, { family: 'device', code: 'SLOT_MISSING', says: [missing] }, { missing })
  })

  it('no boot state partition', async () => {
    const { path } = await goodBundle()
    await refuses(
      path,
      { family: 'boot', code: 'BOOT_STATE_READ', says: [/bootstate cannot be opened: no such file/] },
      { missing: 'bootstate' },
    )
  })

  const spaces = have('unshare', 'mount')
  it.skipIf(!spaces)('no space on data: not for the record, and not for what is kept about a release', async () => {
    const { path } = await goodBundle()
    // A file system of its own for the device's /data, seen by this one command only.
    const smallData = (kib: number) => [
      'unshare',
      '-rm',
      'sh',
      '-c',
      `mount -t tmpfs -o size=${kib}k none "$BISTABLE_ROOT/data" && exec "$@"`,
      'sh',
    ]
    await refuses(path, { family: 'storage', code: 'FILE_FULL', says: ['data/bistable', 'no space'] }, {}, smallData(4))
    const attachments = { inventory: noise(300_000) }
    await refuses(
      await bundleWith({ attachments }),
      { family: 'storage', code: 'INSTALL_NO_SPACE', says: [/data has \d\d KiB free, \d{3} KiB are needed/] },
      {},
      smallData(64),
    )
  })
})

describe('a server that goes away half-way', () => {
  const big = () => makeBundle({ rootfs: noise(4 << 20) })
  const roomy = { slotBytes: 8 << 20 }

  it('and comes back: the same command goes on at the byte where it was cut', async () => {
    const { bytes } = await big()
    const cuts = { left: 2 }
    const begun: number[] = []
    /** The bytes that never came. */
    const broken: number[] = []
    const url = await serve((request, response) => {
      const { from, to } = asked(request, bytes.length)
      const half = bytes.length / 2
      const dies = from > 0 && from < half && to > half && cuts.left > 0
      if (dies) cuts.left--
      const limit = dies ? Math.floor((half - from) / 2) : to + 1 - from
      begun.push(from)
      if (dies) broken.push(from + limit)
      sendFile(request, response, bytes, { etag: '"7"' }, limit)
    })
    const device = await TestDevice.make(lab.base, lab.program, roomy)
    const ran = await device.run(['install', url, '--json'])
    expect(ran.json, ran.err + ran.out).toMatchObject({ ok: true, slot: 'b' })
    expect(cuts.left).toBe(0)
    expect(begun).toEqual(expect.arrayContaining(broken))
    expect(await device.bootState()).toMatchObject({ primary: 'a', trial: 'b', left: 3 })
  })

  it('and takes the command with it: nothing is armed, and the next one fetches only the rest', async () => {
    const { bytes } = await big()
    const half = Math.floor(bytes.length / 2)
    const dead = await serve((request, response) => {
      const { from, to } = asked(request, bytes.length)
      if (from >= half || to < half) return sendFile(request, response, bytes, { etag: '"7"' })
      // Headers and a part of the body, then silence.
      response.setHeader('etag', '"7"').setHeader('content-range', `bytes ${from}-${to}/${bytes.length}`)
      response.writeHead(206, { 'content-length': to + 1 - from })
      response.write(bytes.subarray(from, Math.max(from, half)))
    })
    const device = await TestDevice.make(lab.base, lab.program, roomy)
    const before = device.digests()
    const child = device.start(['install', dead])
    const gone = new Promise((done) => child.once('exit', done))
    // A quarter is on the medium: the first piece, of the two that come at all.
    const written = () => readFileSync(join(device.root, 'disk/rootfs-b')).subarray((1 << 20) - 4096, 1 << 20)
    await expect.poll(() => written().some((byte) => byte !== 0), { timeout: 60_000 }).toBe(true)
    child.kill('SIGKILL')
    await gone
    const after = device.digests()
    for (const name of ['boot-a', 'rootfs-a'] as const) expect(after[name]).toBe(before[name])
    expect(await device.bootState()).toMatchObject({ primary: 'a', trial: undefined })

    let fetched = 0
    const alive = await serve((request, response) => {
      const { from, to } = asked(request, bytes.length)
      fetched += to + 1 - from
      sendFile(request, response, bytes, { etag: '"7"' })
    })
    const ran = await device.run(['install', alive, '--json'])
    expect(ran.json, ran.err + ran.out).toMatchObject({ ok: true, slot: 'b' })
    expect(fetched).toBeLessThan(bytes.length * 0.8)
    expect(await device.bootState()).toMatchObject({ primary: 'a', trial: 'b', left: 3 })
  })
})
