import { describe, expect, it } from 'vitest'
import { progressBar } from '../../device/control/progress.ts'

/** What a person has on a terminal when all is written: the few controls that a bar needs. */
function screen() {
  const lines = ['']
  return {
    write(text: string): void {
      for (const part of text.split(/(\r|\n|\x1b\[2K)/)) {
        const last = lines.length - 1
        if (part === '\n') lines.push('')
        else if (part === '\x1b[2K') lines[last] = ''
        else if (part !== '\r') lines[last] += part
      }
    },
    lines,
  }
}

const at = (done: number, phase = 'fill') => ({ phase, image: 'rootfs', done, total: 100, fetched: done * 1024 })

describe('progress', () => {
  it('on a terminal: lines go by above the bar, and no bar is left behind', () => {
    const { write, lines } = screen()
    const say = (line: string) => write(`${line}\n`)
    const progress = progressBar({ out: say, err: say, interactive: true }, write)
    progress.show(at(10))
    progress.show(at(10.4))
    expect(lines).toEqual(['writing rootfs                   [###...........................] 10%  10 KiB fetched'])
    progress.aside()
    say('bistable: state=verified')
    progress.show(at(10.4))
    expect(lines[0]).toBe('bistable: state=verified')
    expect(lines[1]).toMatch(/^writing rootfs +\[###\.+\] 10%/)
    progress.show(at(0, 'finish'))
    progress.end()
    progress.end()
    say('release 0.3 is armed')
    expect(lines).toEqual(['bistable: state=verified', 'release 0.3 is armed', ''])
  })

  it('elsewhere: a line for each tenth', () => {
    const said: string[] = []
    const say = (line: string) => void said.push(line)
    const progress = progressBar({ out: say, err: say, interactive: false }, () => expect.unreachable())
    for (let done = 0; done <= 100; done++) progress.show(at(done))
    progress.aside()
    progress.end()
    expect(said).toHaveLength(11)
    expect(said[3]).toBe('writing rootfs 30%  30 KiB fetched')
  })
})
