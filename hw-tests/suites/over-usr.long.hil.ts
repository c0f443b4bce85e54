import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'

// What lies over /usr for a while, and what decides about a release: add-ons, unlock, health.json, a person.

hil.override('needs', ['stick'])
// What the kernel says of an add-on that was changed on the disk.
hil.override('allow', ['filesystem-error'])

const BY_AGENT_MS = 180_000

/** What a program says, or none. */
const says = async (dut: Dut, program: string) => (await dut.run(`${program} 2>/dev/null || echo none`)).output.trim()

/** Waits until the agent, which looks now and then, says so of its add-ons. */
const listed = (dut: Dut, words: string) =>
  dut.run(`for i in $(seq 100); do bistable addon list | grep '${words}' && break; sleep 1; done`, {
    timeoutMs: BY_AGENT_MS,
  })

hil(
  'add-ons are over /usr under dm-verity, early in a start, and only as long as they count',
  async ({ dut, kit, server, stick }) => {
    expect(await says(dut, 'tools')).toBe('none')
    const tools = server.offer('/tools.addon', { from: kit.addon('tools') })
    expect(await dut.bistable(`addon apply ${tools}`)).toMatchObject({ code: 0 })
    expect(await says(dut, 'tools')).toBe('tools from the add-on')
    expect((await dut.run('dmsetup table bistable-addon-tools')).output).toMatch(/^0 \d+ verity 1 7:0 7:0 4096 4096 /)
    expect((await dut.run('touch /usr/bin/x')).code).not.toBe(0)

    // One that nobody named, from a stick.
    await stick.plug({ 'mend.addon': kit.addon('mend') })
    const disk = (await dut.run("sed -n 's: /mnt .*::p' /proc/mounts; umount /mnt")).output.trim()
    // No USB disk to the kernel of a cloud, so it must be named.
    const used = await dut.bistable(`usb ${disk}`)
    expect(used).toMatchObject({ code: 0, body: { files: [{ name: 'mend.addon', code: 'OK' }] } })
    await stick.pull()
    expect([await says(dut, 'tools'), await says(dut, 'mend')]).toEqual([
      'tools from the add-on',
      'mend from the add-on',
    ])

    // What the device changes of /etc is seen, and nothing of /usr.
    await dut.run('echo mine >>/etc/inittab; chmod 600 /etc/group; echo new >/etc/new')
    const drift = (await dut.bistable('drift')).body['entries'] as { path: string; kind: string }[]
    expect(drift.filter(({ path }) => /inittab|group|new/.test(path))).toMatchObject([
      { path: '/etc/group', kind: 'changed' },
      { path: '/etc/inittab', kind: 'changed' },
      { path: '/etc/new', kind: 'added' },
    ])
    expect(drift.filter(({ path }) => path.startsWith('/usr'))).toEqual([])

    // A changed byte on the disk is found when it is mounted next; the other one is there before the agent is.
    await dut.run('printf X | dd of=/data/bistable/addons/tools/image bs=1 seek=300 conv=notrunc && sync')
    await dut.reboot()
    await expect(dut).toBoot({ slot: 'a', boot: 'committed', why: 'ok' })
    await dut.sees(/\naddon mend is over \/usr/, BY_AGENT_MS)
    await expect(dut).toRun({ slot: 'a', release: '1.2' })
    expect((await listed(dut, 'tools  FAILED')).output).toContain('ADDON_MOUNT')
    expect([await says(dut, 'tools'), await says(dut, 'mend')]).toEqual(['none', 'mend from the add-on'])

    // Applied anew, tools go when their time has come by the device's clock. A fix does not believe that clock.
    expect(await dut.bistable(`addon apply ${tools}`)).toMatchObject({ code: 0 })
    expect(await says(dut, 'tools')).toBe('tools from the add-on')
    await dut.run('date -s "@$(($(date +%s) + 40 * 86400))"')
    await dut.sees(/tools was dropped: it expired[\s\S]*addon tools is not over/, BY_AGENT_MS)
    expect([await says(dut, 'tools'), await says(dut, 'mend')]).toEqual(['none', 'mend from the add-on'])
    expect(await dut.status()).toMatchObject({
      addons: [{ name: 'mend', kind: 'fix', state: 'active', fixes: ['HIL-1'] }],
    })
  },
)

hil(
  'a held release is judged by its health.json and waits for its person; it contains the fix, and can be unlocked',
  async ({ dut, kit, server }) => {
    const mend = server.offer('/mend.addon', { from: kit.addon('mend') })
    expect(await dut.bistable(`addon apply ${mend}`)).toMatchObject({ code: 0 })
    expect(await dut.bistable('unlock --for 1h')).toMatchObject({ code: 5, error: 'UNLOCK_PRODUCTION' })

    const { path, release } = kit.bundle('workbench')
    expect(await dut.bistable(`install ${server.offer('/n', { from: path })} --hold`)).toMatchObject({ code: 0 })
    await dut.reboot()
    await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
    await dut.sees(/COMMIT_HELD/, BY_AGENT_MS)
    const waiting = await dut.status()
    expect(waiting).toMatchObject({
      state: 'trying',
      waiting: { code: 'COMMIT_HELD' },
      addons: [{ name: 'mend', state: 'inactive', reason: { code: 'ADDON_BASE' } }],
    })
    const health = waiting['health'] as { ok: boolean; release: string; checks: { name: string; runs: number }[] }
    expect([health.ok, health.release]).toEqual([true, release])
    const { listens, answers, beeps, broker } = Object.fromEntries(health.checks.map((check) => [check.name, check]))
    for (const check of [listens, answers]) {
      expect(check).toMatchObject({ required: true, ok: true })
      // Once, and then for the time of the soak.
      expect(check?.runs).toBeGreaterThan(2)
    }
    expect(beeps).toMatchObject({ required: false, ok: false, said: expect.stringContaining('there is no speaker') })
    expect(broker).toMatchObject({ required: false, ok: false })
    expect(await says(dut, 'mend')).toBe('none')

    expect(await dut.bistable('commit')).toMatchObject({ code: 0 })
    await dut.sees(/mend was dropped: the running release contains HIL-1/, BY_AGENT_MS)
    expect(await dut.bistable('unlock --for 1m')).toMatchObject({ code: 0 })
    expect((await dut.run('touch /usr/bin/x && ls /usr/bin/x')).output).toBe('/usr/bin/x\n')
    await dut.sees(/usr is read-only again/, BY_AGENT_MS)
    expect((await dut.run('touch /usr/bin/y')).code).not.toBe(0)
    expect((await dut.run('ls /usr/bin/x')).code).not.toBe(0)
    expect(await dut.status()).toMatchObject({
      ...{ state: 'committed', addons: [] },
      slots: { b: { role: 'primary', committed: true } },
    })
  },
)
