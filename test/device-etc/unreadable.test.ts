import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import type { Slots } from '../../device/agent/engine-over.ts'
import { EtcOfDevice } from '../../device/agent/etc.ts'
import { attrTools } from '../../device/etc/xattrs.ts'
import { makeTree, scratch } from './trees.ts'

/** The merge needs the image that runs: where that cannot be read, nothing is armed and nothing is changed. */

test('an old image that cannot be read ends the install before arming, with both folders of /etc as they were', async () => {
  const base = scratch()
  const folders = join(base, 'data/etc')
  for (const slot of ['a', 'b']) {
    mkdirSync(join(folders, slot), { recursive: true })
    writeFileSync(join(folders, slot, 'motd'), slot)
  }
  const opened: string[] = []
  const slots = {
    forReuse: async (slot: string) => ({
      name: slot,
      size: 1 << 20,
      read: async (_: number, into: Uint8Array) => void into.fill(slot === 'a' ? 0xff : 0),
      close: async () => void opened.push(`closed ${slot}`),
    }),
  } as unknown as Slots
  const around = {
    ...{ running: makeTree(join(base, 'running'), { motd: 'a' }), folders, rules: join(base, 'none'), owned: [] },
    ...{ report: join(base, 'report.json'), files: nodeFiles, xattrs: attrTools, flush: async () => undefined },
  }
  const etc = new EtcOfDevice(around, slots, join(base, 'data/bistable'), nodeFiles)
  const statement = {
    number: { epoch: 0, counter: 3 },
    images: [{ name: 'rootfs', root: 'f'.repeat(64), length: 4096 }],
  }
  const work = etc.prepare('a', statement as never, new AbortController().signal)
  await expect(work).rejects.toThrow(expect.objectContaining({ code: 'SQUASHFS_FORMAT' }))
  expect([readFileSync(join(folders, 'a/motd'), 'utf8'), readFileSync(join(folders, 'b/motd'), 'utf8')]).toEqual([
    'a',
    'b',
  ])
  expect([existsSync(around.report), existsSync(join(folders, 'b.merging'))]).toEqual([false, false])
  expect(opened).toEqual(['closed a'])
})
