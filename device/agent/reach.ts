import { KiB } from '../../base/bytes.ts'
import type { Files } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import type { System } from '../../bundle/system.ts'
import type { Reach } from '../doors/connect.ts'
import { doorErrors } from '../doors/errors.ts'
import type { Environment } from '../doors/proxy.ts'

/** Chains and bundles of authorities; a whole system store has some 200 KiB. */
const MAX_PEM_BYTES = 512 * KiB

/**
 * What web doors are opened with. The files are read at each use: a certificate that was renewed counts at once, and a
 * file that is missing stops a fetch, never the agent.
 * @throws TRANSPORT_TLS naming the file
 */
export async function readReach(
  tls: System['agent']['tls'],
  files: Pick<Files, 'read'>,
  env: Environment,
): Promise<Reach> {
  if (tls === undefined) return { env }
  const read = async (name: 'ca' | 'cert' | 'key') => {
    const path = tls[name]
    if (path === undefined) return {}
    const bytes = await files.read(path, MAX_PEM_BYTES).catch((error: unknown) => {
      throw unusable(name, path, isBistableError(error) ? error.message : String(error))
    })
    if (bytes === undefined) throw unusable(name, path, 'it does not exist')
    return { [name]: Buffer.from(bytes).toString('latin1') }
  }
  return { env, tls: { ...(await read('ca')), ...(await read('cert')), ...(await read('key')) } }
}

function unusable(name: string, path: string, why: string): Error {
  return doorErrors.TRANSPORT_TLS(`the file of tls.${name}, ${path}, cannot be used: ${why}`, {
    next: 'Correct the PEM files that tls in the settings names.',
  })
}
