import { readdirSync, readlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { runCli } from '../../base/cli.ts'
import { publisherVerbs } from '../../publisher/cli.ts'
import { scratch } from '../bundle/tools.ts'
import { makeBundle } from '../helpers/bundle.ts'
import { signedRoot } from '../keys/helpers.ts'

/** Files of `folder` that this process has open. */
function open(folder: string): string[] {
  const links = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`)
    } catch {
      return ''
    }
  })
  return links.filter((path) => path.startsWith(`${folder}/`)).sort()
}

it('a command that is refused leaves no file open', async () => {
  const folder = scratch()
  const { path } = await makeBundle(folder, 'a', { boot: Buffer.alloc(4096, 1), rootfs: Buffer.alloc(8192, 2) })
  writeFileSync(join(folder, 'none.bundle'), 'no bundle')
  writeFileSync(join(folder, 'root.json'), await signedRoot({}, [1, 2]))
  const nowhere = join(folder, 'no/such/folder/x')
  for (const [argv, exit] of [
    [['delta', path, join(folder, 'none.bundle'), '--output', join(folder, 'x')], 3],
    [['delta', join(folder, 'none.bundle'), path, '--output', join(folder, 'x')], 3],
    [['disk', path, '--root', join(folder, 'root.json'), '--output', nowhere], 8],
  ] as const) {
    const terminal = { out: () => undefined, err: () => undefined, interactive: false }
    expect(await runCli(publisherVerbs, argv, terminal, new AbortController().signal)).toBe(exit)
    expect(open(folder)).toEqual([])
  }
})
