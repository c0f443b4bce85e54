import { expect, hil } from '../harness/hil.ts'

hil.describe('by hand', () => {
  hil.override('needs', ['stick'])

  hil(
    'a release from a stick is installed, tried and committed; a rollback returns and commits',
    async ({ dut, kit, stick }) => {
      const next = kit.bundle('next')
      await dut.run('echo precious >/var/precious && echo added >/etc/added && echo first >/etc/hostname && sync')
      const mounted = await stick.plug({ 'next.bundle': next.path })

      expect(await dut.bistable(`install ${mounted}/next.bundle`)).toMatchObject({ code: 0, body: { ok: true } })
      expect(await dut.status()).toMatchObject({
        state: 'armed',
        running: { slot: 'a' },
        slots: { a: { role: 'primary' }, b: { role: 'trial', release: next.release, triesLeft: 3, committed: false } },
      })

      expect(await dut.bistable('etc report')).toMatchObject({
        code: 0,
        body: { report: { mode: 'merge', refused: 0 } },
      })
      // Behind the install, ahead of the reboot: it comes along.
      await dut.run('echo late >/etc/late')
      await dut.reboot()
      await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
      await expect(dut).toRun({ slot: 'b', release: next.release })
      const kept = await dut.run('cat /var/precious /opt/app/version /etc/added /etc/late /etc/hostname')
      expect(kept.output).toBe('precious\n3.0\nadded\nlate\nfirst\n')
      const drift = await dut.bistable('drift')
      const differing = drift.body['entries'] as { path: string; kind: string }[]
      expect(differing.filter(({ path }) => /added|late/.test(path))).toMatchObject([
        { path: '/etc/added', kind: 'added' },
        { path: '/etc/late', kind: 'added' },
      ])
      await dut.run('echo today >/etc/hostname && echo forgotten >/etc/added && sync')
      expect(await dut.status()).toMatchObject({
        state: 'committed',
        installFloor: next.release,
        slots: { a: { role: 'spare', release: '1.2' }, b: { role: 'primary', committed: true } },
      })
      expect(await dut.bistable('verify')).toMatchObject({ code: 0 })

      expect(await dut.bistable('rollback')).toMatchObject({ code: 0 })
      await dut.reboot()
      await expect(dut).toBoot({ slot: 'a', boot: 'try', why: 'ok' })
      await expect(dut).toRun({ slot: 'a', release: '1.2' })
      // /etc as it was left, but for what the device owns.
      expect((await dut.run('cat /etc/added /etc/hostname')).output).toBe('added\ntoday\n')
      expect(await dut.status()).toMatchObject({
        state: 'committed',
        slots: { a: { role: 'primary', committed: true }, b: { role: 'spare', release: next.release } },
      })
    },
  )
})

hil(
  'a cancelled install leaves the device idle and on its slot; the next one goes on from there',
  async ({ dut, kit, server }) => {
    const next = kit.bundle('next')
    // The unpacked release shares nearly everything with the running one: only a crawl leaves time to cancel.
    const address = server.offer('/slow.bundle', { from: next.path, bytesPerSecond: 20_000 })
    await dut.run(`bistable install ${address} --json >/tmp/install.json 2>&1 & echo $! >/tmp/install.pid`)
    await dut.next(['agent'], { timeoutMs: 240_000, where: ({ fields }) => fields['state'] === 'downloading' })
    expect(await dut.bistable('cancel')).toMatchObject({ code: 0 })
    const told = await dut.run(
      'for i in $(seq 50); do grep -q ok /tmp/install.json && break; sleep 1; done; cat /tmp/install.json',
    )
    expect(told.output).toContain('"ok":false')
    expect(await dut.status()).toMatchObject({
      state: 'idle',
      busy: null,
      running: { slot: 'a' },
      slots: { a: { role: 'primary', running: true }, b: { role: 'other' } },
    })

    const again = server.offer('/next.bundle', { from: next.path })
    expect(await dut.bistable(`install ${again}`)).toMatchObject({ code: 0 })
    expect(await dut.bistable('cancel')).toMatchObject({ code: 0 })
    await dut.reboot()
    await expect(dut).toBoot({ slot: 'a', boot: 'committed', why: 'ok' })
    await expect(dut).toRun({ slot: 'a', release: '1.2' })
  },
)
