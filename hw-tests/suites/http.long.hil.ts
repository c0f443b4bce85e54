import { hil } from '../harness/hil.ts'
import { arrives } from './arrive.ts'

// A release that comes over HTTP, from its first byte to the commit. A stick: install.hil.ts; a broker: mqtt.long.hil.ts.

hil('a release on a web server is installed, tried and committed', async ({ dut, kit, server }) => {
  const next = kit.bundle('next')
  const address = server.offer('/bundles/next.bundle', { from: next.path })
  await arrives(dut, { address, missing: address.replace('next.bundle', 'none.bundle'), release: next.release })
})
