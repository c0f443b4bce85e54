import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { ptyShell as openPtyShell } from './pty-shell.ts'
import { frameSum, readFrames, type Shell } from './shell.ts'
import { getFile, putFile } from './transfer.ts'

const folder = mkdtempSync(join(tmpdir(), 'bistable-shell-'))
const closing: (() => void)[] = []
afterAll(() => {
  for (const close of closing) close()
  rmSync(folder, { recursive: true })
})

function ptyShell(every: number | undefined, seed = 1): Shell {
  const { shell, close } = openPtyShell(every, seed)
  closing.push(close)
  return shell
}

describe('framed shell', () => {
  it('ignores frames whose checksum is wrong', () => {
    const good = `<T 1/1 YQo= ${frameSum('1/1 YQo=')}>`
    expect(readFrames(`x${good}y`, 'T').frames.size).toBe(1)
    expect(readFrames(good.replace('YQo', 'YQp'), 'T').frames.size).toBe(0)
  })

  it('returns output and exit code', async () => {
    const shell = ptyShell(undefined)
    await shell.open({ timeoutMs: 60_000 })
    expect(await shell.run('echo one; echo two >&2; exit 7')).toEqual({ code: 7, output: 'one\ntwo\n' })
    expect(await shell.run('true')).toEqual({ code: 0, output: '' })
    expect(await shell.run("printf '%s' \"it's $((6*7)) <>\"")).toEqual({ code: 0, output: "it's 42 <>" })
  })

  it('leaves in the transcript what was asked and what came of it, and none of it is taken for the device', async () => {
    const { shell, console, close } = openPtyShell(undefined)
    closing.push(close)
    await shell.open({ timeoutMs: 60_000 })
    await shell.run(`echo 'bistable: committed slot=b'; echo ${'x'.repeat(300)}; exit 7`)
    const said = console
      .tail()
      .split('\n')
      .filter((line) => line.includes('---'))
      .slice(-2)
    expect(said).toEqual([
      expect.stringMatching(/^ *[\d.]+ {2}--- \$ echo 'bistable: committed slot=b'; echo x{150,} \.\.\.$/),
      expect.stringMatching(/^ *[\d.]+ {2}--- = 7 bistable: committed slot=b x{150,} \.\.\.$/),
    ])
    expect(console.events).toEqual([])
  })

  it('is right 20 of 20 times with a kernel line every 300 bytes', async () => {
    const shell = ptyShell(300, 20261121)
    await shell.open({ timeoutMs: 60_000 })
    const forty = Array.from({ length: 40 }, (_, i) => `line ${i + 1} of some output\n`).join('')
    for (let round = 0; round < 20; round++) {
      const wide = round % 2 === 0
      const command = wide ? 'for i in $(seq 40);do echo "line $i of some output";done' : `echo ${round}; exit ${round}`
      expect(await shell.run(command)).toEqual(
        wide ? { code: 0, output: forty } : { code: round, output: `${round}\n` },
      )
    }
  })
})

describe('files over the console', () => {
  const bytes = Buffer.from(Array.from({ length: 60_000 }, (_, i) => (i * 7919) % 251))

  it('come and go whole, also where kernel lines disturb', async () => {
    const shell = ptyShell(3000, 7)
    await shell.open({ timeoutMs: 60_000 })
    const there = join(folder, "it's there")
    writeFileSync(there, bytes.subarray(0, 9_000))
    expect((await getFile(shell, there, 10_000)).equals(bytes.subarray(0, 9_000))).toBe(true)
    const local = join(folder, 'local')
    writeFileSync(local, bytes.subarray(0, 7_000))
    await putFile(shell, local, join(folder, "it's put"))
    expect(readFileSync(join(folder, "it's put")).equals(bytes.subarray(0, 7_000))).toBe(true)
    writeFileSync(local, '')
    await putFile(shell, local, join(folder, 'empty'))
    expect((await getFile(shell, join(folder, 'empty'), 0)).length).toBe(0)
  })

  it('that are too large, not there, or changed on the way are refused', async () => {
    const shell = ptyShell(undefined)
    await shell.open({ timeoutMs: 60_000 })
    writeFileSync(join(folder, 'large'), bytes)
    await expect(getFile(shell, join(folder, 'large'), 1000)).rejects.toThrow(/60000 bytes, at most 1000/)
    await expect(getFile(shell, join(folder, 'nothing'), 1000)).rejects.toThrow(/ended with/)
    await expect(getFile(shell, 'a\nb', 1000)).rejects.toThrow(TypeError)
    // A line that loses bytes of every piece: nothing appears under the name.
    const lossy = {
      runBytes: (command: string) => shell.runBytes(command),
      run: (command: string) => shell.run(command.replace(/printf %s '(.)./, "printf %s '$1")),
    }
    writeFileSync(join(folder, 'small'), 'some bytes')
    await expect(putFile(lossy, join(folder, 'small'), join(folder, 'lost'))).rejects.toThrow(/loses bytes/)
    await expect(getFile(shell, join(folder, 'lost'), 1000)).rejects.toThrow(/ended with/)
  })
})
