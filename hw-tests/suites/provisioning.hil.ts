import { expect, hil } from '../harness/hil.ts'

hil.describe('provisioning', () => {
  hil.override('begin', 'off')

  hil('a freshly flashed device boots slot a and tells everyone what it runs', async ({ dut, kit }) => {
    await dut.powerOn()
    await expect(dut).toBoot({ slot: 'a', boot: 'committed', why: 'ok' })
    await expect(dut).toRun({ slot: 'a', release: '1.2' })

    // Another name, or several, on each place.
    const { hardware } = JSON.parse((await dut.run('cat /usr/lib/bistable/system.json')).output)
    expect(hardware).toContainEqual(expect.stringMatching(/\w/))
    const fresh = {
      product: kit.product,
      hardware,
      state: 'idle',
      job: null,
      busy: null,
      running: { slot: 'a', release: '1.2', boot: 'committed', why: 'ok' },
      slots: {
        a: { running: true, role: 'primary', release: '1.2', version: '2.0', committed: true, triesLeft: null },
        b: { running: false, role: 'other', release: null, version: null, digest: null, committed: null },
      },
      boot: { problem: null },
      installFloor: '1.2',
      securityFloor: '0.0',
      rootVersion: 1,
      freshness: null,
      apply: 'manual',
      lastFailure: null,
      blocked: [],
      problems: [],
    }
    expect(await dut.status()).toMatchObject(fresh)

    // Anyone may ask; only root may act.
    await dut.run("echo 'nobody:x:65534:65534::/:/bin/sh' >>/etc/passwd")
    const nobody = (command: string) => dut.run(`/bin/busybox su nobody -c 'bistable ${command} --json'`)
    const asked = await nobody('status')
    expect(asked.code).toBe(0)
    expect(JSON.parse(asked.output)).toMatchObject(fresh)
    const acted = await nobody('cancel')
    expect(acted.code, acted.output).not.toBe(0)

    const text = await dut.run('bistable status')
    const [told] = /^.* {2}state idle\nslot a {2}\* primary {2}1\.2 2\.0 [0-9a-f]{12}$/m.exec(text.output) ?? []
    expect(told, text.output).toMatch(new RegExp(`^${kit.product} {2}state`))
  })
})
