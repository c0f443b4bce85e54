import { expect, hil } from '../harness/hil.ts'

// Programs of the system have filled the data partition, to the last block: no serviceman has to come for that.

const FILL =
  'for size in 1M 64k 4k; do dd if=/dev/zero of=/data/var/log/$size bs=$size 2>/dev/null; done; sync; ! dd if=/dev/zero of=/data/more bs=64k count=1 2>/dev/null; rm -f /data/more'

hil('a full data partition: a release installs, is tried and committed', async ({ dut, kit, server }) => {
  const { path, release } = kit.bundle('next')
  const address = server.offer('/next', { from: path })
  // The agent has made it since it came up.
  await dut.run('for i in $(seq 60); do [ -s /data/bistable/room ] && break; sleep 1; done; [ -s /data/bistable/room ]')
  expect((await dut.run(`mkdir -p /data/var/log; ${FILL}`)).code).toBe(0)
  expect(await dut.bistable(`install ${address}`)).toMatchObject({ code: 0, body: { ok: true } })
  await dut.reboot()
  await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
  await expect(dut).toRun({ slot: 'b', release })
  expect(await dut.status()).toMatchObject({
    state: 'committed',
    problems: [],
    slots: { a: { role: 'spare' }, b: { role: 'primary', committed: true } },
  })
})
