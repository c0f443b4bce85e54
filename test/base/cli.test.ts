import { open, readFile } from 'node:fs/promises'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { runCli, type Terminal, type Verb } from '../../base/cli.ts'
import { defineErrors } from '../../base/errors.ts'
import { printable } from '../../base/printable.ts'

const errors = defineErrors({
  SAMPLE_REFUSED: { family: 'policy', meaning: 'A sample.', next: 'Rename it.' },
})

/** Names as an attacker would choose them: clears the screen, turns text around, forges a line of ours. */
const HOSTILE = 'a\u001b[2J\u009b31m\u202egnp.exe\u2066\u200b\u2028\u007f\nbistable: all is well\n  next: rm -rf /'

async function cli(verb: Verb['run'], ...args: string[]): Promise<{ exit: number; out: string[]; err: string[] }> {
  const out: string[] = []
  const err: string[] = []
  const terminal: Terminal = { out: (l) => out.push(l), err: (l) => err.push(l), interactive: false }
  const verbs: Verb[] = [{ name: 'try', usage: 'try', summary: 'Try.', run: verb }]
  const exit = await runCli(verbs, ['try', ...args], terminal, new AbortController().signal)
  return { exit, out, err }
}

const refuse = async (): Promise<number> => {
  throw errors.SAMPLE_REFUSED(`'${HOSTILE}' is not wanted`, { details: { name: HOSTILE } })
}

describe('a command that there is not', () => {
  it('is answered with the one that was probably meant, and with none where that is a guess', async () => {
    const names = ['install', 'status', 'usb', 'keys init']
    const verbs: Verb[] = names.map((name) => ({ name, usage: name, summary: '', run: async () => 0 }))
    const said = async (...args: string[]) => {
      const err: string[] = []
      const terminal: Terminal = { out: () => undefined, err: (line) => err.push(line), interactive: false }
      expect(await runCli(verbs, args, terminal, new AbortController().signal)).toBe(2)
      return err.join('\n')
    }
    expect(await said('instal', 'x.bundle')).toContain("Did you mean 'install'?")
    expect(await said('sttaus')).toContain("Did you mean 'status'?")
    expect(await said('kyes', 'init')).toContain("Did you mean 'keys init'?")
    expect(await said('us')).not.toContain('Did you mean')
    expect(await said('uninstall')).not.toContain("'usb'?")
    expect(await said('frobnicate')).toContain('next: Run the command with --help.')
  })
})

describe('what the command line prints', () => {
  it('shows an error as code, sentence and next step, with nothing in it that moves a terminal', async () => {
    const { exit, out, err } = await cli(refuse)
    expect(exit).toBe(5)
    expect(out).toEqual([])
    expect(err.join('\n').split('\n')).toEqual([
      "bistable: SAMPLE_REFUSED: 'a\\u001b[2J\\u009b31m\\u202egnp.exe\\u2066\\u200b\\u2028\\u007f",
      '    bistable: all is well',
      "    next: rm -rf /' is not wanted",
      '  next: Rename it.',
    ])
  })

  it('gives the same error to programs, unchanged once parsed', async () => {
    const { exit, out, err } = await cli(refuse, '--json')
    expect(exit).toBe(5)
    expect(err).toEqual([])
    expect(out.join('')).not.toMatch(/[^\x20-\x7e]/)
    expect(JSON.parse(out.join(''))).toMatchObject({
      ok: false,
      error: { code: 'SAMPLE_REFUSED', family: 'policy', next: 'Rename it.', details: { name: HOSTILE } },
    })
  })

  it('escapes what a verb prints too, and keeps its line ends', async () => {
    const { out } = await cli(async (call) => {
      call.terminal.out('one \u001b[31m\ntwo \u202e')
      return 0
    })
    expect(out).toEqual(['one \\u001b[31m\ntwo \\u202e'])
  })

  it('says that a defect is a defect, and where', async () => {
    const broken = async (): Promise<number> => {
      throw new TypeError('x is not a function')
    }
    const text = await cli(broken)
    expect(text.exit).toBe(1)
    expect(text.err[0]).toBe('bistable: INTERNAL: x is not a function')
    expect(text.err[1]).toMatch(/^ {2}next: .*report it/)
    expect(text.err[2]).toMatch(/^ +at /)
    const json = JSON.parse((await cli(broken, '--json')).out.join(''))
    expect(json).toMatchObject({ ok: false, error: { code: 'INTERNAL', family: 'internal' } })
    expect(json.error.next).toContain('report it')
  })

  it('takes no empty value: as a path it would be the present folder', async () => {
    const err: string[] = []
    const terminal: Terminal = { out: () => undefined, err: (line) => err.push(line), interactive: false }
    const options = {
      to: { type: 'string', help: '' },
      key: { type: 'string', help: '', multiple: true },
    } as const
    const verb: Verb = { name: 'try', usage: 'try', summary: 'Try.', options, run: async () => 0 }
    const run = async (...args: string[]) =>
      await runCli([verb], ['try', ...args], terminal, new AbortController().signal)
    for (const args of [['--to', ''], ['--to='], ['--key', 'a', '--key', ''], ['a', '']]) {
      expect(await run(...args)).toBe(2)
      expect(err.splice(0)[0]).toMatch(/^bistable: USAGE: (?:--(?:to|key)|argument 2) is empty$/)
    }
    expect(await run('a', '--to', 'b', '--key', 'c')).toBe(0)
  })

  it('tells a file that the system refused from a defect', async () => {
    const { exit, err } = await cli(async () => {
      await readFile('/nowhere/at/all')
      return 0
    })
    expect(exit).toBe(8)
    expect(err).toEqual([
      "bistable: FILE_FAILED: cannot use '/nowhere/at/all': no such file or directory (ENOENT)",
      '  next: Check the path and its permissions, that the file system is writable, and the disk for errors.',
    ])
  })

  it('and an open file that the system refuses, whose path it does not say', async () => {
    const full = await cli(async () => {
      const file = await open('/dev/full', 'w')
      try {
        await file.write('x')
      } finally {
        await file.close()
      }
      return 0
    })
    expect(full.exit).toBe(8)
    expect(full.err[0]).toMatch(/^bistable: FILE_FULL: cannot write a file: no space left/)
    // A connection that breaks is no disk that does.
    const pipe = await cli(async () => {
      throw Object.assign(new Error('write EPIPE'), { code: 'EPIPE', syscall: 'write' })
    })
    expect(pipe.err[0]).toMatch(/^bistable: INTERNAL: /)
  })

  it('leaves every text visible as it is, and any text the same inside JSON', () => {
    expect(printable('Grüße, 日本, 😀, "quotes", \\')).toBe('Grüße, 日本, 😀, "quotes", \\')
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        expect(JSON.parse(printable(JSON.stringify(text)))).toBe(text)
        expect(printable(text)).not.toMatch(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u)
      }),
    )
  })
})
