import { expect, it } from 'vitest'
import { AppendBuffer } from '../../publisher/append-buffer.ts'
import { randomFrom } from '../device-install/model.ts'

// The one buffer behind the image that is written and the store of contents: what stands in the file, whatever is appended,
// taken back, slow or failing.

const MIB = 1024 * 1024

it('whatever is appended and taken back stands in the file, by one write at a time', async () => {
  const random = randomFrom(Number(process.env['BISTABLE_SEED'] ?? 7))
  for (let round = 0; round < 8; round++) {
    let file = Buffer.alloc(0)
    let writing = 0
    const buffer = new AppendBuffer(async (bytes, position) => {
      expect(++writing).toBe(1)
      if (random() < 0.5) await new Promise((resolve) => setTimeout(resolve, 1))
      const longer = Buffer.alloc(Math.max(file.length, position + bytes.length))
      file.copy(longer)
      longer.set(bytes, position)
      file = longer
      writing--
    })
    let wanted = Buffer.alloc(0)
    for (let n = 0; n < 12; n++) {
      const bytes = Buffer.alloc(Math.floor(random() * (random() < 0.3 ? 2.5 * MIB : 5000)), n + 1)
      await buffer.append(bytes)
      // A copy: what the caller does with it afterwards is its own.
      wanted = Buffer.concat([wanted, bytes])
      bytes.fill(0xee)
      if (random() < 0.4) {
        const to = Math.floor(random() * (wanted.length + 1))
        buffer.rewind(to)
        wanted = wanted.subarray(0, to)
      }
      expect(buffer.position).toBe(wanted.length)
    }
    await buffer.flush()
    expect(writing).toBe(0)
    expect(file.subarray(0, wanted.length).equals(wanted)).toBe(true)
    await buffer.flush()
  }
})

it('a write that fails is met by what comes next, and by the flush', async () => {
  let writes = 0
  const buffer = new AppendBuffer(async () => {
    writes++
    throw new Error('disk full')
  })
  await buffer.append(Buffer.alloc(MIB))
  await buffer.settled()
  await expect(buffer.append(Buffer.alloc(MIB))).rejects.toThrow('disk full')
  await expect(buffer.flush()).rejects.toThrow('disk full')
  await buffer.settled()
  expect(writes).toBe(1)
})
