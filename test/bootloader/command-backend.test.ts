import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { arm, claim, commit, freshState } from '../../bootloader/machine.ts'
import { openBackend, openRepairer } from '../../device/agent/backends.ts'
import { readPlaces } from '../../device/agent/places.ts'
import { NO_EDGE } from '../helpers/backend-edge.ts'

/** Real programs, chosen by a real places.json. */

const dir = mkdtempSync(join(tmpdir(), 'bistable-command-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const edge = NO_EDGE
let count = 0

/** A program in JavaScript; `question` is what it was asked. */
async function backend(body: string, more: object = {}) {
  const path = join(dir, `keeper-${count++}`)
  const text = `#!${process.execPath}\nconst fs = require('fs')\nconst kept = ${JSON.stringify(`${path}.json`)}\nconst question = JSON.parse(fs.readFileSync(0, 'utf8'))\n`
  writeFileSync(path, text + body)
  chmodSync(path, 0o755)
  const places = `${path}.places`
  writeFileSync(places, JSON.stringify({ boot: { kind: 'command', command: [path, 'an argument'], ...more } }))
  return { path, given: await readPlaces(places, nodeFiles), kept: `${path}.json` }
}
const KEEPER = `
const all = fs.existsSync(kept) ? JSON.parse(fs.readFileSync(kept)) : { state: null, asked: [] }
all.asked.push(question.do + (question.slot ?? ''))
if (question.do === 'write') all.state = question.state
fs.writeFileSync(kept, JSON.stringify(all))
console.log(JSON.stringify({ state: all.state, failure: { slot: 'b', stage: 'verity', text: 'no' } }))
`

describe('a boot state that a program keeps', () => {
  it('is written, read back and reported', async () => {
    const { given, kept, path } = await backend(KEEPER, { maxTries: 2 })
    const opened = await openBackend(given, edge)
    expect(opened.describe()).toEqual({ name: 'command', place: `kept by ${path}`, maxTries: 2 })
    expect(await opened.read()).toEqual({ state: undefined, torn: false })
    const armed = arm(claim(freshState('a')), 'b', 2)
    for (const state of [freshState('a'), armed, commit(armed, 'b')]) {
      await opened.write(state)
      expect((await opened.read()).state).toEqual(state)
    }
    expect((await opened.reason()).failure).toEqual({ slot: 'b', stage: 'verity', text: 'no' })
    await opened.clearReason('b')
    expect(JSON.parse(readFileSync(kept, 'utf8')).asked.at(-1)).toBe('came-upb')
    await expect(opened.write(freshState('a'))).rejects.toMatchObject({ code: 'BOOT_STATE_INVALID' })
    await opened.close()
  })

  const bad: readonly (readonly [string, string, object?])[] = [
    ['fails', 'process.stderr.write("no such variable"); process.exit(3)'],
    [
      'hangs, with a child of its own',
      'require("child_process").spawn("sleep", ["60"]); setInterval(() => {}, 1000)',
      { seconds: 1 },
    ],
    ['says no JSON', 'console.log("fine")'],
    ['says an array', 'console.log("[]")'],
    ['talks without end', 'for (;;) fs.writeSync(1, "x".repeat(4096))'],
    ['gives half a state', 'console.log(JSON.stringify({ state: { primary: "a" } }))'],
    [
      'gives a state that cannot be',
      'console.log(JSON.stringify({ state: { generation: 1, primary: "a", trial: "a", left: 1, spare: false } }))',
    ],
  ]
  for (const [what, body, more] of bad)
    it(`one that ${what} is refused by name, in time`, async () => {
      const opened = await openBackend((await backend(body, more)).given, edge)
      await expect(opened.read()).rejects.toMatchObject({ code: 'BOOT_COMMAND_FAILED' })
    })

  it('one that is not there, and one that forgets what it was given', async () => {
    const missing = await openBackend({ boot: { kind: 'command', command: [join(dir, 'none')], seconds: 5 } }, edge)
    await expect(missing.read()).rejects.toThrow(/cannot be run/)
    const forgetful = await openBackend((await backend('console.log(JSON.stringify({ state: null }))')).given, edge)
    await expect(forgetful.write(freshState('a'))).rejects.toMatchObject({ code: 'BOOT_STATE_NOT_STORED' })
  })

  it('is not repaired from here; a wrong setting is named', async () => {
    const { given } = await backend(KEEPER)
    await expect(openRepairer(given, edge)).rejects.toMatchObject({ code: 'REPAIR_UNSUPPORTED' })
    const places = join(dir, 'places.json')
    writeFileSync(places, JSON.stringify({ boot: { kind: 'command', command: [] } }))
    await expect(readPlaces(places, nodeFiles)).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
  })
})
