import { type ChildProcess, spawn } from 'node:child_process'
import { copyFile, mkdir, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { hil } from '../harness/hil.ts'
import { LabError } from '../harness/lab-error.ts'
import type { TestServer } from '../harness/server.ts'
import { arrives } from './arrive.ts'

// A release that comes over a broker: Mosquitto on this machine, and 'bistable serve' behind it. The device reaches the
// broker where it otherwise reaches the web server.

const MOSQUITTO = '/usr/sbin/mosquitto'
const running: ChildProcess[] = []

/** The broker's port stands in for the web server's. */
hil.override('server', { scope: 'file' }, async ({ place: _ }, { onCleanup }) => {
  onCleanup(async () => {
    for (const child of running.splice(0)) child.kill('SIGKILL')
  })
  const port = await freePort()
  return { port } as TestServer
})

hil(
  'a release that is published on a broker is installed, tried and committed',
  async ({ dut, kit, bench, server }) => {
    const next = kit.bundle('next')
    const site = join(bench.folder, 'site')
    await mkdir(join(site, 'bundles'), { recursive: true })
    await copyFile(next.path, join(site, 'bundles/next.bundle'))
    const config = join(bench.folder, 'mosquitto.conf')
    const user = process.getuid?.() === 0 ? 'user root\n' : ''
    await writeFile(config, `listener ${server.port} 127.0.0.1\nallow_anonymous true\npersistence false\n${user}`)
    await started(MOSQUITTO, ['-c', config, '-v'], /mosquitto version .* running/)
    const broker = `mqtt://127.0.0.1:${server.port}`
    const serve = ['bistable.mjs', 'serve', site, '--port', '0', '--broker', broker]
    await started(process.execPath, serve, /mqtt: connected to/)

    const folder = 'mqtt://10.0.2.100:80/bundles'
    await arrives(dut, {
      address: `${folder}/next.bundle`,
      missing: `${folder}/none.bundle`,
      release: next.release,
    })
  },
)

async function freePort(): Promise<number> {
  const probe = createServer()
  await new Promise<void>((done) => probe.listen(0, '127.0.0.1', done))
  const address = probe.address()
  await new Promise((done) => probe.close(done))
  if (typeof address !== 'object' || address === null) throw new LabError('no free port')
  return address.port
}

/** Starts a program and waits for its word. @throws LabError when it ends instead */
async function started(program: string, args: readonly string[], word: RegExp): Promise<void> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  running.push(child)
  let said = ''
  await new Promise<void>((done, fail) => {
    child.once('error', (cause) => fail(new LabError(`${program} does not start`, { cause })))
    child.once('exit', (code) => fail(new LabError(`${program} ended with ${code}: ${said}`)))
    for (const stream of [child.stdout, child.stderr])
      createInterface({ input: stream }).on('line', (line) => {
        said = `${said}${line}\n`.slice(-4096)
        if (word.test(line)) done()
      })
  })
}
