import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, hil } from 'bistable/hil'
import { board } from './board.ts'

hil.override('device', { make: board })

hil('boots, takes a login, runs commands and keeps files apart from kernel messages', async ({ dut, bench }) => {
  expect(dut.console.events.map(({ kind }) => kind)).toContain('kernel')
  const { code, output } = await dut.run('hostname; uname -s; exit 3')
  expect({ code, output }).toEqual({ code: 3, output: 'board\nLinux\n' })

  const sent = join(bench.folder, 'sent')
  writeFileSync(sent, 'over the serial line\n'.repeat(20))
  await dut.put(sent, '/tmp/sent')
  await dut.run('echo "<4>a kernel message in between" >/dev/kmsg')
  expect((await dut.get('/tmp/sent', 4096)).toString()).toBe('over the serial line\n'.repeat(20))
})

hil.describe('when it crashes', () => {
  hil.override('allow', ['panic'])

  hil('the panic is seen at once', async ({ dut }) => {
    await dut.run('true')
    await dut.type('echo c >/proc/sysrq-trigger')
    await dut.next(['panic'], { timeoutMs: 120_000 })
    expect(dut.console.state).toBe('panic')
  })
})
