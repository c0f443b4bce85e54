import { createHash, randomBytes } from 'node:crypto'
import type { Console } from './console.ts'
import { DutError } from './lab-error.ts'

/**
 * Commands over a console that kernel messages share: the output is spooled on the target and sent as base64 lines,
 * each with index, total and the start of a SHA-256; lines that do not check are asked for again. Needs sh, base64, sed, wc
 * and sha256sum on the target (busybox has them).
 */

export interface CommandResult {
  readonly code: number
  readonly output: string
}

export interface CommandOptions {
  readonly timeoutMs?: number
  readonly signal?: AbortSignal
}

const LINE_BYTES = 57 * 1024 * 4
/** How long a command may take unless told: a small one, on an emulator that shares a slow machine with others. */
const RUN_MS = 120_000
const FIRST_PAUSE_MS = 200
const LAST_PAUSE_MS = 20_000

/** The first eight hexadecimal digits of the SHA-256: Debian's busybox has sha256sum, but no cksum. */
export function frameSum(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 8)
}

/** Frames of one tag found anywhere in console text: index to payload, total and exit code. */
export function readFrames(text: string, tag: string): { frames: Map<number, string>; total: number | undefined } {
  const frames = new Map<number, string>()
  let total: number | undefined
  const pattern = new RegExp(`<${tag} (\\d{1,6})/(\\d{1,6}) ([A-Za-z0-9+/=]{0,120}) ([0-9a-f]{8})>`, 'g')
  for (const [, index, count, payload, sum] of text.matchAll(pattern)) {
    if (index === undefined || count === undefined || payload === undefined) continue
    if (frameSum(`${index}/${count} ${payload}`) !== sum) continue
    frames.set(Number(index), payload)
    total = Number(count)
  }
  return { frames, total }
}

function sendFunction(tag: string): string {
  // Frame 0 holds the exit code, frames 1..n the output. The tag is written in two halves so that the echo of this
  // very text never looks like a frame. `s` sends the frames whose numbers it is given, or all. A status has 50 of them, so a
  // frame costs one program and no more: an emulated processor needs 10 ms to start one.
  const [left, right] = [tag.slice(0, 4), tag.slice(4)]
  return [
    `e(){ k=$(printf %s "$1/$n $2"|sha256sum);printf '<%s%s %s %s>\\n' ${left} ${right} "$1/$n $2" "\${k%"\${k#????????}"}";};`,
    `s(){ n=$(wc -l </tmp/${tag}.64);n=$((n+0));for i in \${1:-0};do `,
    `if [ $i = 0 ];then p=$(printf %s "$r"|base64);else p=$(sed -n "\${i}p" /tmp/${tag}.64);fi;e $i "$p";done;`,
    `if [ $# = 0 ];then i=0;while read -r p;do i=$((i+1));e $i "$p";done </tmp/${tag}.64;fi;}`,
  ].join('')
}

export class Shell {
  readonly #console: Console
  /** Tag of the command before. */
  #before = 'F0'

  constructor(console: Console) {
    this.#console = console
  }

  /** Makes the shell quiet and predictable: no line editing, no prompt. Ends when a first framed command answers. */
  async open(options: { readonly timeoutMs: number; readonly signal?: AbortSignal }): Promise<void> {
    const deadline = Date.now() + options.timeoutMs
    for (;;) {
      await this.#console.write('\n')
      try {
        const answer = await this.run('echo ready', {
          timeoutMs: 10_000,
          ...(options.signal && { signal: options.signal }),
        })
        if (answer.output === 'ready\n') return
      } catch (error) {
        if (!(error instanceof DutError && error.late) || Date.now() > deadline) throw error
      }
    }
  }

  /** Runs a command line in a child shell; returns its exit code and its output (stdout and stderr, at most 228 KiB). */
  async run(command: string, options: CommandOptions = {}): Promise<CommandResult> {
    const { code, bytes } = await this.runBytes(command, options)
    return { code, output: bytes.toString('utf8') }
  }

  /** The same, with the output as it is. */
  async runBytes(
    command: string,
    options: CommandOptions = {},
  ): Promise<{ readonly code: number; readonly bytes: Buffer }> {
    if (/[^\n\t\x20-\x7e]/.test(command))
      throw new TypeError('a command may hold only printable ASCII, tabs and newlines')
    const tag = `F${randomBytes(5).toString('hex').toUpperCase()}`
    const timeoutMs = options.timeoutMs ?? RUN_MS
    const wait = options.signal === undefined ? {} : { signal: options.signal }
    const start = this.#console.position()
    this.#console.remark(`$ ${command}`)
    const script = Buffer.from(command).toString('base64')
    // Files of the command before are removed here, not behind its answer: nobody would wait for that line, and a machine
    // saved or cut meanwhile would keep half of it in its tty.
    // Long commands go in several short lines: a tty line buffer holds 4095 bytes.
    await this.#console.write(`stty -echo 2>/dev/null;PS1=;PS2=;rm -f /tmp/${this.#before}.*;: >/tmp/${tag}.in\n`)
    this.#before = tag
    for (let at = 0; at < script.length; at += 512)
      await this.#console.write(`printf %s '${script.slice(at, at + 512)}' >>/tmp/${tag}.in\n`)
    await this.#console.write(`${sendFunction(tag)}\n`)
    await this.#console.write(
      `base64 -d </tmp/${tag}.in >/tmp/${tag}.sh;sh /tmp/${tag}.sh >/tmp/${tag}.out 2>&1 </dev/null;r=$?;head -c ${LINE_BYTES} /tmp/${tag}.out|base64 >/tmp/${tag}.64;s\n`,
    )
    const deadline = Date.now() + timeoutMs
    let pause = FIRST_PAUSE_MS
    let seenBefore = 0
    for (;;) {
      const left = deadline - Date.now()
      try {
        const whole = await this.#console.waitForText(
          (text) => {
            const seen = readFrames(text, tag)
            return seen.total !== undefined && seen.frames.size === seen.total + 1 ? seen : undefined
          },
          `the output of \`${command.slice(0, 60)}\``,
          start,
          { ...wait, timeoutMs: Math.max(1, Math.min(pause, left)), ofMs: timeoutMs },
        )
        const answer = decode(whole)
        this.#console.remark(`= ${answer.code} ${answer.bytes.toString('latin1', 0, 300)}`)
        return answer
      } catch (error) {
        // What ends every wait ends this one, too.
        if (!(error instanceof DutError && error.late) || left <= 0) throw error
        const { frames, total } = readFrames(this.#console.since(start), tag)
        const growing = frames.size > seenBefore
        seenBefore = frames.size
        if (growing) continue
        // Nothing new: ask for what is missing. While the command runs, questions wait in the tty's queue: so they ask for
        // one frame only, whose answer says how many there are, and the pauses grow.
        const missing = total === undefined ? [0] : missingOf(frames, total).slice(0, 100)
        await this.#console.write(`s "${missing.join(' ')}"\n`)
        if (total === undefined) pause = Math.min(pause * 2, LAST_PAUSE_MS)
      }
    }
  }
}

function missingOf(frames: ReadonlyMap<number, string>, total: number): number[] {
  return Array.from({ length: total + 1 }, (_, i) => i).filter((i) => !frames.has(i))
}

function decode({ frames, total }: { frames: Map<number, string>; total: number | undefined }): {
  readonly code: number
  readonly bytes: Buffer
} {
  const code = Number(Buffer.from(frames.get(0) ?? '', 'base64').toString())
  const lines = Array.from({ length: total ?? 0 }, (_, i) => frames.get(i + 1) ?? '')
  return { code, bytes: Buffer.from(lines.join(''), 'base64') }
}
