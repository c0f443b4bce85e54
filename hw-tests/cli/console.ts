import type { Readable, Writable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { HELP, type Order, readKeys } from './keys.ts'
import type { Patient } from './patient.ts'

const BREAK_MS = 300

export interface Terminal {
  readonly input: Readable & { setRawMode?(raw: boolean): unknown; readonly isTTY?: boolean }
  readonly output: Writable
}

/** `npm run hil -- console PLACE`: the board's console at a person's terminal, until the person leaves or the input ends. */
export async function converse(patient: Patient, { input, output }: Terminal, lost: AbortSignal): Promise<void> {
  const say = (text: string) => output.write(`\r\n[hil: ${text}]\r\n`)
  patient.onData((bytes) => output.write(bytes))
  await patient.open()
  say(HELP)
  // An emulator has a console only while it is on; a board is left as it was found.
  if ((await patient.state()) === false && patient.offMs === 0) await patient.on()
  let escaped = false
  let queue: Promise<unknown> = Promise.resolve()
  if (input.isTTY === true) input.setRawMode?.(true)
  try {
    await new Promise<void>((resolve) => {
      const carryOut = async (order: Order) => {
        if (order === 'quit') return resolve()
        say(order === 'help' ? HELP : order)
        if (order === 'break')
          await (patient.modem?.sendBreak(BREAK_MS) ?? say('this console has no break: it is no serial port'))
        if (order === 'power-off' || order === 'power-cycle') await patient.off()
        if (order === 'power-cycle') await sleep(patient.offMs)
        if (order === 'power-on' || order === 'power-cycle') await patient.on()
      }
      input.on('data', (typed: Buffer) => {
        const read = readKeys(escaped, Buffer.from(typed))
        escaped = read.escaped
        if (read.forward.length > 0) patient.write(read.forward)
        for (const order of read.orders)
          queue = queue
            .then(() => carryOut(order))
            .catch((error: unknown) => say(error instanceof Error ? error.message : ''))
      })
      input.on('end', () => queue.finally(resolve))
      patient.onEnd((why) => say(why))
      lost.addEventListener('abort', () => {
        say(lost.reason instanceof Error ? lost.reason.message : 'the lease is lost')
        resolve()
      })
    })
  } finally {
    if (input.isTTY === true) input.setRawMode?.(false)
    input.pause()
  }
}
