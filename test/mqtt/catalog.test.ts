import { rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it, vi } from 'vitest'
import { Catalog } from '../../publisher/mqtt/catalog.ts'
import { noise, scratch } from '../bundle/tools.ts'
import { publishFolder } from './tools.ts'

// Files that this user may not read; root, who runs tests, may read them all.

const locked = new Set<string>()
vi.mock('node:fs/promises', async (original) => {
  const real = await original<typeof import('node:fs/promises')>()
  const guard = (path: unknown): void => {
    if ([...locked].some((name) => String(path).endsWith(name)))
      throw Object.assign(new Error(`EACCES: permission denied, open '${path}'`), { code: 'EACCES', errno: -13 })
  }
  return {
    ...real,
    readFile: async (path: string) => {
      guard(path)
      return await real.readFile(path)
    },
    open: async (path: string, flags?: number) => {
      guard(path)
      return await real.open(path, flags)
    },
  }
})

it('a file that cannot be read is said once, and keeps no other back', async () => {
  const folder = publishFolder(scratch(), {
    'bundles/a.bundle': noise(5000, 'a'),
    'bundles/b.bundle': noise(5000, 'b'),
    'roots/1.json': '{"root":1}',
    'roots/2.json': '{"root":2}',
    'channels/stable.json': '{"channel":1}',
  })
  locked.add('roots/2.json').add('a.bundle')
  const said: string[] = []
  const catalog = new Catalog(folder, (line) => void said.push(line))
  const changed = async () => (await catalog.scan()).map(({ file }) => file).sort()
  expect(await changed()).toEqual(['channels/stable.json', 'roots/1.json'])
  expect(catalog.bundles.map(({ file }) => file)).toEqual(['bundles/b.bundle'])
  expect(await changed()).toEqual([])
  expect(said.sort()).toEqual([
    expect.stringMatching(/^bundles\/a\.bundle cannot be read: .*EACCES/),
    expect.stringMatching(/^roots\/2\.json cannot be read: .*EACCES/),
  ])
  // As soon as they can be read, they are there.
  locked.clear()
  expect(await changed()).toEqual(['roots/2.json'])
  expect(catalog.bundles).toHaveLength(2)
  rmSync(join(folder, 'roots/1.json'))
  expect(await changed()).toEqual(['roots/1.json'])
  await catalog.close()
})

it('takes nothing through a link that leads out of the folder, and says so once', async () => {
  const outside = scratch()
  writeFileSync(join(outside, 'secret'), 'not for the fleet')
  const folder = publishFolder(scratch(), {
    'bundles/a.bundle': noise(5000, 'a'),
    'channels/stable.json': '{"channel":1}',
  })
  symlinkSync(join(outside, 'secret'), join(folder, 'channels/out.json'))
  symlinkSync(join(outside, 'secret'), join(folder, 'bundles/out.bundle'))
  symlinkSync('stable.json', join(folder, 'channels/beta.json'))
  const said: string[] = []
  const catalog = new Catalog(folder, (line) => void said.push(line))
  const found = async () => (await catalog.scan()).map(({ file }) => file).sort()
  expect(await found()).toEqual(['channels/beta.json', 'channels/stable.json'])
  expect(await found()).toEqual([])
  expect(catalog.bundles.map(({ file }) => file)).toEqual(['bundles/a.bundle'])
  expect(said.sort()).toEqual([
    expect.stringMatching(/^bundles\/out\.bundle cannot be read: .*out of the folder/),
    expect.stringMatching(/^channels\/out\.json cannot be read: .*out of the folder/),
  ])
  await catalog.close()
})
