import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { trustAnchor, walkRoots } from '../../keys/root.ts'
import { keysCli, keysJson } from '../helpers/keys-cli.ts'
import { key } from './helpers.ts'

let dir: string
const at = (...parts: string[]) => join(dir, ...parts)
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-change-'))
  await keysJson('keys', 'init', at('k'), '--product', 'demo', '--unprotected')
})
afterAll(() => rmSync(dir, { recursive: true }))

const revoke = (out: string, ...more: string[]) =>
  keysCli('keys', 'revoke', at('k', 'root.json'), '--out', at(out), ...more)
const root = (n: number) => at('k', `root-${n}.key`)

describe('keys compose', () => {
  const add = (role: string, n: number) => ['--add', `${role}=${key(n)}`]
  it('makes root 1 from public keys; people who never meet sign their copies; merge makes it whole', async () => {
    const people = ['ada', 'ben', 'cleo']
    const keys: string[] = []
    for (const name of people) {
      const made = await keysJson('keys', 'generate', at(`${name}.key`), '--unprotected')
      keys.push(String(made['publicKey']))
    }
    const made = await keysJson(
      ...['keys', 'compose', at('1.json'), '--product', 'p', ...keys.flatMap((k) => ['--add', `root=${k}`])],
      ...[...add('release', 11), ...add('fleet', 21)],
    )
    expect(made['root']).toMatchObject({ version: 1, epoch: 1, roles: { root: { threshold: 2, keys } } })
    // Nobody's word yet.
    expect((await keysCli('keys', 'rotate', at('1.json'), '--out', at('x.json'))).err).toContain('SIGNATURE_THRESHOLD')
    for (const name of ['ada', 'cleo']) {
      copyFileSync(at('1.json'), at(`1.${name}.json`))
      await keysJson('keys', 'sign', at(`1.${name}.json`), '--key', at(`${name}.key`))
    }
    const merge = ['keys', 'merge', at('1.json'), at('1.ada.json'), at('1.cleo.json')]
    expect(await keysJson(...merge)).toMatchObject({ signatures: 2 })
    expect(await keysJson(...merge)).toMatchObject({ signatures: 2 })
    expect(trustAnchor(readFileSync(at('1.json'))).current.roles.root.keys).toEqual(keys)
    expect((await keysCli('keys', 'merge', at('1.json'), at('k', 'root.json'))).err).toContain('MERGE_OTHER')
    expect((await keysCli('keys', 'merge', at('1.json'))).err).toContain('USAGE')
  })

  it.each([
    ['one key in two roles', [...add('root', 1), ...add('release', 1), ...add('fleet', 21)], 'ROOT_INVALID'],
    ['no fleet key', [...add('root', 1), ...add('release', 11)], 'ROOT_INVALID'],
    ['more signatures than keys', [...add('root', 1), '--threshold', 'root=2'], 'ROOT_INVALID'],
  ])('refuses %s', async (_, options, code) => {
    const { err } = await keysCli('keys', 'compose', at('refused.json'), '--product', 'p', ...options)
    expect(err).toContain(code)
    expect(existsSync(at('refused.json'))).toBe(false)
  })
})

describe('keys revoke', () => {
  it('takes a key out; the others sign; the chain walks and the key counts no more', async () => {
    const made = await revoke('lost.json', root(1))
    expect(made).toMatchObject({ code: 0, err: '' })
    expect(made.out).toContain('every root key must now sign')
    await keysJson('keys', 'sign', at('lost.json'), '--key', root(2), '--key', root(3))
    const { current } = walkRoots([readFileSync(at('k', 'root.json')), readFileSync(at('lost.json'))])
    expect(current.version).toBe(2)
    expect(current.roles.root.keys).toHaveLength(2)
  })

  it('of a stolen release key: another one, a new epoch, and what must be done next', async () => {
    const release = at('k', 'release-1.key')
    const made = await revoke('stolen.json', release, '--add', `release=${key(12)}`)
    expect(made.out).toMatch(/sign those you still need again[\s\S]*--raise-epoch/)
    const raised = await revoke('raised.json', release, '--add', `release=${key(12)}`, '--raise-epoch', '--json')
    expect(JSON.parse(raised.out)).toMatchObject({
      root: { epoch: 2, roles: { release: { keys: [key(12)], threshold: 1 } } },
    })
    const fleet = await revoke('fleet.json', at('k', 'fleet-1.key'), '--add', `fleet=${key(22)}`)
    expect(fleet.out).toContain('publish every channel again')
  })

  it.each([
    ['the only release key', [['release-1']], 'ROOT_UNREACHABLE'],
    ['two of three root keys, lost', [['root-1', 'root-2']], 'ROOT_UNREACHABLE'],
    [
      'two of three root keys, even with new ones',
      [
        ['root-1', 'root-2'],
        ['--add', `root=${key(4)}`],
      ],
      'ROOT_UNREACHABLE',
    ],
    ['a stranger', [[], [key(9)]], 'ROOT_INVALID'],
    ['nothing', [[]], 'USAGE'],
  ])('of %s is refused, and nothing is written', async (_, [names = [], more = []], code) => {
    const made = await revoke('no.json', ...names.map((name) => at('k', `${name}.key`)), ...more)
    expect(made.err).toContain(code)
    expect(existsSync(at('no.json'))).toBe(false)
  })

  it('of leaked root keys that can still sign goes with --still-held', async () => {
    const more = ['--add', `root=${key(4)}`, '--add', `root=${key(5)}`, '--still-held']
    expect((await revoke('held.json', root(1), root(2), ...more)).code).toBe(0)
    for (const n of [1, 2]) await keysJson('keys', 'sign', at('held.json'), '--key', root(n))
    const shown = await keysJson('keys', 'show', at('held.json'), '--root', at('k', 'root.json'))
    expect(shown['tallies']).toMatchObject([
      { rootVersion: 1, enough: true },
      { rootVersion: 2, enough: false },
    ])
  })
})
