import { mkdtempSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { operate } from '../../device/agent/operations.ts'
import { asked, sendFile, serve } from '../device-install/web.ts'
import { FolderSticks } from '../device-usb/sticks.ts'
import { embedded, publisher, publishFolder } from '../mqtt/tools.ts'
import { type Device, NEVER } from './device.ts'

/** A stick whose file system is a folder. */
export const stickOf = (folder: string): FolderSticks => new FolderSticks(join(folder, 'stick'))

/**
 * Every way by which a bundle reaches the agent. A door that is added here is attacked with everything that the others
 * are: `offer` makes the bytes available and returns what `install` is told.
 */
export interface Door {
  readonly name: string
  readonly offer: (folder: string, bytes: Uint8Array) => Promise<string>
  /** Where it is not `install` that is told. */
  readonly take?: (device: Device, from: string) => Promise<unknown>
}

export const DOORS: readonly Door[] = [
  {
    name: 'file',
    offer: async (folder, bytes) => {
      const path = join(folder, 'offered.bundle')
      writeFileSync(path, bytes)
      return path
    },
  },
  {
    name: 'usb',
    // `stickOf` is what is plugged into the device of the test.
    offer: async (folder, bytes) => stickOf(folder).put('offered.bundle', bytes),
    take: (device) => operate(device.core, 'usb', {}, () => undefined, NEVER),
  },
  {
    name: 'http',
    offer: async (_, bytes) => (await serve((request, response) => sendFile(request, response, bytes))).url,
  },
  {
    name: 'http without ranges',
    offer: async (_, bytes) =>
      (
        await serve((request, response) => {
          const { from } = asked(request, bytes.length)
          if (from > bytes.length) return void response.writeHead(416).end()
          response.setHeader('Content-Length', bytes.length)
          response.end(bytes)
        })
      ).url,
  },
  {
    name: 'mqtt',
    offer: async (folder, bytes) => {
      const shelf = publishFolder(mkdtempSync(join(folder, 'shelf-')), { 'bundles/offered.bundle': bytes })
      const broker = await embedded()
      await publisher(shelf, broker.url)
      return `mqtt://127.0.0.1:${broker.port}/bundles/offered.bundle`
    },
  },
]
