import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'

// Without systemd: HIL_PLACE=qemu-x86-sysvinit (or qemu-x86-openrc) npm run hil -- hw-tests/suites/inits
// The agent and what starts it were put into these images by `bistable build --agent`.

hil.override('needs', ['init-scripts'])

const BOOT = { timeoutMs: 300_000 }
const INSTALL = { timeoutMs: 400_000 }

/** The process of the agent; a shell or a supervisor that only waits for it is another. Others end while one looks. */
const AGENT =
  "for p in /proc/[0-9]*; do tr '\\0' ' ' 2>/dev/null <$p/cmdline | grep -q 'bistable.mjs agent' && echo ${p#/proc/}; done"
const agent = async (dut: Dut) => (await dut.run(AGENT)).output.trim()

/** Waits until another process than `before` is the agent and answers. */
async function isBack(dut: Dut, before: string): Promise<string> {
  const ready = `for i in $(seq 60); do now=$(${AGENT}); [ -n "$now" ] && [ "$now" != ${before} ] && [ -S /run/bistable/agent.sock ] && break; sleep 1; done`
  await dut.run(ready, BOOT)
  const now = await agent(dut)
  expect(now).toMatch(/^\d+$/)
  expect(now).not.toBe(before)
  expect(await dut.status()).toMatchObject({ running: { slot: 'a' } })
  return now
}

hil('the agent is kept running, and has an id', async ({ dut }) => {
  expect((await dut.run('cat /proc/1/comm; ls -d /run/systemd')).output).toMatch(/^init\n/)
  const first = await agent(dut)
  expect(first).toMatch(/^\d+$/)
  expect((await dut.run(`cat /proc/${first}/oom_score_adj`)).output).toBe('-900\n')
  const { deviceId } = await dut.status()
  expect(deviceId).toMatch(/^[0-9a-f]{32}$/)
  // Once long behind its start, and once right behind it.
  await dut.run(`kill -9 ${first}`)
  const second = await isBack(dut, first)
  await dut.run(`kill -9 ${second}`)
  await isBack(dut, second)
  expect(await dut.status()).toMatchObject({ deviceId })
})

hil('add-ons come before services', async ({ dut, kit, server }) => {
  expect((await dut.run('tools 2>/dev/null')).code).not.toBe(0)
  const tools = server.offer('/tools.addon', { from: kit.addon('tools') })
  expect(await dut.bistable(`addon apply ${tools}`, INSTALL)).toMatchObject({ code: 0 })
  expect((await dut.run('tools')).output).toBe('tools from the add-on\n')
  expect((await dut.run('cat /run/app.tools')).output).toBe('')

  await dut.reboot()
  await expect(dut).toBoot({ slot: 'a', boot: 'committed', why: 'ok' })
  await expect(dut).toRun({ slot: 'a', release: '1.2' })
  // The service may start behind the agent. What it says of its version comes second.
  const said = 'for i in $(seq 60); do [ -s /run/app.version ] && break; sleep 1; done; cat /run/app.tools'
  expect((await dut.run(said, BOOT)).output).toBe('tools from the add-on\n')
  expect(await dut.status()).toMatchObject({ addons: [{ name: 'tools', state: 'active' }] })
})

hil(
  'a release is tried, judged without systemd and committed, with the table of services that the device changed',
  async ({ dut, kit, server }) => {
    const { path, release } = kit.bundle('next')
    await dut.run('echo "# of the device" >>/etc/inittab && echo root:first | chpasswd && sync')
    expect(await dut.bistable(`install ${server.offer('/next', { from: path })}`, INSTALL)).toMatchObject({ code: 0 })
    await dut.reboot()
    await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
    await expect(dut).toRun({ slot: 'b', release })
    expect((await dut.run('tail -n 1 /etc/inittab; cat /run/app.version', BOOT)).output).toBe('# of the device\n3.0\n')
    const status = await dut.status()
    expect(status).toMatchObject({ state: 'committed', slots: { b: { role: 'primary', committed: true } } })
    const { checks } = status['health'] as { checks: { name: string; ok: boolean; runs: number }[] }
    const named = (part: string) => checks.find(({ name }) => name.includes(part))
    expect(named('10-app')).toMatchObject({ ok: true })
    expect(named('20-service')).toMatchObject({ ok: true })
    // Once, and then for the time of the soak.
    expect(named('20-service')?.runs).toBeGreaterThan(1)
    expect(named('runlevel')).toMatchObject({ ok: true, said: expect.stringContaining('2') })
  },
)

hil('a release whose service does not come up is left again', async ({ dut, kit, server }) => {
  const { path, release } = kit.bundle('unhealthy')
  expect(await dut.bistable(`install ${server.offer('/unhealthy', { from: path })}`, INSTALL)).toMatchObject({
    code: 0,
  })
  await dut.reboot()
  await expect(dut).toFallBack({ to: 'a', from: release, tries: 1, reason: /HEALTH_FAILED/, within: 400_000 })
  expect(await dut.status()).toMatchObject({ state: 'fallen-back', running: { slot: 'a', release: '1.2' } })
})
