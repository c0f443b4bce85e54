import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { decodeEnvelope, encodeEnvelope, pae } from '../../keys/dsse.ts'
import { signWithSeed } from '../../keys/ed25519.ts'
import { addToEnvelopeFile } from '../../keys/files.ts'
import { encodeRoot, ROOT_PAYLOAD_TYPE } from '../../keys/root.ts'
import { signStatement } from '../../keys/statement.ts'
import type { Envelope, Signer } from '../../keys/types.ts'
import { signFile } from '../../publisher/sign.ts'
import { codeOfAsync } from '../codes.ts'
import { keysJson } from '../helpers/keys-cli.ts'
import { key, rootOf, signer } from './helpers.ts'

/** Several people sign one file at the same time: each has read it before the others have written. */

const work = mkdtempSync(join(tmpdir(), 'bistable-at-once-'))
afterAll(() => rmSync(work, { recursive: true, force: true }))

const KEYS = [1, 2, 3, 4]
const payload = encodeRoot(rootOf({ root: KEYS, threshold: 4 }))
const unsigned: Envelope = { payloadType: ROOT_PAYLOAD_TYPE, payload, signatures: [] }
const signedBy = async (...numbers: number[]) => await signStatement(ROOT_PAYLOAD_TYPE, payload, numbers.map(signer))
const inFile = (path: string) => decodeEnvelope(readFileSync(path))

/** Signers that answer when all of them have been asked. */
function together(numbers: readonly number[]): Signer[] {
  let asked = 0
  let go = (): void => undefined
  const all = new Promise<void>((resolve) => {
    go = resolve
  })
  return numbers.map((number) => ({
    ...signer(number),
    sign: async (bytes) => {
      if (++asked === numbers.length) go()
      await all
      return await signer(number).sign(bytes)
    },
  }))
}

describe('signing one file at once', () => {
  it('loses no signature: a statement that has no envelope yet, and an envelope', async () => {
    const statement = join(work, 'statement.json')
    writeFileSync(statement, payload)
    const output = join(work, 'release.json')
    for (const [input, numbers] of [
      [statement, [1, 2]],
      [output, [3, 4]],
    ] as const)
      await Promise.all(together(numbers).map((one) => signFile({ input, output }, [one])))
    expect(inFile(output)).toEqual(await signedBy(...KEYS))
    expect(readdirSync(work).filter((name) => name.startsWith('.'))).toEqual([])
  })

  it('by commands, with `keys sign` and `keys merge`', async () => {
    const path = join(work, 'root.json')
    writeFileSync(path, encodeEnvelope(unsigned))
    writeFileSync(join(work, 'copy.json'), encodeEnvelope(await signedBy(4)))
    const message = pae(ROOT_PAYLOAD_TYPE, payload)
    const wait = (n: number) => `while [ ! -e ${join(work, `here-${n}`)} ]; do sleep 0.02; done`
    const command = (n: number) => {
      const signature = Buffer.from(signWithSeed(new Uint8Array(32).fill(n), message)).toString('base64')
      return `command:${key(n)}:touch ${join(work, `here-${n}`)}; ${[1, 2, 3].map(wait).join('; ')}; echo ${signature}`
    }
    await Promise.all([
      ...[1, 2, 3].map((n) => keysJson('keys', 'sign', path, '--key', command(n))),
      keysJson('keys', 'merge', path, join(work, 'copy.json')),
    ])
    expect(inFile(path)).toEqual(await signedBy(...KEYS))
  })

  it('never takes the place of another statement that came meanwhile', async () => {
    const path = join(work, 'changed.json')
    const other = { ...unsigned, payload: encodeRoot(rootOf({ root: KEYS, product: 'other' })) }
    writeFileSync(path, encodeEnvelope(other))
    expect(await codeOfAsync(async () => addToEnvelopeFile(path, await signedBy(1)))).toBe('MERGE_OTHER')
    expect(inFile(path)).toEqual(other)
    expect(existsSync(join(work, '.changed.json.lock'))).toBe(false)
  })

  it('says so when the lock of somebody who was killed is there, and writes nothing', async () => {
    const path = join(work, 'busy.json')
    const lock = join(work, '.busy.json.lock')
    writeFileSync(lock, '')
    const add = async (waitMs: number) => addToEnvelopeFile(path, await signedBy(1), undefined, waitMs)
    await expect(add(100)).rejects.toMatchObject({
      code: 'ENVELOPE_BUSY',
      message: expect.stringContaining(lock),
      next: expect.stringContaining('remove the lock file'),
    })
    expect(existsSync(path)).toBe(false)
    rmSync(lock)
    expect(await add(0)).toEqual(inFile(path))
  })

  it('needs a folder that can be written', async () => {
    const nowhere = join(work, 'nowhere', 'x.json')
    expect(await codeOfAsync(async () => addToEnvelopeFile(nowhere, unsigned))).toBe('FILE_FAILED')
  })
})
