import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import net, { type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { onTestFinished } from 'vitest'
import { run, scratch } from '../bundle/tools.ts'

/** A real nginx in a folder of its own, with certificates made for it; ends with the test. */
export interface Nginx {
  readonly folder: string
  /** Address of each server block, by its name in the plan: "http://127.0.0.1:PORT" or https. */
  readonly at: Readonly<Record<string, string>>
  readonly pki: Pki
  /** What was asked: "STATUS RANGE" of every finished request, oldest first. */
  asked(): readonly string[]
}

export interface Pki {
  /** PEM texts. */
  readonly ca: string
  readonly otherCa: string
  readonly client: { readonly cert: string; readonly key: string }
  readonly strange: { readonly cert: string; readonly key: string }
}

/** @param servers name -> what its server block holds beside listen and root; a name that begins with "tls" speaks TLS */
export async function startNginx(
  files: Readonly<Record<string, Uint8Array>>,
  servers: Readonly<Record<string, string>>,
): Promise<Nginx> {
  const folder = scratch()
  const root = join(folder, 'root')
  mkdirSync(root)
  for (const [name, bytes] of Object.entries(files)) writeFileSync(join(root, name), bytes)
  const pki = makePki(folder)
  const ports = await freePorts(Object.keys(servers).length)
  const at: Record<string, string> = {}
  const blocks = Object.entries(servers).map(([name, extra], i) => {
    const tls = name.startsWith('tls')
    at[name] = `${tls ? 'https' : 'http'}://127.0.0.1:${ports[i]}`
    const cert = tls
      ? `ssl_certificate ${folder}/server.crt; ssl_certificate_key ${folder}/server.key; ssl_client_certificate ${folder}/ca.crt;`
      : ''
    return `server { listen 127.0.0.1:${ports[i]}${tls ? ' ssl' : ''}; root ${root}; ${cert} ${extra} }`
  })
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (name) => `${name}_temp_path ${folder}/tmp;`,
  )
  const address = (text: string) => text.replace(/@(\w+)@/g, (_, name: string) => at[name] ?? '')
  writeFileSync(
    join(folder, 'nginx.conf'),
    [
      `daemon off; master_process off; pid ${folder}/pid; error_log ${folder}/error.log;`,
      'events { }',
      `http { ${temporary.join(' ')} log_format asked '$status $http_range'; access_log ${folder}/access.log asked;`,
      ...blocks.map(address),
      '}',
    ].join('\n'),
  )
  const child = spawn('/usr/sbin/nginx', [
    '-p',
    folder,
    '-e',
    join(folder, 'error.log'),
    '-c',
    join(folder, 'nginx.conf'),
  ])
  const ended = new Promise<string>((resolve) => child.on('close', (code) => resolve(`nginx ended with ${code}`)))
  onTestFinished(async () => {
    child.kill('SIGKILL')
    await ended
  })
  for (const port of ports) await Promise.race([listening(port), ended.then((why) => Promise.reject(new Error(why)))])
  return { folder, at, pki, asked: () => readFileSync(join(folder, 'access.log'), 'utf8').split('\n').slice(0, -1) }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => net.createServer())
  const ports: number[] = []
  for (const server of servers) {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    ports.push((server.address() as AddressInfo).port)
  }
  for (const server of servers) await new Promise((resolve) => server.close(resolve))
  return ports
}

async function listening(port: number): Promise<void> {
  for (let n = 0; n < 1000; n++) {
    const open = await new Promise<boolean>((resolve) => {
      const socket = net.connect(port, '127.0.0.1', () => resolve(true))
      socket.on('error', () => resolve(false))
      socket.on('close', () => socket.destroy())
      socket.on('connect', () => socket.destroy())
    })
    if (open) return
    await sleep(10)
  }
  throw new Error(`nobody listens on ${port}`)
}

/** Two authorities, a server, a client of the first, and one of the second. */
export function makePki(folder: string): Pki {
  const at = (name: string) => join(folder, name)
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
  const authority = (name: string) =>
    run(
      'openssl',
      'req',
      '-x509',
      ...curve,
      '-subj',
      `/CN=${name}`,
      '-keyout',
      at(`${name}.key`),
      '-out',
      at(`${name}.crt`),
    )
  const issue = (name: string, by: string, ...more: string[]) => {
    const signed = ['-CA', at(`${by}.crt`), '-CAkey', at(`${by}.key`)]
    run(
      'openssl',
      'req',
      '-x509',
      ...curve,
      ...signed,
      '-subj',
      `/CN=${name}`,
      ...more,
      '-keyout',
      at(`${name}.key`),
      '-out',
      at(`${name}.crt`),
    )
  }
  authority('ca')
  authority('other')
  issue(
    'server',
    'ca',
    '-addext',
    'subjectAltName=IP:127.0.0.1,DNS:localhost',
    '-addext',
    'basicConstraints=critical,CA:FALSE',
  )
  issue('client', 'ca', '-addext', 'basicConstraints=critical,CA:FALSE')
  issue('strange', 'other', '-addext', 'basicConstraints=critical,CA:FALSE')
  const read = (name: string) => readFileSync(at(name), 'utf8')
  const pair = (name: string) => ({ cert: read(`${name}.crt`), key: read(`${name}.key`) })
  return { ca: read('ca.crt'), otherCa: read('other.crt'), client: pair('client'), strange: pair('strange') }
}
