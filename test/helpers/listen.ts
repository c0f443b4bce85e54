import { type AddressInfo, createServer, type Socket } from 'node:net'
import { onTestFinished } from 'vitest'

/** Listens on a loopback port of its own until the test is over; `sockets` are the connections so far. @returns the port */
export async function listenForTest(serve: (socket: Socket, sockets: Set<Socket>) => void): Promise<number> {
  const sockets = new Set<Socket>()
  const server = createServer({ noDelay: true }, (socket) => {
    sockets.add(socket)
    serve(socket, sockets)
  })
  await new Promise<void>((up) => server.listen(0, '127.0.0.1', up))
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return (server.address() as AddressInfo).port
}
