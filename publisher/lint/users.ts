import type { Report } from './report.ts'

/** Checks /etc/passwd. Pure. */
export function lintPasswd(passwd: string, report: Report): void {
  const path = '/etc/passwd'
  const names = new Map<string, number>()
  const ids = new Map<number, string>()
  for (const [index, line] of passwd.split('\n').entries()) {
    if (line === '') continue
    const at = `line ${index + 1}`
    const fields = line.split(':')
    const [name = '', , uid = '', gid = ''] = fields
    if (fields.length !== 7 || name === '' || !/^\d{1,10}$/.test(uid) || !/^\d{1,10}$/.test(gid)) {
      report('error', 'users-malformed', path, `${at} is not name:password:uid:gid:comment:home:shell`)
      continue
    }
    const before = names.get(name)
    if (before !== undefined)
      report('error', 'users-duplicate', path, `${at}: user ${name} is on line ${before} already`)
    else names.set(name, index + 1)
    const owner = ids.get(Number(uid))
    if (owner !== undefined)
      report('error', 'users-duplicate', path, `${at}: users ${owner} and ${name} share uid ${uid}`)
    else ids.set(Number(uid), name)
  }
  if (ids.get(0) !== 'root') report('error', 'users-no-root', path, 'there is no user root with uid 0')
}
