import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import type { BootBackend } from '../../bootloader/backend.ts'
import { bucketBytes, decodeBucket, encodeBucket } from '../../bootloader/barebox-state.ts'
import { arm, commit, freshState } from '../../bootloader/machine.ts'
import { openBackend } from '../../device/agent/backends.ts'
import { readPlaces } from '../../device/agent/places.ts'
import { NO_EDGE } from '../helpers/backend-edge.ts'
import { anyMove, picker } from '../helpers/boot-moves.ts'
import { have, run } from '../helpers/run.ts'

/** barebox's state, held against the real barebox-state (Debian: dt-utils). barebox itself is in no Debian package. */

const dir = mkdtempSync(join(tmpdir(), 'bistable-barebox-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const platform = '/sys/devices/platform'
const place = readdirSync('/sys/devices').includes('platform')
  ? readdirSync(platform).find((name) => readdirSync('/sys/devices/platform').includes(name) && hasEvent(name))
  : undefined
const oracle =
  process.getuid?.() === 0 && place !== undefined && have('barebox-state', 'dtc', 'unshare') && canUnshare()

function hasEvent(name: string): boolean {
  try {
    return readdirSync(join(platform, name)).includes('uevent')
  } catch {
    return false
  }
}
function canUnshare(): boolean {
  return spawnSync('unshare', ['-m', 'true']).status === 0
}

const STRIDE = 1024
const layout = {
  magic: 0xb15ab1e0,
  length: 24,
  variables: { a: { attempts: 0, priority: 4 }, b: { attempts: 8, priority: 12 } },
}
const image = join(dir, 'state.img')
const TREE = `/dts-v1/;
/ { #address-cells = <1>; #size-cells = <1>;
  aliases { state = &state; };
  disk@0 { compatible = "x,disk"; reg = <0 0x10000>;
    partitions { compatible = "fixed-partitions"; #address-cells = <1>; #size-cells = <1>;
      backend: partition@0 { label = "state"; reg = <0x0 0x10000>; }; }; };
  state: state { #address-cells = <1>; #size-cells = <1>; compatible = "barebox,state"; magic = <0xb15ab1e0>;
    backend-type = "raw"; backend = <&backend>; backend-stridesize = <${STRIDE}>; backend-storage-type = "direct";
    bootstate { #address-cells = <1>; #size-cells = <1>;
      a { #address-cells = <1>; #size-cells = <1>;
        remaining_attempts@0 { reg = <0x0 0x4>; type = "uint32"; default = <3>; };
        priority@4 { reg = <0x4 0x4>; type = "uint32"; default = <20>; }; };
      b { #address-cells = <1>; #size-cells = <1>;
        remaining_attempts@8 { reg = <0x8 0x4>; type = "uint32"; default = <0>; };
        priority@c { reg = <0xc 0x4>; type = "uint32"; default = <0>; }; };
    };
    board { #address-cells = <1>; #size-cells = <1>;
      serial@10 { reg = <0x10 0x4>; type = "uint32"; default = <77>; };
      other@14 { reg = <0x14 0x4>; type = "uint32"; default = <5>; }; };
  };
};
`

beforeAll(() => {
  if (!oracle) return
  writeFileSync(join(dir, 'tree.dts'), TREE)
  run('dtc', ['-q', '-O', 'dtb', '-o', join(dir, 'tree.dtb'), join(dir, 'tree.dts')])
})

/**
 * The real program on our file: in a mount namespace of its own, a platform device looks like an EEPROM whose node is
 * the disk of the tree above.
 */
function bareboxState(...args: readonly string[]): Record<string, number> {
  const device = join(platform, place ?? '')
  const script = [
    `mount -t tmpfs none ${device}`,
    `ln -s ../../../bus/platform ${device}/subsystem`,
    `printf 'OF_FULLNAME=/disk@0\\nMODALIAS=x\\n' >${device}/uevent`,
    `cp ${image} ${device}/eeprom`,
    `SYSTEMD_DEVICE_VERIFY_SYSFS=0 barebox-state -q -i ${join(dir, 'tree.dtb')} ${args.join(' ')} && cp ${device}/eeprom ${image}`,
  ]
  const said = run('unshare', ['-m', 'sh', '-ec', script.join('\n')])
  return Object.fromEntries([...said.matchAll(/^(\S+)=(\d+)$/gm)].map(([, name, value]) => [name ?? '', Number(value)]))
}

async function backend(): Promise<BootBackend> {
  const places = join(dir, 'places.json')
  writeFileSync(places, JSON.stringify({ boot: { kind: 'barebox', path: image, stride: STRIDE, layout } }))
  return await openBackend(await readPlaces(places, nodeFiles), NO_EDGE)
}
const blank = () => writeFileSync(image, new Uint8Array(65536))
const damage = (bucket: number, at: number) => {
  const bytes = readFileSync(image)
  bytes[bucket * STRIDE + at] = (bytes[bucket * STRIDE + at] ?? 0) ^ 0x55
  writeFileSync(image, bytes)
}

describe("barebox's state", () => {
  it('holds every state that a chain of moves leads to, and is healed bucket by bucket', async () => {
    blank()
    const opened = await backend()
    expect(await opened.read()).toEqual({ state: undefined, torn: false })
    await opened.write(freshState('a'))
    const pick = picker(11)
    for (let n = 0; n < 100; n++) {
      const { state = freshState('a') } = await opened.read()
      const next = anyMove(state, pick, () => 1 + pick(9))
      await opened.write(next)
      expect(await opened.read()).toEqual({ state: { ...next, generation: 0 }, torn: false })
      damage(n % 3, pick(bucketBytes(layout)))
      expect(await opened.read()).toEqual({ state: { ...next, generation: 0 }, torn: true })
    }
  })

  it('gives a committed slot its starts back when it came up, and only then', async () => {
    blank()
    const opened = await backend()
    await opened.write(freshState('b'))
    const spend = () => {
      const data = decodeBucket(layout, readFileSync(image)) ?? new Uint8Array(layout.length)
      data[layout.variables.b.attempts] = 1
      const bytes = readFileSync(image)
      for (const n of [0, 1, 2]) bytes.set(encodeBucket(layout, data), n * STRIDE)
      writeFileSync(image, bytes)
    }
    spend()
    const before = readFileSync(image)
    await opened.clearReason('a')
    expect(Buffer.compare(readFileSync(image), before)).toBe(0)
    await opened.clearReason('b')
    expect(decodeBucket(layout, readFileSync(image))?.[layout.variables.b.attempts]).toBe(3)
  })

  it('a write cut at any byte leaves the old state or the new one', async () => {
    blank()
    const opened = await backend()
    await opened.write(freshState('a'))
    const old = readFileSync(image)
    await opened.write(arm(freshState('a'), 'b'))
    const next = readFileSync(image)
    const size = bucketBytes(layout)
    for (let cut = 0; cut <= 3 * size; cut++) {
      const disk = Buffer.from(old)
      for (let n = 0; n < 3; n++) {
        const part = Math.max(0, Math.min(size, cut - n * size))
        disk.set(next.subarray(n * STRIDE, n * STRIDE + part), n * STRIDE)
      }
      writeFileSync(image, disk)
      expect(['-', 'b']).toContain((await opened.read()).state?.trial ?? '-')
    }
  })

  it('settings that overlap are refused', async () => {
    const places = join(dir, 'bad.json')
    for (const change of [
      { stride: 40 },
      {
        layout: {
          ...layout,
          length: 16,
          variables: { a: { attempts: 0, priority: 4 }, b: { attempts: 8, priority: 13 } },
        },
      },
    ]) {
      writeFileSync(
        places,
        JSON.stringify({ boot: { kind: 'barebox', path: image, stride: STRIDE, layout, ...change } }),
      )
      await expect(readPlaces(places, nodeFiles)).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
    }
    const none = await openBackend(
      { boot: { kind: 'barebox', path: join(dir, 'none'), offset: 0, stride: STRIDE, layout } },
      NO_EDGE,
    )
    await expect(none.read()).rejects.toMatchObject({ code: 'BOOT_STATE_READ' })
  })
})

describe.skipIf(!oracle)('the real barebox-state', () => {
  it('reads what we write, and we read what it writes; what else the board keeps stays', async () => {
    blank()
    expect(
      bareboxState('-s', 'board.serial=4711', '-s', 'bootstate.a.priority=20', '-s', 'bootstate.b.priority=0'),
    ).toEqual({})
    const opened = await backend()
    expect((await opened.read()).state).toEqual({ ...freshState('a'), generation: 0 })
    await opened.write(arm(freshState('a'), 'b', 2))
    expect(bareboxState('-d')).toEqual({
      'bootstate.a.remaining_attempts': 3,
      'bootstate.a.priority': 20,
      'bootstate.b.remaining_attempts': 2,
      'bootstate.b.priority': 30,
      'board.serial': 4711,
      'board.other': 5,
    })
    bareboxState('-s', 'bootstate.b.remaining_attempts=1')
    expect((await opened.read()).state).toMatchObject({ primary: 'a', trial: 'b', left: 1 })
    await opened.write(commit(arm(freshState('a'), 'b', 2), 'b'))
    expect(bareboxState('-d')).toMatchObject({
      'bootstate.a.priority': 10,
      'bootstate.b.priority': 20,
      'board.serial': 4711,
    })
  })

  it('chooses the same bucket, whichever are damaged', async () => {
    const size = bucketBytes(layout)
    for (let lost = 0; lost < 7; lost++) {
      blank()
      const opened = await backend()
      const bytes = readFileSync(image)
      // Three buckets of three states, as no writer leaves them: the choice shows.
      for (const left of [1, 2, 3]) {
        await opened.write(arm(freshState('a'), 'b', left))
        bytes.set(readFileSync(image).subarray(0, size), (left - 1) * STRIDE)
      }
      writeFileSync(image, bytes)
      for (const n of [0, 1, 2]) if (((lost >> n) & 1) === 1) damage(n, 8 + ((lost * 5 + n) % (size - 8)))
      const ours = (await opened.read()).state?.left
      expect(bareboxState('-d')['bootstate.b.remaining_attempts'], `lost ${lost}`).toBe(ours)
    }
  })
})
