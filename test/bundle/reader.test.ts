import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { inspectBundle, openBundle } from '../../bundle/reader.ts'
import { readAttachment, verifyBundle } from '../../bundle/verify.ts'
import { writeBundle } from '../../bundle/writer.ts'
import { makeBundle, memorySource } from './fixture.ts'
import { noise } from './tools.ts'

test('what is written is what is read', async () => {
  const made = await makeBundle({ boot: Buffer.concat([noise(8192), Buffer.alloc(300_000 & ~4095)]) })
  const head = await verifyBundle(memorySource(made.bytes), made)
  expect(head.size).toBe(made.bytes.length)
  expect(head.statement.product).toBe('demo')
  expect(head.indexes.boot.chunks.some((chunk) => chunk.encoding === 'zstd')).toBe(true)
  expect(head.indexes.rootfs.chunks.every((chunk) => chunk.encoding === 'raw')).toBe(true)
})
