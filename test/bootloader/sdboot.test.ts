import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { BootBackend } from '../../bootloader/backend.ts'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { FILES, REASON } from '../../bootloader/layout.ts'
import { arm, claim, commit, freshState, refuse, renew, rollBack } from '../../bootloader/machine.ts'
import { encodeReason } from '../../bootloader/reason.ts'
import { parseEntry, stateOfEntries } from '../../bootloader/sdboot-entries.ts'
import type { BootState } from '../../bootloader/state.ts'
import { type BackendEdge, openBackend } from '../../device/agent/backends.ts'
import { bootImages, writeNoise } from '../helpers/boot-images.ts'
import { anyMove, picker } from '../helpers/boot-moves.ts'
import { have } from '../helpers/run.ts'

/** systemd-boot's backend on a folder, from boot images that the publisher made. The real systemd-boot: sdboot.hil.ts. */

const ready = have('mkfs.fat', 'mcopy')
const dir = mkdtempSync(join(tmpdir(), 'bistable-sdboot-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
let edge: BackendEdge
let count = 0

beforeAll(async () => {
  if (!ready) return
  writeNoise(join(dir, 'kernel'), 3 << 20)
  writeNoise(join(dir, 'initrd'), 1_234_567)
  edge = await bootImages(dir, join(dir, 'kernel'), join(dir, 'initrd'))
})

async function fresh() {
  const esp = join(dir, `esp-${count++}`)
  mkdirSync(join(esp, 'loader/entries'), { recursive: true })
  // Somebody else's: never touched.
  writeFileSync(join(esp, 'loader/entries/debian.conf'), 'title Debian\n')
  const backend = await openBackend({ boot: { kind: 'systemd-boot', esp } }, edge)
  await backend.write(freshState('a'))
  const names = () =>
    readdirSync(join(esp, 'loader/entries'))
      .filter((name) => name !== 'debian.conf')
      .sort()
  return { esp, backend, names, entry: (name: string) => readFileSync(join(esp, 'loader/entries', name), 'utf8') }
}

const now = async (backend: BootBackend): Promise<BootState> => {
  const { state } = await backend.read()
  if (state === undefined) throw new Error('no state')
  return state
}

describe.skipIf(!ready)("systemd-boot's entries", () => {
  it('follow an update: armed, counted down by renaming, committed, rolled back', async () => {
    const { esp, backend, names, entry } = await fresh()
    expect(names()).toEqual(['bistable-0000000001-a.conf'])
    await backend.write(claim(await now(backend)))
    await backend.write(arm(await now(backend), 'b', 2))
    expect(names()).toEqual(['bistable-0000000001-a.conf', 'bistable-0000000002-b+2.conf'])
    expect(entry('bistable-0000000002-b+2.conf')).toBe(
      `title bistable 0.2 in slot b\nversion 0.2\nlinux /bistable/b/vmlinuz\ninitrd /bistable/b/initrd.img\noptions panic=5 bistable.root=${'ab'.repeat(32)} bistable.length=4096 quiet bistable.slot=b bistable.release=0.2 bistable.boot=try bistable.left=0 bistable.why=ok\n`,
    )
    for (const [name, source] of [
      ['vmlinuz', 'kernel'],
      ['initrd.img', 'initrd'],
    ] as const)
      expect(Buffer.compare(readFileSync(join(esp, 'bistable/b', name)), readFileSync(join(dir, source)))).toBe(0)
    const at = (name: string) => join(esp, 'loader/entries', name)
    renameSync(at('bistable-0000000002-b+2.conf'), at('bistable-0000000002-b+1-1.conf'))
    expect(await now(backend)).toMatchObject({ primary: 'a', trial: 'b', left: 1 })
    await backend.write(commit(await now(backend), 'b'))
    expect(names()).toEqual(['bistable-0000000001-a.conf', 'bistable-0000000003-b.conf'])
    expect(entry('bistable-0000000003-b.conf')).toContain('bistable.boot=committed')
    await backend.write(rollBack(await now(backend)))
    expect(names()).toEqual(['bistable-0000000003-b.conf', 'bistable-0000000004-a+3.conf'])
    await backend.write(refuse(await now(backend), 'a'))
    expect(names()).toEqual(['bistable-0000000003-b.conf', 'bistable-0000000004-a+0.conf'])
    expect(await now(backend)).toMatchObject({ primary: 'b', trial: 'a', left: 0 })
    await backend.write(claim(await now(backend)))
    expect(names()).toEqual(['bistable-0000000003-b.conf'])
    expect(existsSync(at('debian.conf'))).toBe(true)
  })

  it('are healed when systemd-bless-boot committed first', async () => {
    const { esp, backend, names, entry } = await fresh()
    await backend.write(arm(await now(backend), 'b'))
    const at = (name: string) => join(esp, 'loader/entries', name)
    renameSync(at('bistable-0000000002-b+3.conf'), at('bistable-0000000002-b.conf'))
    expect(await backend.read()).toMatchObject({ state: { primary: 'b', spare: true }, torn: true })
    await backend.write(renew(await now(backend)))
    expect(names()).toEqual(['bistable-0000000001-a.conf', 'bistable-0000000003-b.conf'])
    expect(entry('bistable-0000000003-b.conf')).toContain('bistable.boot=committed')
    expect((await backend.read()).torn).toBe(false)
  })

  it('hold every state that a chain of moves leads to', async () => {
    const { backend } = await fresh()
    const pick = picker(7)
    for (let n = 0; n < 60; n++) {
      const state = await now(backend)
      const next = anyMove(state, pick, () => 1 + pick(9))
      await backend.write(next)
      expect({ ...(await now(backend)), generation: 0 }).toEqual({ ...next, generation: 0 })
    }
  })

  it('at every cut of a commit or a rollback leave an entry for what was or what is to be', () => {
    const decide = (files: string[]) => stateOfEntries(files.flatMap((file) => parseEntry(file) ?? [])).state
    const both = ['bistable-0000000001-a.conf', 'bistable-0000000002-b+2-1.conf', 'bistable-0000000003-b.conf']
    expect(decide(both)).toMatchObject({ primary: 'b', trial: undefined, spare: true })
    expect(
      decide(['bistable-0000000003-b.conf', 'bistable-0000000001-a.conf', 'bistable-0000000004-a+3.conf']),
    ).toMatchObject({ primary: 'b', trial: 'a', left: 3 })
    expect(decide(['bistable-0000000004-a+3.conf'])).toBeUndefined()
    expect(decide([])).toBeUndefined()
    for (const foreign of ['bistable-1-a.conf', 'bistable-0000000001-c.conf', 'bistable-0000000001-a+.conf', 'x.conf'])
      expect(parseEntry(foreign)).toBeUndefined()
  })

  it('leave the reasons of the initramfs to the partition that holds them, where there is one', async () => {
    const path = join(dir, 'bootstate')
    const failure = { slot: 'b', stage: 'verity', text: 'a block does not have its digest' } as const
    const bytes = Buffer.from(await bootstateImage(freshState('a')))
    bytes.set(encodeReason({ starts: { a: 0, b: 2, up: 'a' }, failure }), FILES[REASON].offset)
    writeFileSync(path, bytes)
    const esp = join(dir, 'esp-0')
    const withPlace = await openBackend(
      { boot: { kind: 'systemd-boot', esp } },
      { ...edge, findBootstate: async () => path },
    )
    expect(await withPlace.reason()).toEqual({ starts: { a: 0, b: 2, up: 'a' }, failure })
    await withPlace.clearReason('b')
    expect(await withPlace.reason()).toEqual({ starts: { a: 0, b: 0, up: 'b' }, failure: undefined })
    const without = await openBackend({ boot: { kind: 'systemd-boot', esp } }, edge)
    expect((await without.reason()).failure).toBeUndefined()
    await without.clearReason('b')
  })

  it('refuse by name: no partition mounted, a damaged boot image, an old generation', async () => {
    const none = await openBackend({ boot: { kind: 'systemd-boot', esp: join(dir, 'none') } }, edge)
    await expect(none.read()).rejects.toMatchObject({ code: 'BOOT_STATE_READ' })
    const { backend } = await fresh()
    await expect(backend.write(freshState('a'))).rejects.toMatchObject({ code: 'BOOT_STATE_INVALID' })
    copyFileSync(join(dir, 'boot-b'), join(dir, 'boot-b.kept'))
    for (const [offset, bytes] of [
      [0, 512],
      [510, 2],
      [22, 2],
    ] as const) {
      const image = readFileSync(join(dir, 'boot-b.kept'))
      image.fill(0, offset, offset + bytes)
      writeFileSync(join(dir, 'boot-b'), image)
      await expect(backend.write(arm(await now(backend), 'b'))).rejects.toMatchObject({ code: 'BOOT_IMAGE_DAMAGED' })
      expect(await now(backend)).toMatchObject({ primary: 'a', trial: undefined })
    }
    copyFileSync(join(dir, 'boot-b.kept'), join(dir, 'boot-b'))
  })
})
