import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { have, run } from '../helpers/run.ts'
import { type LoggedWrite, readLogWrites } from './log-writes.ts'

const dir = mkdtempSync(join(tmpdir(), 'bistable-log-writes-'))
afterAll(() => rmSync(dir, { recursive: true }))

async function all(path: string): Promise<LoggedWrite[]> {
  const found: LoggedWrite[] = []
  for await (const entry of readLogWrites(path)) found.push(entry)
  return found
}

describe.skipIf(!have('qemu-io'))('the log that QEMU keeps', () => {
  test('every write and flush in order, and replayed it gives the disk', async () => {
    const [disk, log] = [join(dir, 'disk.img'), join(dir, 'log.img')]
    for (const path of [disk, log]) {
      writeFileSync(path, '')
      truncateSync(path, 1024 * 1024)
    }
    const image = `driver=blklogwrites,file.driver=file,file.filename=${disk},log.driver=file,log.filename=${log}`
    const commands = ['write -P 0x11 0 4096', 'write -P 0x22 8192 512', 'flush', 'write -P 0x33 0 512', 'flush']
    run('qemu-io', ['--image-opts', image, ...commands.flatMap((command) => ['-c', command])])
    const entries = await all(log)
    const shown = entries.map(({ offset, length, flush, data }) =>
      flush ? 'flush' : `${offset}+${length} ${data?.[0]}`,
    )
    expect(shown.filter((word, n) => word !== 'flush' || shown[n - 1] !== 'flush')).toEqual([
      '0+4096 17',
      '8192+512 34',
      'flush',
      '0+512 51',
      'flush',
    ])
    const replayed = Buffer.alloc(1024 * 1024)
    for (const { offset, data } of entries) if (data !== undefined) replayed.set(data, offset)
    expect(replayed.equals(readFileSync(disk))).toBe(true)
  })
})

describe('a log of writes', () => {
  const SECTOR = 512
  function logOf(
    ...entries: readonly { sector: number; sectors: number; flags: number; text?: string; data?: Buffer }[]
  ) {
    const head = Buffer.alloc(SECTOR)
    head.writeBigUInt64LE(0x6a736677736872n, 0)
    head.writeBigUInt64LE(1n, 8)
    head.writeBigUInt64LE(BigInt(entries.length), 16)
    head.writeUInt32LE(SECTOR, 24)
    const parts = entries.flatMap(({ sector, sectors, flags, text = '', data = Buffer.alloc(0) }) => {
      const entry = Buffer.alloc(SECTOR)
      for (const [n, value] of [sector, sectors, flags, text.length].entries())
        entry.writeBigUInt64LE(BigInt(value), n * 8)
      entry.write(text, 32)
      return [entry, data]
    })
    const path = join(dir, 'made.log')
    writeFileSync(path, Buffer.concat([head, ...parts]))
    return path
  }

  test('marks, discards and writes that are durable by themselves', async () => {
    const data = Buffer.alloc(SECTOR, 7)
    const path = logOf(
      { sector: 0, sectors: 0, flags: 8, text: 'armed' },
      { sector: 4, sectors: 2, flags: 4 },
      { sector: 1, sectors: 1, flags: 3, data },
    )
    const plain = { flush: false, fua: false, discard: false, mark: undefined, data: undefined }
    expect(await all(path)).toEqual([
      { ...plain, offset: 0, length: 0, mark: 'armed' },
      { ...plain, offset: 2048, length: 1024, discard: true },
      { ...plain, offset: 512, length: 512, flush: true, fua: true, data },
    ])
  })

  test('what is no log, ends early or claims too much is an error', async () => {
    const path = logOf({ sector: 0, sectors: 2, flags: 0, data: Buffer.alloc(SECTOR) })
    await expect(all(path)).rejects.toThrow('the log ends at byte')
    await expect(all(logOf({ sector: 0, sectors: 2 ** 40, flags: 0 }))).rejects.toThrow('bytes')
    writeFileSync(path, Buffer.alloc(SECTOR))
    await expect(all(path)).rejects.toThrow('not a log of writes')
  })
})
