import { describe, expect, it } from 'vitest'
import { accountCollisions, parseSysusers, unnumbered } from '../../bundle/sysusers.ts'

// Lines as Debian 12 ships them: sysusers.d/basic.conf (base-passwd) and systemd-network.conf, with its passwd and group.
const DEBIAN = `# generated
g adm        4     -
g nogroup    65534 -

u root       0       - /root                /bin/bash
u daemon     1       - /usr/sbin            /usr/sbin/nologin
u sync       4:65534 - /bin                 /bin/sync
u games      5:60    - /usr/games           /usr/sbin/nologin
g games      60    -
u systemd-network - "systemd Network Management"
m app audio
r - 500-900
`
const PASSWD = `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
sync:x:4:65534:sync:/bin:/bin/sync
games:x:5:60:games:/usr/games:/usr/sbin/nologin
`
const GROUP = 'root:x:0:\ndaemon:x:1:\nadm:x:4:\ngames:x:60:\nnogroup:x:65534:\n'

describe('sysusers.d', () => {
  const accounts = parseSysusers(DEBIAN)

  it('of Debian does not collide with its own tables, nor with empty ones', () => {
    expect(accountCollisions(accounts, { passwd: PASSWD, group: GROUP })).toEqual([])
    expect(accountCollisions(accounts, { passwd: '', group: '' })).toEqual([])
    expect(unnumbered(accounts, { passwd: PASSWD, group: GROUP }).map(({ table }) => table)).toEqual([
      'passwd',
      'group',
    ])
    const made = { passwd: `${PASSWD}systemd-network:x:998:998::/:/x\n`, group: `${GROUP}systemd-network:x:998:\n` }
    expect(unnumbered(accounts, made)).toEqual([])
  })

  it('names every collision once, in order', () => {
    const passwd = PASSWD.replace('games:x:5', 'gamer:x:5').replace('daemon:x:1:', 'daemon:x:2:')
    expect(accountCollisions(accounts, { passwd, group: GROUP.replace('adm:x:4', 'other:x:4') })).toEqual([
      'group adm is to be 4 by sysusers.d, but in group that is other',
      'user daemon is 1 in sysusers.d and 2 in passwd',
      'user games is to be 5 by sysusers.d, but in passwd that is gamer',
    ])
    expect(accountCollisions(parseSysusers('u a 7\nu a 8\nu b 7\n'), { passwd: '', group: '' })).toEqual([
      'group a is 7 and 8 in sysusers.d',
      'groups a and b are both 7 in sysusers.d',
      'user a is 7 and 8 in sysusers.d',
      'users a and b are both 7 in sysusers.d',
    ])
  })
})
