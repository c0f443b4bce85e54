import { existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { choosePlace, missingTools } from '../places/index.ts'
import { Console } from './console.ts'
import { LabError } from './lab-error.ts'
import { diskFile, type QemuMachine, startQemu } from './qemu.ts'
import { Qmp } from './qmp.ts'

// The emulator as a power driver: no system boots here, the suites are for that.

const folder = mkdtempSync(join(tmpdir(), 'bistable-qemu-test-'))
const machines: QemuMachine[] = []
afterAll(async () => {
  for (const machine of machines) await machine.cut()
  rmSync(folder, { recursive: true })
})
const disk = join(folder, 'disk')
writeFileSync(disk, '')
truncateSync(disk, 1024 * 1024)
const stick = join(folder, 'stick')
writeFileSync(stick, Buffer.alloc(1024 * 1024))

async function powerOn(more: { readonly restore?: string; readonly extra?: readonly string[] } = {}) {
  const machine = await startQemu({ disk, profile: 'x86-bios', memoryMiB: 64, ...more })
  machines.push(machine)
  return machine
}
const status = async ({ qmp }: QemuMachine) => ((await qmp.send('query-status')) as { status: string }).status
const disks = async ({ qmp }: QemuMachine) =>
  ((await qmp.send('query-named-block-nodes')) as { 'node-name': string }[]).map((node) => node['node-name'])

/** Console bridges of this process. */
const bridges = () => {
  const path = `/proc/${process.pid}/task/${process.pid}/children`
  const children = readFileSync(path, 'utf8').trim().split(' ')
  const commands = children.map((pid) =>
    existsSync(`/proc/${pid}/cmdline`) ? readFileSync(`/proc/${pid}/cmdline`, 'utf8') : '',
  )
  return commands.filter((command) => command.startsWith('socat')).join()
}

const missing = missingTools(choosePlace('qemu-x86-bios').tools, process.env['PATH'] ?? '')
describe.skipIf(missing.length > 0 && process.env['CI'] === undefined)('the emulator as a power driver', () => {
  it('goes on with its console open, is reset, and is off for good when it was cut; and on again', async () => {
    for (const _ of ['first', 'again']) {
      const machine = await powerOn()
      const console = new Console(machine.port)
      expect(await status(machine)).toBe('running')
      // What a failed test shows of it.
      expect((await machine.account()).join('\n')).toMatch(
        /virtio-blk holds \d+ requests; [\s\S]*thread qemu-system\S* is in/,
      )
      await machine.reset()
      expect(await status(machine)).toBe('running')
      await machine.cut()
      await machine.exited
      const wait = console.waitForEvent(() => true, 'anything', 0, { timeoutMs: 60_000 })
      await expect(wait).rejects.toThrow(LabError)
      // Cutting what is off is no error.
      await machine.cut()
      await expect.poll(bridges).toBe('')
    }
  })

  it('takes sticks, each under a name of its own; its state is saved and goes on', async () => {
    const machine = await powerOn()
    await machine.plug(stick)
    await machine.unplug()
    await machine.plug(stick)
    expect(await disks(machine)).toEqual(expect.arrayContaining(['stick1', 'stick2']))
    await machine.cut()
    const saved = join(folder, 'state')
    await (await powerOn()).save?.(saved)
    const again = await powerOn({ restore: saved })
    expect(await status(again)).toBe('running')
    await again.cut()
  })

  it('that does not start, or has no state to go on from, is a broken lab, with its words', async () => {
    await expect(powerOn({ extra: ['-device', 'no-such-thing'] })).rejects.toThrow(
      /the emulator ended with 1: .*no-such-thing/s,
    )
    await expect(powerOn({ restore: join(folder, 'nothing') })).rejects.toThrow(/there is no machine state/)
  })
})

describe('an emulator that hangs', () => {
  it('is a broken lab, after a time', async () => {
    const path = join(folder, 'silent')
    const server = createServer((socket) => socket.write('{"QMP": {}}\n')).listen(path)
    try {
      const failure = Qmp.connect(path, 10, 50)
      await expect(failure).rejects.toThrow(LabError)
      await expect(failure).rejects.toThrow(/no control socket at/)
    } finally {
      server.close()
    }
    const answers = createServer((socket) => socket.once('data', () => socket.write('{"return": {}}\n'))).listen(
      `${path}-2`,
    )
    try {
      const qmp = await Qmp.connect(`${path}-2`, 1000, 300)
      await expect(qmp.send('stop')).rejects.toThrow(/did not answer to stop within 0.3 s/)
      await expect(qmp.send('cont')).rejects.toThrow(LabError)
    } finally {
      answers.close()
    }
  })
})

describe('a disk that fails', () => {
  it('is told to the emulator rule by rule', () => {
    expect(diskFile('/tmp/a,b', [])).toBe('file=/tmp/a,,b')
    const rules = diskFile('/d', [
      { on: 'write', errno: 5 },
      { on: 'flush', errno: 28, sector: 7 },
    ])
    expect(rules).toContain('file.inject-error.0.iotype=write,file.inject-error.0.errno=5')
    expect(rules).not.toContain('inject-error.0.sector')
    expect(rules).toContain('file.inject-error.1.sector=7,file.image.driver=file,file.image.filename=/d')
  })
})
