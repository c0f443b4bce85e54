import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { runCli } from '../../base/cli.ts'
import { bundleVerbs } from '../../bundle/cli.ts'
import { inspectBundle } from '../../bundle/reader.ts'
import { signedRoot } from '../keys/helpers.ts'
import { makeBundle, memorySource } from './fixture.ts'
import { noise } from './tools.ts'

async function cli(...argv: string[]) {
  const out: string[] = []
  const err: string[] = []
  const terminal = { out: (line: string) => out.push(line), err: (line: string) => err.push(line), interactive: false }
  const code = await runCli(bundleVerbs, argv, terminal, new AbortController().signal)
  return { code, out: out.join('\n'), err: err.join('\n') }
}

test('inspect: for people and as JSON', async () => {
  const { path } = await makeBundle({ edit: (statement) => ({ ...statement, colour: '\u001b[2J' }) })
  const { code, out } = await cli('inspect', path)
  expect(code).toBe(0)
  for (const fact of ['demo', '0.7', '2.0.0', 'qemu-x86_64', 'rootfs', 'inventory', 'signed by', 'NOT AUTHENTICATED'])
    expect(out).toContain(fact)
  expect(out).toContain('unknown field "colour"')
  expect(out).not.toContain('\u001b')
  const json = JSON.parse((await cli('inspect', path, '--json')).out)
  expect(json).toMatchObject({
    ok: true,
    authenticated: false,
    product: 'demo',
    number: { epoch: 0, counter: 7 },
    roots: { first: 1, last: 1 },
    images: [{ name: 'boot' }, { name: 'rootfs', chunks: { raw: 1, zstd: 0 } }],
    ignored: ['colour'],
  })
})

test('inspect prints an attachment, its digest checked first; with --root only what that vouches for', async () => {
  // A name that would turn a terminal's line around comes out as the same string in JSON.
  const sbom = '{\n "name": "\u202e x"\n}\n'
  const made = await makeBundle({ attachments: { sbom: Buffer.from(sbom), inventory: Buffer.from('{"path":"/"}\n') } })
  const shown = await cli('inspect', made.path, '--sbom')
  expect([shown.code, JSON.parse(shown.out)]).toEqual([0, { name: '\u202e x' }])
  expect(shown.out).not.toContain('\u202e')
  expect((await cli('inspect', made.path, '--inventory')).out).toBe('{"path":"/"}')
  expect((await cli('inspect', made.path, '--provenance')).err).toContain('BUNDLE_ATTACHMENT')
  expect((await cli('inspect', made.path, '--sbom', '--inventory')).code).toBe(2)

  const root = join(made.dir, 'root.json')
  writeFileSync(root, made.parts.roots[0] ?? '')
  expect((await cli('inspect', made.path, '--root', root)).out).not.toContain('NOT AUTHENTICATED')
  expect((await cli('inspect', made.path, '--sbom', '--root', root)).code).toBe(0)
  writeFileSync(root, await signedRoot({ root: [4, 5, 6] }, [4, 5]))
  expect((await cli('inspect', made.path, '--sbom', '--root', root)).err).toContain('SIGNATURE_THRESHOLD')

  const bytes = Buffer.from(made.bytes)
  const at = (await inspectBundle(memorySource(bytes))).head.offsets.attachments.sbom ?? 0
  bytes[at + 20] = (bytes[at + 20] ?? 0) ^ 1
  writeFileSync(made.path, bytes)
  const bad = await cli('inspect', made.path, '--sbom')
  expect([bad.code, bad.out]).toEqual([4, ''])
})

test('inspect prints an attachment of one long line, and lines that end anywhere', async () => {
  const long = Buffer.from(`a\n\n${'ä'.repeat(8 << 20)}\nb`)
  const { path } = await makeBundle({
    attachments: { sbom: long, inventory: Buffer.from(`{}\n${'x'.repeat(131_072)}\n`) },
  })
  expect((await cli('inspect', path, '--sbom')).out === long.toString()).toBe(true)
  expect((await cli('inspect', path, '--inventory')).out).toBe(`{}\n${'x'.repeat(131_072)}`)
})

test('inspect with --root shows what that vouched for, and not what stood there a moment before', async () => {
  const made = await makeBundle()
  const forged = await makeBundle({ release: { version: '6.6.6' } })
  expect(forged.bytes.length).toBe(made.bytes.length)
  const root = join(made.dir, 'root.json')
  writeFileSync(root, made.parts.roots[0] ?? '')
  const inspect = bundleVerbs.find(({ name }) => name === 'inspect')
  const out: string[] = []
  let asked = false
  writeFileSync(made.path, forged.bytes)
  const code = await inspect?.run({
    positionals: [made.path],
    // The file is another one as soon as the bundle is to be held against the root.
    options: {
      get root() {
        if (!asked) writeFileSync(made.path, made.bytes)
        asked = true
        return root
      },
    },
    json: true,
    terminal: { out: (line) => out.push(line), err: () => undefined, interactive: false },
    signal: new AbortController().signal,
  })
  expect(code).toBe(0)
  expect(JSON.parse(out.join(''))).toMatchObject({ authenticated: true, version: '2.0.0' })
})

test('verify: OK with the digest, or the code of the refusal', async () => {
  const made = await makeBundle({ rootfs: noise(3000 * 4096) })
  const root = join(made.dir, 'root.json')
  writeFileSync(root, made.parts.roots[0] ?? '')
  const good = await cli('verify', made.path, '--root', root)
  expect(good.code).toBe(0)
  expect(good.out).toMatch(/^OK demo 0\.7 [0-9a-f]{64}$/)
  expect(good.err).toContain('verified 100% of 12 MiB')
  expect(JSON.parse((await cli('verify', made.path, '--root', root, '--json')).out)).toMatchObject({ ok: true })

  const bytes = Buffer.from(made.bytes)
  bytes[bytes.length - 2000] = (bytes[bytes.length - 2000] ?? 0) ^ 1
  writeFileSync(made.path, bytes)
  const bad = await cli('verify', made.path, '--root', root)
  expect(bad.code).toBe(4)
  expect(bad.err).toContain('BUNDLE_DIGEST')

  writeFileSync(root, await signedRoot({ root: [4, 5, 6] }, [4, 5]))
  expect((await cli('verify', made.path, '--root', root)).err).toContain('SIGNATURE_THRESHOLD')
  writeFileSync(root, noise(20_000))
  expect((await cli('verify', made.path, '--root', root)).err).toContain('BUNDLE_TOO_LARGE')
})

test('usage', async () => {
  expect((await cli('inspect')).code).toBe(2)
  expect((await cli('inspect', 'a', 'b')).code).toBe(2)
  expect((await cli('verify', 'a')).err).toContain('--root is missing')
  expect((await cli('verify', '/nowhere', '--root', '/nowhere')).err).toContain('SOURCE_OPEN')
})
