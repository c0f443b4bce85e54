import { describe, expect, it } from 'vitest'
import { changeablePlaces, mountsToMake } from '../../bundle/mounts.ts'
import { checkSystem } from '../../bundle/system.ts'
import { INITRAMFS_NEEDS } from '../../initramfs/build.ts'
import { kernelRelease, moduleOfPath, parseModulesDep } from '../../publisher/lint/kernel.ts'
import { lintTree, requireFit } from '../../publisher/lint/lint.ts'
import { fakeModule } from '../helpers/elf.ts'
import { signedRoot } from '../keys/helpers.ts'
import { fakeKernel, fitSpecs, memoryTree, type Spec, VERSION } from './memory-tree.ts'

async function problems(change: (specs: Record<string, Spec>) => void): Promise<string[]> {
  const specs = await fitSpecs()
  change(specs)
  const { problems: found } = await lintTree(memoryTree(specs), INITRAMFS_NEEDS)
  return found.map(({ severity, id, path }) => `${severity} ${id} ${path}`)
}

describe('lint', () => {
  it('finds nothing wrong with a fit image, and says what was found', async () => {
    const result = await lintTree(memoryTree(await fitSpecs()), INITRAMFS_NEEDS)
    expect(result.problems).toEqual([])
    const fit = requireFit(result)
    expect(fit.kernel.version).toBe(VERSION)
    expect(fit.system.product).toBe('demo')
    expect(fit.root.version).toBe(1)
  })

  it('finds nothing wrong with a kernel from 6.17 on, whose digest has another name', async () => {
    const renamed = await problems((specs) => {
      const path = `usr/lib/modules/${VERSION}/modules.builtin`
      specs[path] = String(specs[path]).replace('sha256_generic.ko', 'sha256.ko')
      expect(specs[path]).toContain('/sha256.ko')
    })
    expect(renamed).toEqual([])
  })

  const modules = `usr/lib/modules/${VERSION}`
  const cases: [string, (specs: Record<string, Spec>) => void, string[]][] = [
    ['no kernel', (s) => delete s[`boot/vmlinuz-${VERSION}`], ['error kernel-missing /boot']],
    [
      'two kernels',
      (s) => {
        s['usr/lib/modules/6.9.0/vmlinuz'] = fakeKernel('6.9.0')
      },
      ['error kernel-ambiguous /boot'],
    ],
    [
      'the same kernel in both places',
      (s) => {
        s[`${modules}/vmlinuz`] = fakeKernel(VERSION)
      },
      [],
    ],
    [
      'a kernel that is not what its name says',
      (s) => {
        s[`boot/vmlinuz-${VERSION}`] = fakeKernel('6.6.6')
      },
      [`error kernel-version /boot/vmlinuz-${VERSION}`],
    ],
    [
      'a kernel named without a version',
      (s) => {
        s['boot/vmlinuz-virt'] = fakeKernel(VERSION)
        delete s[`boot/vmlinuz-${VERSION}`]
      },
      [],
    ],
    [
      'a module of another kernel',
      (s) => {
        s[`${modules}/kernel/dm-verity.ko`] = fakeModule('6.1.0-other')
      },
      [`error module-vermagic /${modules}/kernel/dm-verity.ko`],
    ],
    [
      'a listed module whose file is missing',
      (s) => delete s[`${modules}/kernel/dm-mod.ko`],
      [`error module-missing /lib/modules/${VERSION}/kernel/dm-mod.ko`],
    ],
    [
      'a needed module that nobody lists',
      (s) => {
        s[`${modules}/modules.builtin`] = 'kernel/fs/ext4/ext4.ko\nkernel/crypto/sha256_generic.ko\n'
      },
      [`error module-missing /lib/modules/${VERSION}`],
    ],
    [
      'no modules.dep',
      (s) => delete s[`${modules}/modules.dep`],
      [`error modules-dep-missing /lib/modules/${VERSION}/modules.dep`],
    ],
    [
      'module tables that are too large to be read',
      (s) => {
        s[`${modules}/modules.order`] = '\n'.repeat(16 * 1024 * 1024 + 1)
        s[`${modules}/modules.dep`] = '\n'.repeat(16 * 1024 * 1024 + 1)
      },
      [`error modules-table /${modules}/modules.dep`, `error modules-table /${modules}/modules.order`],
    ],
    [
      'an init that is not executable',
      (s) => {
        s['usr/lib/systemd/systemd'] = 'x'
      },
      ['error init-not-executable /usr/lib/systemd/systemd'],
    ],
    ['an init link that leads nowhere', (s) => delete s['usr/lib/systemd/systemd'], ['error init-missing /sbin/init']],
    ['no agent', (s) => delete s['usr/lib/bistable/agent/node'], ['error agent-missing /usr/lib/bistable/agent/node']],
    [
      'no system.json',
      (s) => delete s['usr/lib/bistable/system.json'],
      ['error system-missing /usr/lib/bistable/system.json'],
    ],
    [
      'system.json with a duplicate key',
      (s) => {
        s['usr/lib/bistable/system.json'] = '{"product":"demo","product":"evil","hardware":["x"]}'
      },
      ['error system-invalid /usr/lib/bistable/system.json'],
    ],
    [
      'a kernel that halts when it panics',
      (s) => {
        s['usr/lib/bistable/system.json'] = '{"product":"demo","hardware":["x"],"kernelArgs":["panic=9","panic=0"]}'
      },
      ['error panic-halts /usr/lib/bistable/system.json'],
    ],
    [
      'kernel arguments that the kernel would cut off',
      (s) => {
        const kernelArgs = Array.from({ length: 17 }, (_, n) => `word${n}=${'x'.repeat(100)}`)
        s['usr/lib/bistable/system.json'] = JSON.stringify({ product: 'demo', hardware: ['x'], kernelArgs })
      },
      ['error args-too-long /usr/lib/bistable/system.json'],
    ],
    [
      'root.json that is no envelope',
      (s) => {
        s['usr/lib/bistable/root.json'] = '{}'
      },
      ['error root-invalid /usr/lib/bistable/root.json'],
    ],
    [
      'a development release',
      (s) => {
        s['usr/lib/bistable/system.json'] = '{"product":"demo","hardware":["x"],"development":true,"fixes":["CVE-1"]}'
      },
      ['warning development /usr/lib/bistable/system.json'],
    ],
    ['no mount point', (s) => delete s['data'], ['error mount-point-missing /data']],
    [
      'a declared writable path that is missing',
      (s) => delete s['opt/app/logs'],
      ['error writable-missing /opt/app/logs'],
    ],
    [
      'an overlay on what is a file, for a kernel without overlayfs',
      (s) => {
        s[`${modules}/modules.dep`] = String(s[`${modules}/modules.dep`]).replace('kernel/overlay.ko:\n', '')
        const text = String(s['usr/lib/bistable/system.json'])
        const mounts = [{ path: '/usr/lib/bistable/system.json', policy: 'overlay' }]
        s['usr/lib/bistable/system.json'] = JSON.stringify({ ...JSON.parse(text), mounts })
      },
      [`error module-missing /lib/modules/${VERSION}`, 'error writable-not-folder /usr/lib/bistable/system.json'],
    ],
    [
      'migrations that are not there or no programs, and btrfs without its program',
      (s) => {
        const text = String(s['usr/lib/bistable/system.json'])
        const migrations = ['/usr/lib/none', '/usr/lib/bistable/root.json'].map((run, i) => ({ to: i + 1, run }))
        const state = { schema: 2, migrations, paths: ['/var/lib/app'], btrfs: true }
        s['usr/lib/bistable/system.json'] = JSON.stringify({ ...JSON.parse(text), state })
      },
      [
        `error module-missing /lib/modules/${VERSION}`,
        'error migration-missing /usr/lib/none',
        'error migration-not-executable /usr/lib/bistable/root.json',
        'warning copy-incomplete /var/lib/app',
        'error program-missing /usr/bin/btrfs',
      ],
    ],
    [
      'an overlay that is to be copied where cp is busybox',
      (s) => {
        const text = String(s['usr/lib/bistable/system.json'])
        const state = { schema: 1, migrations: [{ to: 1, run: '/usr/bin/bistable' }], paths: ['/opt/app'] }
        const mounts = [{ path: '/opt/app', policy: 'overlay' }]
        s['usr/lib/bistable/system.json'] = JSON.stringify({ ...JSON.parse(text), state, mounts, writable: [] })
      },
      ['error copy-incomplete /opt/app'],
    ],
    [
      'extended attributes that busybox cp would lose',
      (s) => {
        s['etc/marked'] = { type: 'file', bytes: 'x', xattrs: { 'user.k': Buffer.from('v') } }
        s['usr/marked'] = { type: 'file', bytes: 'x', xattrs: { 'user.k': Buffer.from('v') } }
      },
      ['warning attributes-lost /etc/marked'],
    ],
    [
      'the same with GNU cp: only what lies in memory loses them',
      (s) => {
        for (const path of ['etc/marked', 'opt/app/logs/marked', 'opt/cache/marked'])
          s[path] = { type: 'file', bytes: 'x', xattrs: { 'user.k': Buffer.from('v') } }
        s['usr/bin/cp'] = { type: 'file', bytes: 'cp', mode: 0o755 }
        const text = String(s['usr/lib/bistable/system.json'])
        const mounts = [{ path: '/opt/cache', policy: 'tmpfs' }]
        s['usr/lib/bistable/system.json'] = JSON.stringify({ ...JSON.parse(text), mounts })
      },
      ['warning attributes-lost /opt/cache/marked'],
    ],
    [
      'two users with one uid',
      (s) => {
        s['etc/passwd'] = 'root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/root:/bin/sh\nbroken\n'
      },
      ['error users-duplicate /etc/passwd', 'error users-malformed /etc/passwd'],
    ],
    [
      'two groups with one gid',
      (s) => {
        s['etc/group'] = 'root:x:0:\napp:x:0:\nbroken\n'
      },
      ['error users-duplicate /etc/group', 'error users-malformed /etc/group'],
    ],
    [
      'sysusers.d that agrees with the tables',
      (s) => {
        s['usr/lib/sysusers.d/app.conf'] =
          '# c\nu root 0 - /root\nu app 1000:100 "An app" /opt/app\nm app audio\nu svc 900\n'
      },
      [],
    ],
    [
      'sysusers.d against passwd, against itself, and without a number',
      (s) => {
        s['usr/lib/sysusers.d/a.conf'] = 'u! svc 1000\nu one 901\nu app 1001\nu any -\n'
        s['usr/lib/sysusers.d/b.conf'] = 'u two 901:900\ng audio /dev/snd\n'
        s['etc/sysusers.d/b.conf'] = 'u two 901:900\n'
      },
      [
        ...['app is 1001', 'svc is to be 1000', 'one and two'].map(() => 'error users-collision /usr/lib/sysusers.d'),
        ...['user any', 'group any'].map(() => 'warning users-unnumbered /usr/lib/sysusers.d'),
      ],
    ],
    [
      'what /var holds',
      (s) => {
        s['var/lib/app/seed'] = 'x'
        s['var/log/dpkg.log'] = 'x'
      },
      ['fact var-seed /var', 'warning var-litter /var/log'],
    ],
  ]
  cases.push([
    'package databases that are not read',
    (s) => {
      s['var/lib/rpm/Packages'] = 'bdb'
      s['usr/lib/sysimage/rpm/rpmdb.sqlite-wal'] = ''
    },
    ['fact var-seed /var', 'warning packages-unread /var/lib/rpm/Packages'],
  ])
  for (const [name, change, wanted] of cases)
    it(name, async () => {
      expect(await problems(change)).toEqual(wanted)
    })

  it('takes as many accounts as fit into a sysusers.d file, and so many files', async () => {
    const many = await problems((specs) => {
      specs['usr/lib/sysusers.d/a.conf'] = 'u a\n'.repeat(65_536)
    })
    expect(new Set(many)).toEqual(new Set(['warning users-unnumbered /usr/lib/sysusers.d']))
    const files = await problems((specs) => {
      for (let n = 0; n <= 256; n++) specs[`usr/lib/sysusers.d/${n}.conf`] = 'u root 0\n'
    })
    expect(files).toEqual(['error users-malformed /usr/lib/sysusers.d'])
  })

  it('the root statement must be of the same product', async () => {
    const other = await signedRoot({ product: 'other' }, [1, 2])
    expect(
      await problems((s) => {
        s['usr/lib/bistable/root.json'] = other
      }),
    ).toEqual(['error root-product /usr/lib/bistable/root.json'])
  })

  it('lists all missing pieces of an empty image at once, and refuses it', async () => {
    const result = await lintTree(memoryTree({}), INITRAMFS_NEEDS)
    const ids = new Set(result.problems.map(({ id }) => id))
    expect([...ids].sort()).toEqual(
      'agent-missing init-missing kernel-missing mount-point-missing program-missing root-missing system-missing users-missing'.split(
        ' ',
      ),
    )
    expect(() => requireFit(result)).toThrow(expect.objectContaining({ code: 'IMAGE_UNFIT', exitCode: 3 }))
  })

  it('an image that lacks only the kernel is refused as that', async () => {
    const specs = await fitSpecs()
    delete specs[`boot/vmlinuz-${VERSION}`]
    const result = await lintTree(memoryTree(specs), INITRAMFS_NEEDS)
    expect(() => requireFit(result)).toThrow(expect.objectContaining({ code: 'IMAGE_NO_KERNEL' }))
  })
})

describe('parsers of the check', () => {
  it('a line of a table that is no path, however long', () => {
    expect(moduleOfPath('a'.repeat(16 << 20))).toBeUndefined()
    expect(moduleOfPath(`${'.ko'.repeat(1 << 20)}.x`)).toBeUndefined()
    expect(moduleOfPath('.ko')).toBeUndefined()
  })

  it('modules.dep, with names that have "-" and compression', () => {
    const modules = parseModulesDep('kernel/a/dm-verity.ko.xz: kernel/b/dm-mod.ko.xz\nkernel/b/dm-mod.ko.xz:\nnoise\n')
    expect([...modules]).toEqual([
      ['dm_verity', ['kernel/a/dm-verity.ko.xz', 'kernel/b/dm-mod.ko.xz']],
      ['dm_mod', ['kernel/b/dm-mod.ko.xz']],
    ])
  })

  it('kernel release, and none where there is none', () => {
    expect(kernelRelease(fakeKernel('6.1.0-9-amd64'))).toBe('6.1.0-9-amd64')
    expect(kernelRelease(Buffer.alloc(0x210))).toBeUndefined()
  })
})

describe('system.json', () => {
  const base = { product: 'p', hardware: ['h'] }
  const refused = (extra: object): readonly string[] => {
    const checked = checkSystem({ ...base, ...extra })
    return 'problems' in checked ? checked.problems : []
  }

  it('fills in the defaults', () => {
    const checked = checkSystem(base)
    expect('system' in checked && checked.system).toMatchObject({
      writable: [],
      health: { deadlineSeconds: 120 },
      agent: { apply: 'manual', pollSeconds: 3600 },
    })
  })

  it('takes places with a policy, one inside another, and says what the initramfs has to make of them', () => {
    const checked = checkSystem({
      ...base,
      writable: ['/opt/app/logs'],
      mounts: [
        { path: '/var/lib/dpkg', policy: 'image' },
        { path: '/usr/share/app', policy: 'image' },
        { path: '/opt/app/bin', policy: 'image' },
        { path: '/opt/app', policy: 'overlay' },
        { path: '/opt/app/bin/cache', policy: 'tmpfs', sizeMiB: 8 },
        { path: '/opt/app-x', policy: 'data' },
      ],
    })
    if (!('system' in checked)) throw new Error(checked.problems.join('; '))
    const { system } = checked
    expect(mountsToMake(system).map(({ policy, path }) => `${policy} ${path}`)).toEqual([
      'overlay /opt/app',
      'data /opt/app-x',
      'image /opt/app/bin',
      'tmpfs /opt/app/bin/cache',
      'data /opt/app/logs',
      'image /var/lib/dpkg',
    ])
    expect(changeablePlaces(system)).toEqual(['/opt/app', '/opt/app-x'])
  })

  it('names unknown keys, bad paths and dangerous kernel arguments', () => {
    expect(refused({ writeable: [] })).toHaveLength(1)
    for (const path of ['relative', '/a/../b', '/a/', '//a', '/var/x', '/etc/x', '/data/x', '/a\nb', '/a b', '/opt/*'])
      expect(refused({ writable: [path] }), path).toHaveLength(1)
    expect(refused({ writable: ['/opt/a', '/opt/a/b'] })).toHaveLength(1)
    expect(refused({ writable: ['/opt/a', '/opt/a'] })).toHaveLength(1)
    for (const policy of ['image', 'data', 'tmpfs', 'overlay'])
      for (const path of ['/var', '/etc/x', '/data', '/run/x', '/opt/*', 'opt'])
        expect(refused({ mounts: [{ path, policy }] }), `${policy} ${path}`).toHaveLength(1)
    expect(refused({ mounts: [{ path: '/var/x', policy: 'data' }] })).toHaveLength(1)
    expect(refused({ mounts: [{ path: '/opt/a,b', policy: 'overlay' }] })).toHaveLength(1)
    expect(refused({ mounts: [{ path: '/opt/a', policy: 'tmpfs', sizeMiB: 0 }] })).toHaveLength(1)
    expect(refused({ mounts: [{ path: '/opt/a', policy: 'overlay', release: 'some' }] })).toHaveLength(1)
    expect(refused({ mounts: [{ path: '/opt/a', policy: 'bind' }] })).toHaveLength(1)
    expect(refused({ writable: ['/opt/a'], mounts: [{ path: '/opt/a', policy: 'overlay' }] })).toHaveLength(1)
    expect(refused({ mounts: ['/opt/a', '/opt/a/b'].map((path) => ({ path, policy: 'overlay' })) })).toHaveLength(1)
    expect(refused({ owned: ['/usr/x'] })).toHaveLength(1)
    for (const arg of ['a b', 'a"', '$x', 'bistable.root=1', '`x`', "a'", 'a\\'])
      expect(refused({ kernelArgs: [arg] }), arg).toHaveLength(1)
    expect(refused({ product: '../x', hardware: [] })).toHaveLength(2)
  })
})

describe('lint of health checks', () => {
  const HEALTH = 'usr/lib/bistable/health.json'
  const checks = (...list: object[]) => JSON.stringify({ checks: list })
  const systemctl: Spec = { type: 'file', bytes: 'x', mode: 0o755 }
  const unit = { name: 'app', level: 'required', kind: 'unit', unit: 'app@1.service' }
  const cases: [string, (specs: Record<string, Spec>) => void, string[]][] = [
    [
      'a plan that fits',
      (s) => {
        s['usr/bin/systemctl'] = systemctl
        s['usr/lib/systemd/system/app@.service'] = '[Service]\n'
        s[HEALTH] = checks(unit, { name: 'web', level: 'required', kind: 'http', url: 'http://[::1]:8080/' })
      },
      [],
    ],
    [
      'a mistyped key',
      (s) => {
        s[HEALTH] = '{"soakSecond":5}'
      },
      [`error health-invalid /${HEALTH}`],
    ],
    [
      'no JSON',
      (s) => {
        s[HEALTH] = '{'
      },
      [`error health-invalid /${HEALTH}`],
    ],
    [
      'a program that is not there, and one that is not executable',
      (s) => {
        s['usr/lib/bistable/health.d/required/10-app'] = 'text'
        s[HEALTH] = checks({ name: 'x', level: 'wanted', kind: 'program', path: '/usr/bin/none' })
      },
      [
        'warning health-not-executable /usr/lib/bistable/health.d/required/10-app',
        'error health-program /usr/bin/none',
      ],
    ],
    [
      'units without systemd',
      (s) => {
        s[HEALTH] = checks(unit)
      },
      [`error health-no-systemd /${HEALTH}`],
    ],
    [
      'a unit that the image does not have',
      (s) => {
        s['usr/bin/systemctl'] = systemctl
        s[HEALTH] = checks(unit)
      },
      [`warning health-unit /${HEALTH}`],
    ],
    [
      'a required check that asks another machine',
      (s) => {
        s[HEALTH] = checks({ name: 'it', level: 'required', kind: 'broker' })
      },
      [`warning health-network /${HEALTH}`],
    ],
  ]
  it.each(cases)('%s', async (_, change, expected) => {
    expect((await problems(change)).filter((line) => line.includes('health-'))).toEqual(expected)
  })
})
