import { expect, hil } from '../harness/hil.ts'

// A stick that is pulled while a release is read from it. The agent is held still meanwhile, so that on a fast machine, too, it
// has not read all by then.

hil.override('needs', ['stick'])

hil(
  'a stick pulled in mid-install: a typed refusal, nothing armed; plugged in again, the install succeeds',
  async ({ dut, kit, stick }) => {
    const { path, release } = kit.bundle('next')
    const mounted = await stick.plug({ 'next.bundle': path })
    await dut.run(`bistable install ${mounted}/next.bundle --json >/tmp/install.json 2>&1 & echo started`)
    await dut.run('until bistable status --json | grep -q \'"state":"downloading"\'; do sleep 0.1; done', {
      timeoutMs: 240_000,
    })
    expect(await dut.run('/bin/busybox killall -STOP node')).toMatchObject({ code: 0 })
    await stick.pull()
    expect(await dut.run('/bin/busybox killall -CONT node')).toMatchObject({ code: 0 })
    const told = await dut.run('until grep -q ok /tmp/install.json; do sleep 1; done; cat /tmp/install.json', {
      timeoutMs: 240_000,
    })
    expect(told.output).toContain('"ok":false')
    expect(told.output).toContain('TRANSPORT_FILE_FAILED')
    expect(await dut.status()).toMatchObject({
      state: 'idle',
      running: { slot: 'a' },
      slots: { a: { role: 'primary' }, b: { role: 'other' } },
      lastFailure: { code: 'TRANSPORT_FILE_FAILED' },
    })

    const again = await stick.plug({ 'next.bundle': path })
    expect(await dut.bistable(`install ${again}/next.bundle`)).toMatchObject({ code: 0 })
    expect(await dut.status()).toMatchObject({ state: 'armed', slots: { b: { role: 'trial', release } } })
  },
)
