import { read } from 'node:fs'
import { promisify } from 'node:util'
import { SerialPort } from 'serialport'
import { LabError } from '../harness/lab-error.ts'

/**
 * Opens a serial port or pty, raw, 8N1. Two things are better than `serialport` does them: a line that hangs up (an adapter that
 * was pulled, a pty whose other end is gone) closes the port, and `destroy` closes it too.
 * @throws LabError when it does not open
 */
export function openSerial(path: string, baudRate: number): Promise<SerialPort> {
  return new Promise((resolve, reject) => {
    // Its types do not say that options may name a binding in the place of the machine's own.
    const options = { path, baudRate, binding: BINDING, vmin: 1, vtime: 0 } as { path: string; baudRate: number }
    const port = new ClosingPort(options, (error) =>
      error ? reject(new LabError(`the serial port ${path} does not open: ${error.message}`)) : resolve(port),
    )
  })
}

class ClosingPort extends SerialPort {
  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    if (!this.isOpen) done(error)
    // `destroy` says `close` itself.
    else this.close(() => done(error))
  }
}

const readAsync = promisify(read)
type Binding = typeof SerialPort.binding
type Port = Awaited<ReturnType<Binding['open']>>

/** What this file needs of a port of Linux's or Darwin's. */
interface PolledPort {
  readonly isOpen: boolean
  readonly fd: number | null
  readonly poller: { once(event: 'readable', done: (error: Error | null) => void): unknown }
}
const isPolled = (port: object): port is PolledPort => 'fd' in port && 'poller' in port

const BINDING = {
  ...SerialPort.binding,
  list: () => SerialPort.binding.list(),
  open: async (options: Parameters<Binding['open']>[0]): Promise<Port> => {
    const port: Port = await SerialPort.binding.open(options as never)
    if (isPolled(port)) port.read = (buffer, offset, length) => readOrHangUp(port, buffer, offset, length)
    return port
  },
} as Binding

/**
 * Waits for bytes. A line in raw mode with VMIN 1 gives none only when it has hung up (termios(3); read(2) of a terminal that hung
 * up ends at once, each time): the library asks again and again, which takes half a processor and all memory in the end.
 * @throws an error with `canceled` when the port is closed meanwhile; any other is a disconnection
 */
async function readOrHangUp(
  port: PolledPort,
  buffer: Buffer,
  offset: number,
  length: number,
): Promise<{ buffer: Buffer; bytesRead: number }> {
  for (;;) {
    if (!port.isOpen || port.fd === null) throw Object.assign(new Error('the port is not open'), { canceled: true })
    try {
      const { bytesRead } = await readAsync(port.fd, buffer, offset, length, null)
      if (bytesRead > 0) return { buffer, bytesRead }
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code !== 'EAGAIN' && code !== 'EINTR') throw error
      // Closed while it was read: to ask the poller then ends the process.
      if (!port.isOpen) continue
      await new Promise<void>((resolve, reject) =>
        port.poller.once('readable', (failed) => (failed ? reject(failed) : resolve())),
      )
      continue
    }
    throw new Error('the line has hung up')
  }
}
