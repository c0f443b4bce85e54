import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { digestOf } from '../device-agent/world.ts'
import { drop, makeAddon, scratchFolder } from './made.ts'

/**
 * Add-ons over a real /usr: loop devices, SquashFS, overlay and systemd-sysext of this machine, in a mount namespace that ends
 * with the test. Only device-mapper is stood in for, since a container has none: a dmsetup that lets veritysetup check the
 * very table, and then gives the loop device.
 */

const folder = scratchFolder()
const missing = whyNot()
let files: string[] = []

function whyNot(): string | undefined {
  if (process.getuid?.() !== 0) return 'needs root'
  const probe = spawnSync('sh', ['-c', 'losetup -f && unshare -m true && command -v veritysetup'], around())
  return probe.status === 0 ? undefined : 'no loop devices, mount namespaces or veritysetup here'
}

function around() {
  return {
    encoding: 'utf8',
    env: { ...process.env, PATH: `${folder}/bin:${process.env['PATH']}:/usr/sbin:/sbin` },
  } as const
}

beforeAll(async () => {
  if (missing !== undefined && process.env['CI'] !== undefined) throw new Error(missing)
  if (missing !== undefined) return
  mkdirSync(join(folder, 'bin'))
  mkdirSync(join(folder, 'mapper'))
  const dmsetup = `#!/bin/sh
case $1 in
  create)
    set -- "$2" $5
    # NAME 0 SECTORS verity 1 DATA HASH 4096 4096 BLOCKS HASHSTART sha256 ROOT SALT
    [ "$4" = verity ] && [ "$5" = 1 ] && [ "$12" = sha256 ] || exit 3
    veritysetup verify "$6" "$7" "\${13}" --no-superblock --format=1 --hash=sha256 --salt=- \\
      --data-block-size="$8" --hash-block-size="$9" --data-blocks="\${10}" --hash-offset=$((\${11} * 4096)) >&2 || exit 1
    ln -s "$6" ${folder}/mapper/"$1" ;;
  remove) shift; [ "$1" != --deferred ] || shift; rm -f ${folder}/mapper/"$1" ;;
esac
`
  writeFileSync(join(folder, 'bin/dmsetup'), dmsetup.replace('"$12"', '"${12}"'))
  chmodSync(join(folder, 'bin/dmsetup'), 0o755)
  const bases = [digestOf({ counter: 2 })]
  const first = { 'usr/share/one': '1', 'usr/share/both': 'first' }
  const second = { 'usr/share/two': '2', 'usr/share/both': 'second' }
  files = [
    (await makeAddon(folder, bases, { name: 'first', files: first })).file,
    (await makeAddon(folder, bases, { name: 'second', files: second })).file,
  ]
})
afterAll(() => drop(folder))

function inNamespace(mode: 'systemd' | 'overlay', prepare: string): Record<string, unknown> {
  const scratch = join(folder, mode)
  mkdirSync(scratch)
  execFileSync('ln', ['-s', join(folder, 'mapper'), join(scratch, 'mapper')])
  const program = [
    process.execPath,
    '--import',
    'tsx',
    join(import.meta.dirname, 'mounts-once.ts'),
    scratch,
    mode,
    ...files,
  ]
  const script = `mount --make-rprivate / && ${prepare} && exec "$@"`
  const ran = spawnSync('unshare', ['-m', 'sh', '-c', script, 'sh', ...program], around())
  if (ran.status !== 0) throw new Error(ran.stderr)
  return JSON.parse(ran.stdout.trim().split('\n').at(-1) ?? '')
}

function check(seen: Record<string, unknown>, own: string | null) {
  const two = { active: ['first', 'second'], one: '1', two: '2', both: expect.any(String) }
  expect(seen['both failed']).toEqual([])
  expect(seen['both']).toMatchObject(two)
  expect(seen['both again']).toMatchObject(two)
  expect(seen['one']).toEqual({ active: ['first'], one: '1', two: null, both: 'first' })
  expect(seen['none']).toEqual({ active: [], one: null, two: null, both: own })
  // The other one is there all the same.
  expect(seen['changed failed']).toEqual([expect.stringMatching(/^first: dmsetup create: .*(failed|corrupt)/is)])
  expect(seen['changed']).toMatchObject({ active: ['second'], one: null, two: '2' })
  expect(seen['end']).toEqual({ active: [], one: null, two: null, both: own })
  expect(seen).toMatchObject({ unlocked: [true, true], 'not due': false, due: true, locked: [false, false] })
}

describe.skipIf(missing !== undefined)('add-ons over /usr', () => {
  it('by an overlay of our own: put on, taken off, refused when changed on the disk; and /usr unlocked for a while', () => {
    // As an agent leaves it that was killed between two of its steps.
    const seen = inNamespace('overlay', `ln -s /dev/null ${folder}/mapper/bistable-addon-first`)
    check(seen, 'system')
    expect(seen['both']).toMatchObject({ both: 'first' })
    expect(spawnSync('losetup', ['-a'], around()).stdout).not.toContain(folder)
  })

  it.skipIf(!existsSync('/usr/bin/systemd-sysext'))('by systemd-sysext, which takes them for its own', () => {
    // systemd-sysext hands its mounts on from a namespace of its own: to this one, and no further.
    const seen = inNamespace('systemd', 'mount --make-rshared / && mount -t tmpfs tmpfs /run')
    check(seen, null)
  })
})
