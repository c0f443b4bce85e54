import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { BootBackend } from '../../bootloader/backend.ts'
import { decodeLoadOption, encodeLoadOption } from '../../bootloader/efi-option.ts'
import { gptPartition } from '../../bootloader/gpt.ts'
import { arm, claim, commit, freshState, refuse, rollBack } from '../../bootloader/machine.ts'
import type { BootState } from '../../bootloader/state.ts'
import { type BackendEdge, openBackend } from '../../device/agent/backends.ts'
import { bootImages, writeNoise } from '../helpers/boot-images.ts'
import { anyMove, picker } from '../helpers/boot-moves.ts'
import { makeDisk, readAt } from '../helpers/disk.ts'
import { have, run } from '../helpers/run.ts'

/** Load options of the firmware on a folder as efivarfs shows it. Real firmware: efi-variables.hil.ts. */

const ready = have('mkfs.fat', 'mcopy', 'sgdisk')
const dir = mkdtempSync(join(tmpdir(), 'bistable-efi-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const GUID = '8be4df61-93ca-11d2-aa0d-00e098032b8c'
let edge: BackendEdge
let count = 0

beforeAll(async () => {
  if (!ready) return
  writeNoise(join(dir, 'kernel'), 5000)
  writeNoise(join(dir, 'initrd'), 3000)
  const sizes = { esp: 64, bootstate: 1024, 'boot-a': 64, 'rootfs-a': 64, 'boot-b': 64, 'rootfs-b': 64, data: 64 }
  const disk = makeDisk(join(dir, 'disk.img'), sizes)
  const read = async (offset: number, length: number) => readAt(disk.path, offset, length)
  const images = await bootImages(dir, join(dir, 'kernel'), join(dir, 'initrd'))
  edge = { ...images, bootPartition: (slot) => gptPartition(read, `boot-${slot}`) }
})

/** Firmware with a boot order of its own. */
async function firmware() {
  const folder = join(dir, `efivars-${count++}`)
  mkdirSync(folder)
  const path = (name: string) => join(folder, `${name}-${GUID}`)
  writeFileSync(path('BootOrder'), Uint8Array.from([7, 0, 0, 0, 3, 0, 0, 0]))
  const backend = await openBackend({ boot: { kind: 'efi-variables', folder } }, edge)
  await backend.write(freshState('a'))
  return {
    folder,
    backend,
    order: () => readFileSync(path('BootOrder')).subarray(4).toString('hex'),
    words: (name: string) => decodeLoadOption(readFileSync(path(name)).subarray(4))?.arguments,
    has: (name: string) => readdirSync(folder).includes(`${name}-${GUID}`),
    /** What firmware does before it starts what BootNext names. */
    takesNext: () => rmSync(path('BootNext')),
  }
}

const now = async (backend: BootBackend): Promise<BootState> => {
  const { state } = await backend.read()
  if (state === undefined) throw new Error('no state')
  return state
}

describe.skipIf(!ready)('load options', () => {
  it('follow an update: BootNext for one try, BootOrder at the commit, others kept', async () => {
    const { backend, order, words, has, takesNext } = await firmware()
    expect(order()).toBe('5ab103000000')
    await backend.write(arm(claim(await now(backend)), 'b', 1))
    expect([order(), has('BootNext'), has('BootB15B')]).toEqual(['5ab103000000', true, true])
    expect(words('BootB15B')).toBe(
      `initrd=\\initrd.img panic=5 bistable.root=${'ab'.repeat(32)} bistable.length=4096 quiet bistable.slot=b bistable.release=0.2 bistable.boot=try bistable.left=0 bistable.why=ok`,
    )
    expect(await now(backend)).toMatchObject({ primary: 'a', trial: 'b', left: 1 })
    takesNext()
    expect(await now(backend)).toMatchObject({ primary: 'a', trial: 'b', left: 0 })
    await backend.write(commit(await now(backend), 'b'))
    expect(order()).toBe('5bb15ab103000000')
    expect(words('BootB15B')).toContain('bistable.boot=committed')
    expect(await now(backend)).toMatchObject({ primary: 'b', trial: undefined, spare: true })
    await backend.write(rollBack(await now(backend), 1))
    expect([order(), has('BootNext')]).toEqual(['5bb103000000', true])
    await backend.write(refuse(await now(backend), 'a'))
    expect(has('BootNext')).toBe(false)
    await backend.write(claim(await now(backend)))
    expect([order(), has('BootB15A')]).toEqual(['5bb103000000', false])
  })

  it('hold every state that a chain of moves leads to', async () => {
    const { backend } = await firmware()
    const pick = picker(3)
    for (let n = 0; n < 60; n++) {
      const state = await now(backend)
      const next = anyMove(state, pick, () => 1, 1)
      await backend.write(next)
      expect(await now(backend)).toEqual({ ...next, generation: 0 })
    }
  })

  it('are what efibootmgr reads', async () => {
    if (!have('efibootmgr')) return
    const { folder, backend } = await firmware()
    await backend.write(arm(await now(backend), 'b', 1))
    process.env['EFIVARFS_PATH'] = `${folder}/`
    try {
      const said = run('efibootmgr', ['-v'])
      expect(said).toContain('BootNext: B15B')
      expect(said).toMatch(/BootOrder: B15A,0003,0000/)
      const guid = /Partition unique GUID: (\S+)/.exec(run('sgdisk', ['-i', '5', join(dir, 'disk.img')]))?.[1]
      const line = said.split('\n').find((text) => text.startsWith('BootB15B')) ?? ''
      expect(line.toLowerCase()).toContain(`bistable b\thd(5,gpt,${guid?.toLowerCase()},`)
      expect(line).toMatch(/File\(\\vmlinuz\)/)
    } finally {
      delete process.env['EFIVARFS_PATH']
    }
  })

  it('of another form are nobody of ours, whatever bytes they are', () => {
    const partition = { number: 3, guid: new Uint8Array(16), start: 2048n, sectors: 64n }
    const option = { description: 'x', partition, file: '\\vmlinuz', arguments: 'quiet' }
    const whole = encodeLoadOption(option)
    expect(decodeLoadOption(whole)).toEqual(option)
    for (let length = 0; length < 60; length++) expect(decodeLoadOption(whole.subarray(0, length))).toBeUndefined()
    for (let n = 0; n < whole.length; n++) {
      const damaged = Uint8Array.from(whole)
      damaged[n] = 0xff
      expect(() => decodeLoadOption(damaged)).not.toThrow()
    }
  })

  it('refuse by name: no firmware variables, no such partition', async () => {
    const none = await openBackend({ boot: { kind: 'efi-variables', folder: join(dir, 'none') } }, edge)
    await expect(none.read()).rejects.toMatchObject({ code: 'BOOT_STATE_READ' })
    const read = async (offset: number, length: number) => readAt(join(dir, 'disk.img'), offset, length)
    await expect(gptPartition(read, 'boot-c')).rejects.toMatchObject({ code: 'BOOT_DISK_TABLE' })
    await expect(gptPartition(async (_, length) => new Uint8Array(length), 'x')).rejects.toThrow(/no GPT/)
  })
})
