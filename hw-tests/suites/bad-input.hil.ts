import { appendFile, copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'
import type { Kit } from '../harness/kit.ts'
import type { Offer } from '../harness/server.ts'

const PORTAL = Buffer.from('<!doctype html><title>Welcome to our guest network</title>Please sign in.')

/** What no bad input may change: what would boot, and every byte of the other slot and of the boot state. */
interface Facts {
  readonly kept: unknown
  readonly state: unknown
  readonly lastFailure: unknown
}

async function facts(dut: Dut): Promise<Facts> {
  const status = await dut.status()
  const { running, slots, boot, installFloor, securityFloor, rootVersion, blocked, state, lastFailure } = status
  expect(await dut.run('sync')).toMatchObject({ code: 0 })
  const digests = []
  for (const name of ['bootstate', 'boot-b', 'rootfs-b']) digests.push(await dut.partitionDigest(name))
  const kept = { running, slots, boot, installFloor, securityFloor, rootVersion, blocked, digests }
  return { kept, state, lastFailure }
}

// The tests of this file share a device: its facts are taken once, and after every refusal.
const first = new WeakMap<Dut, Facts>()
async function factsBefore(dut: Dut): Promise<Facts> {
  const known = first.get(dut) ?? (await facts(dut))
  first.set(dut, known)
  return known
}

interface Case {
  readonly what: string
  readonly code: string
  offer(kit: Kit, folder: string): Promise<Offer> | Offer
}

const CASES: readonly Case[] = [
  {
    what: 'a bundle of another product',
    code: 'SIGNATURE_THRESHOLD',
    offer: (kit) => ({ from: kit.bundle('foreign').path }),
  },
  {
    what: 'a bundle for other hardware',
    code: 'RELEASE_WRONG_HARDWARE',
    offer: (kit) => ({ from: kit.bundle('board').path }),
  },
  {
    what: 'an older release',
    code: 'RELEASE_BELOW_FLOOR',
    offer: (kit) => ({ from: kit.bundle('old').path }),
  },
  {
    what: 'a bundle that was cut short',
    code: 'BUNDLE_TRUNCATED',
    offer: (kit) => ({ from: kit.bundle('next').path, length: 40_000_000 }),
  },
  {
    what: 'a bundle with bytes behind its end',
    code: 'BUNDLE_TRAILING_BYTES',
    offer: async (kit, folder) => {
      const file = join(folder, 'longer.bundle')
      await copyFile(kit.bundle('next').path, file)
      await appendFile(file, Buffer.alloc(512))
      return { from: file }
    },
  },
  {
    what: 'a web page that says so',
    code: 'TRANSPORT_WRONG_ANSWER',
    offer: () => ({ from: PORTAL, type: 'text/html' }),
  },
  {
    what: 'a web page that says it is a bundle',
    code: 'TRANSPORT_WRONG_ANSWER',
    offer: () => ({ from: PORTAL }),
  },
]

hil.describe('bad input', () => {
  hil.override('begin', 'shared')

  for (const { what, code, offer } of CASES)
    hil(`${what} is refused as ${code}; slot and boot state stay as they are`, async ({ dut, kit, bench, server }) => {
      const { kept } = await factsBefore(dut)
      const answer = await dut.bistable(`install ${server.offer(`/${code}`, await offer(kit, bench.folder))}`)
      expect(answer.body).toMatchObject({ ok: false, error: { code, next: expect.stringMatching(/\w/) } })
      expect(answer.code).toBeGreaterThan(0)
      const after = await facts(dut)
      expect(after.kept).toEqual(kept)
      expect(after).toMatchObject({ state: 'idle', lastFailure: { code } })
    })

  hil('a file that is not there is refused as TRANSPORT_MISSING', async ({ dut, server }) => {
    const { kept } = await factsBefore(dut)
    const address = server.offer('/x', { from: PORTAL }).replace(/x$/, 'nothing-here')
    expect(await dut.bistable(`install ${address}`)).toMatchObject({ error: 'TRANSPORT_MISSING' })
    expect((await facts(dut)).kept).toEqual(kept)
  })

  hil(
    'a server that goes away in the middle and comes back: the install goes on where it was',
    async ({ dut, kit, server }) => {
      const { path, release } = kit.bundle('next')
      const goneAfter = 150_000
      const address = server.offer('/gone', { from: path, goneAfter })
      const installed = dut.bistable(`install ${address}`)
      // An install that ends early ends the wait too: its answer is what the test should show.
      let over = false
      const ended = installed.then(
        () => (over = true),
        () => (over = true),
      )
      while (!server.gone('/gone') && !over) await Promise.race([ended, sleep(100)])
      if (!server.gone('/gone')) expect(await installed).toBe('still waiting for the server')
      expect(server.served('/gone')).toBe(goneAfter)
      server.heal('/gone')
      expect(await installed).toMatchObject({ code: 0, body: { ok: true } })
      expect(await dut.status()).toMatchObject({ state: 'armed', slots: { b: { role: 'trial', release } } })
      expect(await dut.bistable('verify b')).toMatchObject({ code: 0 })
    },
  )
})
