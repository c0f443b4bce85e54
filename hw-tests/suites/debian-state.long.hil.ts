import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'

// What outlives a slot, on Debian with systemd: HIL_PLACE=qemu-x86-debian npm run hil -- hw-tests/suites/debian-state

hil.override('needs', ['systemd'])

/** An emulated processor takes its time for a whole Debian. */
const BOOT = { timeoutMs: 400_000 }
const INSTALL = { timeoutMs: 400_000 }

/** What a device's people have done to it. */
const LIVED_IN = [
  'echo root:first | chpasswd',
  'useradd -u 1500 -M local',
  "sed -i 's/^greeting = .*/greeting = moin/' /etc/app/app.conf",
  'echo of the device >/etc/issue',
  'echo mine >/etc/mine.conf && chmod 640 /etc/mine.conf',
  'echo "level = 7" >/opt/app/app.conf',
  'sync',
].join(' && ')

const shadowOf = async (dut: Dut, name: string) => (await dut.run(`grep ^${name}: /etc/shadow | cut -d: -f2`)).output

async function apply(dut: Dut, address: string) {
  expect(await dut.bistable(`addon apply ${address}`, INSTALL)).toMatchObject({ code: 0 })
}

hil('an add-on by systemd-sysext, and what differs from the release', async ({ dut, kit, server }) => {
  expect((await dut.run('tools 2>/dev/null')).code).not.toBe(0)
  await apply(dut, server.offer('/tools.addon', { from: kit.addon('tools') }))
  expect((await dut.run('tools')).output).toBe('tools from the add-on\n')
  // systemd's own tool knows it, and dm-verity is below.
  expect((await dut.run('systemd-sysext status --json=short')).output).toMatch(/"\/usr","extensions":\["tools"\]/)
  expect((await dut.run('dmsetup table bistable-addon-tools')).output).toMatch(/^0 \d+ verity 1 7:\d 7:\d 4096 4096 /)
  expect(await dut.bistable('unlock --for 1h')).toMatchObject({ error: 'UNLOCK_PRODUCTION' })

  await dut.run(LIVED_IN)
  const drift = await dut.bistable('drift --diff', INSTALL)
  const entries = drift.body['entries'] as { path: string; kind: string; owned?: boolean }[]
  const found = new Map(entries.map(({ path, kind }) => [path, kind]))
  expect(found.get('/etc/mine.conf')).toBe('added')
  for (const path of ['/etc/app/app.conf', '/etc/issue', '/opt/app/app.conf', '/etc/shadow', '/etc/passwd'])
    expect([path, found.get(path)]).toEqual([path, 'changed'])
  expect(entries.filter(({ path }) => path.startsWith('/usr/'))).toEqual([])
  const diffs = drift.body['diffs'] as Record<string, string>
  expect(diffs['/opt/app/app.conf']).toMatch(/^-level = 1\n\+level = 7$/m)
  expect(diffs['/etc/shadow']).toBeUndefined()
  expect(diffs['/etc/app/app.conf']).toMatch(/^-greeting = hello\n\+greeting = moin$/m)

  // What the next release would make of it, and a rule for what is in doubt.
  const next = server.offer('/next', { from: kit.bundle('next').path })
  const issue = async () => {
    const { body } = await dut.bistable(`etc preview ${next}`, INSTALL)
    const { findings } = body['report'] as { findings: { path: string; level: string; taken: string }[] }
    return findings.find(({ path }) => path === '/etc/issue')
  }
  expect(await issue()).toMatchObject({ level: 'conflict', taken: 'local' })
  expect(await dut.bistable('etc resolve /etc/issue image')).toMatchObject({ code: 0 })
  expect(await issue()).toMatchObject({ taken: 'image' })

  expect(await dut.bistable('addon remove tools')).toMatchObject({ code: 0 })
  expect((await dut.run('tools 2>/dev/null')).code).not.toBe(0)
  expect((await dut.run('systemd-sysext status --json=short')).output).not.toContain('tools')
})

hil('a debug add-on: the real strace and tcpdump', async ({ dut, kit, server }) => {
  expect((await dut.run('strace -V; tcpdump --version')).code).not.toBe(0)
  await apply(dut, server.offer('/debug.addon', { from: kit.addon('debug') }))
  expect(await dut.status()).toMatchObject({ addons: [{ name: 'debug', kind: 'debug', state: 'active' }] })
  expect(await dut.run('strace -V')).toMatchObject({ code: 0, output: expect.stringMatching(/^strace -- version \d/) })
  expect(await dut.run('tcpdump --version 2>&1')).toMatchObject({
    code: 0,
    output: expect.stringMatching(/^tcpdump version \d[\s\S]*libpcap version/),
  })
  // They do what they are for.
  const traced = await dut.run(
    'strace -f -e trace=openat -o /run/trace cat /etc/hostname; grep /etc/hostname /run/trace',
  )
  expect(traced.output).toMatch(/^appliance\n.*openat\(AT_FDCWD, "\/etc\/hostname", O_RDONLY/)
  // Debian's would become its own user, whom only the package's scripts make.
  const seen = await dut.run(
    `timeout 60 tcpdump -Z root -n -i lo -c 1 udp port 9 >/run/seen 2>&1 & sleep 10; bash -c 'echo x >/dev/udp/127.0.0.1/9'; wait; cat /run/seen`,
    BOOT,
  )
  expect(seen.output).toMatch(/127\.0\.0\.1\.\d+ > 127\.0\.0\.1\.9: UDP, length 2/)
  expect(await dut.bistable('addon remove debug')).toMatchObject({ code: 0 })
  expect((await dut.run('strace -V')).code).not.toBe(0)
})

hil(
  'a release comes, its /etc merged and its data migrated; passwords and state go back with the device',
  async ({ dut, kit, server }) => {
    const { path, release } = kit.bundle('next')
    await dut.run(LIVED_IN)
    const password = await shadowOf(dut, 'root')
    await apply(dut, server.offer('/tools.addon', { from: kit.addon('tools') }))
    expect(await dut.bistable(`install ${server.offer('/next', { from: path })}`, INSTALL)).toMatchObject({ code: 0 })
    const { report } = (await dut.bistable('etc report')).body as { report: { findings: { path: string }[] } }
    expect(report).toMatchObject({ mode: 'merge', refused: 0 })
    expect(report.findings.find((finding) => finding.path === '/etc/issue')).toMatchObject({ level: 'conflict' })

    await dut.reboot()
    await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
    await expect(dut).toRun({ slot: 'b', release })
    // Lines of both, the device's file in doubt, and a file that the image knows nothing of.
    const etc = await dut.run('sed -n "1p;22p" /etc/app/app.conf; cat /etc/issue; stat -c %a /etc/mine.conf', BOOT)
    expect(etc.output).toBe('greeting = moin\ncolour = blue\nof the device\n640\n')
    expect(await shadowOf(dut, 'root')).toBe(password)
    // The image's system user, beside the device's own.
    expect((await dut.run('id -u appliance local')).output).toBe('950\n1500\n')
    // The overlay: what the application rewrote stays, its program is the new one; its log is a place of its own.
    const app = await dut.run('cat /opt/app/app.conf /opt/app/version; grep -c started /opt/app/logs/app.log')
    expect(app.output).toBe('level = 7\n3.0\n2\n')
    expect((await dut.run('cat /var/lib/app/migrated; ls /var/lib/app/diary-1')).output).toBe(
      'schema 0 to 1\n/var/lib/app/diary-1\n',
    )
    const status = await dut.status()
    expect(status).toMatchObject({
      running: { slot: 'b', release },
      health: { ok: true },
      addons: [{ name: 'tools', state: 'inactive' }],
    })
    const { checks } = status['health'] as { checks: { name: string; ok: boolean; required: boolean }[] }
    expect(checks.filter(({ required }) => required)).toMatchObject(
      expect.arrayContaining([
        expect.objectContaining({ name: 'app runs', ok: true }),
        expect.objectContaining({ name: 'boot-complete.target', ok: true }),
      ]),
    )

    // A password of after the commit goes back with the device; /etc does not.
    await dut.run('echo root:second | chpasswd && rm /etc/mine.conf && sync')
    const later = await shadowOf(dut, 'root')
    expect(later).not.toBe(password)
    expect(await dut.bistable('rollback', BOOT)).toMatchObject({ code: 0 })
    await dut.reboot()
    await expect(dut).toBoot({ slot: 'a', boot: 'try', why: 'ok' })
    await expect(dut).toRun({ slot: 'a', release: '1.2' })
    expect(await shadowOf(dut, 'root')).toBe(later)
    expect((await dut.run('cat /opt/app/app.conf /opt/app/version; stat -c %a /etc/mine.conf')).output).toBe(
      'level = 7\n1.0\n640\n',
    )
    // Before the services of this start, by its own unit.
    const exited = 'systemctl show -P ExecMainExitTimestampMonotonic bistable-addons.service'
    const started = 'systemctl show -P ExecMainStartTimestampMonotonic app.service'
    expect((await dut.run(`[ $(${exited}) -gt 0 ] && [ $(${exited}) -lt $(${started}) ]`)).code).toBe(0)
    expect((await dut.run('tools')).output).toBe('tools from the add-on\n')
  },
)

hil(
  'a release whose unit does not come up is left again, and its migrations are undone',
  async ({ dut, kit, server }) => {
    const { path, release } = kit.bundle('broken')
    const before = (await dut.run('sha256sum /var/lib/app/starts')).output
    expect(await dut.bistable(`install ${server.offer('/broken', { from: path })}`, INSTALL)).toMatchObject({ code: 0 })
    const from = dut.console.position()
    await dut.reboot()
    await expect(dut).toFallBack({
      to: 'a',
      from: release,
      tries: 1,
      reason: /HEALTH_FAILED.*app runs/,
      within: 400_000,
    })
    const said = dut.console.since(from)
    expect(said).toMatch(/note migration to 1: .*[\s\S]*note migration to 2: .*[\s\S]*note the data have schema 2 now/)
    expect(said).toMatch(/note the state is as it was before release 1\.4/)
    const status = await dut.status()
    expect(status).toMatchObject({ running: { slot: 'a', release: '1.2' }, data: { schema: 0 } })
    expect(JSON.stringify(status['health'])).toContain(release)
    expect((await dut.run('ls /var/lib/app')).output).toBe('starts\n')
    expect((await dut.run('head -n 1 /var/lib/app/starts | sha256sum')).output.slice(0, 64)).toBe(before.slice(0, 64))
  },
)
