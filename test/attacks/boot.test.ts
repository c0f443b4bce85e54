import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { encodeFloor } from '../../bootloader/floor.ts'
import { chooseCopy, decodeCopy, encodeCopy, encodeWord } from '../../bootloader/grub-env.ts'
import { freshState, MAX_GENERATION, onBoot } from '../../bootloader/machine.ts'
import { decodeReason } from '../../bootloader/reason.ts'
import type { BootState } from '../../bootloader/state.ts'
import { diffFiles } from '../../bundle/diff.ts'
import { treeSize } from '../../bundle/tree.ts'
import type { InventoryEntry } from '../../bundle/types.ts'
import { rollBackNow } from '../../device/agent/roll-back.ts'
import { haveTool, run, scratch } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { World } from '../device-agent/world.ts'
import { signedRoot } from '../keys/helpers.ts'
import { Device, NEVER } from './device.ts'
import { forge } from './forge.ts'
import { attempt, countRefusals, refused } from './refused.ts'

// What stands between a slot that was changed, or a boot state that was, and a system that runs.

const INIT = readFileSync(resolve(import.meta.dirname, '../../initramfs/init'), 'utf8')

/** Functions of the real init script, run by busybox as it will be; `fail` reports instead of resetting. */
function inInit(functions: readonly string[], body: string, variables: Readonly<Record<string, string>> = {}) {
  const source = functions.map((name) => {
    const found = new RegExp(`^${name}\\(\\) \\{\\n[\\s\\S]*?^\\}$`, 'm').exec(INIT)?.[0]
    if (found === undefined) throw new Error(`init has no function ${name}`)
    return found
  })
  const script = ['say() { echo "say $*"; }', 'fail() { echo "fail $1"; exit 9; }', ...source, body].join('\n')
  const env = { PATH: process.env['PATH'] ?? '', ...variables }
  const done = spawnSync('busybox', ['sh', '-c', script], { env, encoding: 'latin1' })
  return { exit: done.status, said: done.stdout.trim() }
}

const busybox = haveTool('busybox')

async function installed(): Promise<Device> {
  const folder = scratch()
  const device = await Device.make(folder, { anchor: await signedRoot({}, [1, 2]) })
  writeFileSync(join(folder, 'x.bundle'), await forge())
  await device.install(join(folder, 'x.bundle'))
  return device
}

async function kept(device: Device) {
  const stored = await device.ports.engine.storedRelease('b')
  if (stored === undefined) throw new Error('nothing is kept about slot b')
  return stored.statement
}

describe('slots', () => {
  it('C4 slot changed after install: one bit anywhere in image or tree is found, by us and by veritysetup', async () => {
    const device = await installed()
    const statement = await kept(device)
    expect(await device.ports.engine.slotFault('b', statement, NEVER)).toBeUndefined()
    for (const { name, length, root } of statement.images) {
      const path = join(device.root, 'disk', `${name}-b`)
      const bytes = readFileSync(path)
      const end = length + treeSize(length)
      for (let at = 0; at < end; at += 4096) {
        const bit = at + (((at / 4096) * 37) % 4096)
        // Behind the last digest of a node there is padding, which dm-verity covers as well.
        bytes[bit] = (bytes[bit] ?? 0) ^ 16
        writeFileSync(path, bytes)
        const fault = await device.ports.engine.slotFault('b', statement, NEVER)
        if (fault === undefined) expect.fail(`${name}: bit ${bit} was not found`)
        countRefusals()
        if (at === 4096 && haveTool('veritysetup')) {
          const args = ['--no-superblock', '--salt=-', `--hash-offset=${length}`, `--data-blocks=${length / 4096}`]
          expect(() => run('veritysetup', 'verify', path, path, root, ...args)).toThrow(/corrupt|failed/i)
        }
        bytes[bit] = (bytes[bit] ?? 0) ^ 16
      }
      writeFileSync(path, bytes)
    }
    expect(await device.ports.engine.slotFault('b', statement, NEVER)).toBeUndefined()
  })

  it('C5 the dm-verity table: what is not a constant of init is signed, and each signed field counts', async () => {
    const device = await installed()
    const statement = await kept(device)
    const [boot, rootfs] = statement.images
    if (boot === undefined || rootfs === undefined) throw new Error('two images')
    for (const [what, change] of [
      ['the root hash', { root: boot.root }],
      ['a block less', { length: rootfs.length - 4096 }],
      ['a block more', { length: rootfs.length + 4096 }],
      ['one block', { length: 4096 }],
    ] as const) {
      const images = [boot, { ...rootfs, ...change }]
      const fault = await device.ports.engine.slotFault('b', { ...statement, images }, NEVER)
      if (fault === undefined) expect.fail(`${what} was not noticed`)
      countRefusals()
    }
    for (const extra of [{ salt: 'ab' }, { dataBlockSize: 512 }, { hashType: 0 }, { options: 'ignore_corruption' }]) {
      const edit = (payload: Record<string, unknown>) => ({ ...payload, ...extra, critical: Object.keys(extra) })
      writeFileSync(join(device.root, 'y.bundle'), await forge({ edit }))
      await device.reset()
      await device.core.update((body) => ({ ...body, state: { name: 'idle' } }))
      refused(
        Object.keys(extra).join(),
        await attempt(() => device.install(join(device.root, 'y.bundle'))),
        'RELEASE_CRITICAL',
      )
    }
  })

  it.skipIf(!busybox)('C5 the dm-verity table: the words of the command line cannot add to it', () => {
    const good = { slot: 'a', roothash: 'ab'.repeat(32), length: '8192', release: '1.2' }
    const check = (change: Record<string, string>) =>
      inInit(['is_number', 'check_command_line', 'verity_table'], 'check_command_line\nverity_table /dev/x', {
        ...good,
        ...change,
      })
    expect(check({}).said).toBe(`0 16 verity 1 /dev/x /dev/x 4096 4096 2 2 sha256 ${good.roothash} -`)
    const words: Record<string, string>[] = [
      ...['', 'c', 'a b', '../a', 'aa'].map((slot) => ({ slot })),
      ...[
        '',
        'ab',
        'AB'.repeat(32),
        `${'ab'.repeat(32)} `,
        `${'ab'.repeat(31)}a;`,
        `${'ab'.repeat(30)} - 1`,
        'g'.repeat(64),
      ].map((roothash) => ({ roothash })),
      ...['', '0', '4095', '8192 1', '-4096', '0x1000', '4096;reboot', '1'.repeat(40)].map((length) => ({ length })),
      ...['', '1', '1.', '.1', 'a.b', '1.2.3', '1.-2', '1 1.2', `1.${'9'.repeat(30)}`].map((release) => ({ release })),
    ]
    for (const change of words) {
      const { exit, said } = check(change)
      expect(said, JSON.stringify(change)).toMatch(/^fail bistable\./)
      expect(exit, JSON.stringify(change)).toBe(9)
      countRefusals()
    }
  })

  it('C6 a file swapped with another genuine one of the image: the lists of files differ, and so does the root', async () => {
    const digest = (text: string) => createHash('sha256').update(text).digest('hex')
    const entry = (path: string, text: string) =>
      ({ path, type: 'file', mode: 0o755, uid: 0, gid: 0, size: 5, digest: digest(text) }) as InventoryEntry
    const signed = [entry('/bin/login', 'login'), entry('/bin/true', 'true')]
    const swapped = [entry('/bin/login', 'true'), entry('/bin/true', 'login')]
    const changes = []
    for await (const change of diffFiles(signed, swapped)) changes.push(change)
    expect(changes).toHaveLength(2)
    countRefusals(2)
    const device = await installed()
    const path = join(device.root, 'disk/rootfs-b')
    const bytes = readFileSync(path)
    const [first, second] = [Buffer.from(bytes.subarray(4096, 8192)), Buffer.from(bytes.subarray(12288, 16384))]
    second.copy(bytes, 4096)
    first.copy(bytes, 12288)
    writeFileSync(path, bytes)
    expect(await device.ports.engine.slotFault('b', await kept(device), NEVER)).toMatch(/rootfs/)
    countRefusals()
  })
})

describe('boot state', () => {
  const BOUNDS = [
    '0',
    '1',
    '9',
    '10',
    '-1',
    '4294967295',
    '4294967296',
    '9999999999',
    '10000000000',
    '',
    ' ',
    'a',
    'c',
    '.',
    '%',
    '$x',
  ]

  it('C7 boot counter tampering: whatever the blocks hold, one of the two slots boots, with at most nine tries', () => {
    const seen = (copies: readonly [Uint8Array, Uint8Array], reason: Uint8Array) => {
      const [a, b] = [decodeCopy(copies[0]), decodeCopy(copies[1])]
      const counting = chooseCopy([a, b])
      const copy = counting === undefined ? undefined : [a, b][counting]
      const state = copy?.kind === 'valid' ? copy.state : undefined
      const { starts } = decodeReason(reason)
      for (const writable of [true, false]) {
        const decision = onBoot(state, { starts, writable, loadable: { a: true, b: true } })
        expect(['a', 'b']).toContain(decision.slot)
        expect(decision.left).toBeLessThanOrEqual(9)
        // A slot that is neither primary, on trial nor a spare is never chosen while a state can be read.
        if (state !== undefined && decision.slot !== state.primary)
          expect(state.trial === decision.slot || state.spare, JSON.stringify(state)).toBe(true)
      }
      countRefusals()
    }
    const good = encodeCopy(freshState('a'))
    const reason = Buffer.alloc(512, '#')
    const words: string[] = []
    for (const field of [0, 1, 2, 3, 4])
      for (const bound of BOUNDS) {
        const parts = encodeWord({ ...freshState('a'), trial: 'b', left: 3 } as BootState).split('.')
        parts[field] = bound
        words.push(parts.join('.'))
      }
    for (const word of words) {
      const text = `# GRUB Environment Block\nbs_head=${word}\nbs_tail=${word}\n`
      const block = Buffer.from(text.padEnd(1024, '#'))
      seen([block, block], reason)
      seen([block, good], reason)
      seen([good, block], Buffer.from(`# GRUB Environment Block\nrs_head=${word}\nrs_tail=${word}\n`.padEnd(1024, '#')))
    }
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 1100 }),
        fc.uint8Array({ maxLength: 1100 }),
        fc.uint8Array({ maxLength: 600 }),
        (a, b, c) => seen([a, b], c),
      ),
      { numRuns: 300 },
    )
    const full = { ...freshState('b'), generation: MAX_GENERATION }
    seen([encodeCopy(full), good], reason)
  })

  it.skipIf(!busybox)(
    'C8 downgrade through the fallback slot: init refuses a release under the floor, whichever way it was chosen',
    () => {
      const data = scratch()
      mkdirSync(join(data, 'bistable'))
      const floor = (bytes: Uint8Array) => writeFileSync(join(data, 'bistable/floor'), bytes)
      const check = (release: string, boot: string) =>
        inInit(['is_number', 'below', 'check_floor'], 'check_floor\necho booted', { DATA: data, release, boot })
      floor(encodeFloor({ epoch: 1, counter: 8 }))
      for (const boot of ['committed', 'try', 'fallback', 'menu']) {
        for (const release of ['1.7', '1.0', '0.8', '0.9', '0.4294967304', '0.99999999999']) {
          expect(check(release, boot).said).toBe(`fail release ${release} is under the security floor 1.8`)
          countRefusals()
        }
        for (const release of ['1.8', '1.9', '1.10', '2.0']) expect(check(release, boot).said).toBe('booted')
      }
      // A floor that cannot be read stops what is new; the committed release comes up and its agent mends the file.
      for (const damage of ['', '1.8\n', '1.9\n'.padEnd(68, 'a'), '\0\0\0', '99999999999999999999.0\nx\n']) {
        floor(Buffer.from(damage))
        expect(check('1.9', 'try').said).toBe('fail the floor is not readable')
        expect(check('1.9', 'committed').said).toContain('booted')
        countRefusals()
      }
    },
  )

  it('C8 downgrade through the fallback slot: a person cannot go back under the floor either', async () => {
    const world = new World({ counter: 7 })
    await world.publish({ counter: 8, securityFloor: 8 })
    await world.run()
    expect(world.core?.body.securityFloor.counter).toBe(8)
    const core = world.core
    if (core === undefined) throw new Error('no agent ran')
    expect(await codeOfAsync(() => rollBackNow(core))).toBe('ROLLBACK_FLOOR')
    // The slot that holds 7 is not offered to the bootloader any more.
    expect(world.boot).toMatchObject({ primary: 'b', trial: undefined, spare: false })
  })

  it('C10 no second opinion on signatures: the initramfs checks hashes and holds no verifier', () => {
    expect(/openssl|minisign|signify|\bgpg|pkeyutl/.test(INIT)).toBe(false)
    const tools = readFileSync(resolve(import.meta.dirname, '../../initramfs/tools.ts'), 'utf8')
    expect(tools).not.toMatch(/openssl|minisign|signify|gpg/)
    // What it trusts is the root hash of the chosen slot, by dm-verity, and nothing of the file system before that.
    expect(INIT.indexOf('find_slot\n')).toBeLessThan(INIT.indexOf('mount -t squashfs'))
    expect(/ignore_corruption|check_at_most_once/.test(INIT)).toBe(false)
  })
})
