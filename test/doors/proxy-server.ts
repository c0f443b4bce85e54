import http from 'node:http'
import net, { type AddressInfo, type Socket } from 'node:net'
import { onTestFinished } from 'vitest'

/** A forward proxy on loopback: plain requests by whole address, tunnels by CONNECT. */
export interface Proxy {
  readonly url: string
  /** "GET http://…" and "CONNECT host:port", with the login that came along. */
  readonly asked: string[]
}

export interface ProxyPlan {
  /** Answered instead of doing the work. */
  readonly status?: number
  /** Sent into the tunnel before the server speaks. */
  readonly ahead?: string
  /** A CONNECT is never answered. */
  readonly silent?: boolean
}

export async function startProxy(plan: ProxyPlan = {}): Promise<Proxy> {
  const asked: string[] = []
  const sockets = new Set<Socket>()
  const note = (request: http.IncomingMessage) =>
    asked.push([request.method, request.url, request.headers['proxy-authorization']].filter(Boolean).join(' '))
  const server = http.createServer((request, response) => {
    note(request)
    if (plan.status !== undefined) return void response.writeHead(plan.status).end()
    const { 'proxy-authorization': _, 'proxy-connection': __, ...headers } = request.headers
    http.get(request.url ?? '', { headers, agent: false }, (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers)
      answer.pipe(response)
    })
  })
  server.on('connect', (request: http.IncomingMessage, socket: Socket) => {
    note(request)
    socket.on('error', () => undefined)
    if (plan.silent === true) return
    if (plan.status !== undefined) return void socket.end(`HTTP/1.1 ${plan.status} no\r\n\r\n`)
    const [host = '', port = ''] = (request.url ?? '').split(':')
    const far = net.connect(Number(port), host, () => {
      socket.write(`HTTP/1.1 200 ok\r\n\r\n${plan.ahead ?? ''}`)
      far.pipe(socket).pipe(far)
    })
    far.on('error', () => socket.destroy())
    socket.on('close', () => far.destroy())
  })
  server.on('connection', (socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(async () => {
    for (const socket of sockets) socket.destroy()
    await new Promise((resolve) => server.close(resolve))
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked }
}
