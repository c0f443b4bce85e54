import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import { afterAll, describe, expect, it } from 'vitest'
import { Dut } from './dut.ts'
import { DutError } from './lab-error.ts'

/** As getty and login on a serial console: a prompt after a key, a password that is not shown, a shell or another prompt. */
const LOGIN = `
while :; do
  read -r key
  printf '\\nboard login: '
  read -r user
  stty -echo
  printf 'Password: '
  read -r password
  stty echo
  echo
  [ "$user $password" = 'root secret' ] && exec sh
  echo 'Login incorrect'
done
`

const folder = mkdtempSync(join(tmpdir(), 'bistable-login-'))
afterAll(() => rmSync(folder, { recursive: true }))
const script = join(folder, 'login')
writeFileSync(script, LOGIN)

function board(password: string): Dut {
  const machine = async () => {
    const child = spawn('socat', ['STDIO', `EXEC:sh ${script},pty,setsid,ctty,stderr`], {
      stdio: ['pipe', 'pipe', 'ignore'],
    })
    const nothing = async () => {}
    return {
      port: Duplex.from({ readable: child.stdout, writable: child.stdin }),
      cut: async () => void child.kill('SIGKILL'),
      reset: nothing,
      plug: nothing,
      unplug: nothing,
    }
  }
  return new Dut({ disk: '', machine, login: { user: 'root', password } })
}

describe('login', () => {
  it('answers the prompts and opens a shell; the password is in no transcript', async () => {
    const dut = board('secret')
    await dut.powerOn()
    try {
      expect(await dut.run('echo in; exit 4')).toEqual({ code: 4, output: 'in\n' })
      expect(dut.lastWords().tail).toContain('board login: ')
      expect(dut.lastWords().tail).not.toContain('secret')
    } finally {
      await dut.powerCut()
    }
  })

  it('that is refused is said at once', async () => {
    const dut = board('guess')
    await dut.powerOn()
    try {
      const failure = dut.run('true')
      await expect(failure).rejects.toThrow(DutError)
      await expect(failure).rejects.toThrow(/^Login incorrect: is the user or the password of this place another/)
    } finally {
      await dut.powerCut()
    }
  })
})
