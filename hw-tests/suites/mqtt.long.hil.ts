import { hil } from '../harness/hil.ts'
import { arrives } from './arrive.ts'

// A release that comes over a broker, from its first byte to the commit. A stick: install.hil.ts; a web server: http.long.hil.ts.

hil('a release that is published on a broker is installed, tried and committed', async ({ dut, kit, broker }) => {
  const next = kit.bundle('next')
  const address = await broker.offer('next.bundle', { from: next.path })
  await arrives(dut, { address, missing: address.replace('next.bundle', 'none.bundle'), release: next.release })
})
