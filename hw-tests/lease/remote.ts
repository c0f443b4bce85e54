import { LabError } from '../harness/lab-error.ts'
import { type Answer, isLease, readLeases } from './lease.ts'
import type { LeaseStore } from './store.ts'

const ANSWER_MS = 10_000
const MOST_ANSWER = 1024 * 1024

/** Leases at a lease server of the lab (`npm run hil -- lease-server`). */
export function remoteStore(address: string, token: string): LeaseStore {
  const ask = async (method: string, path: string, body?: object): Promise<{ status: number; answer: unknown }> => {
    let response: Response
    let text: string
    try {
      response = await fetch(new URL(path, address), {
        method,
        headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' },
        signal: AbortSignal.timeout(ANSWER_MS),
        ...(body && { body: JSON.stringify(body) }),
      })
      text = await response.text()
    } catch (cause) {
      throw new LabError(`the lease server ${address} does not answer`, { cause })
    }
    const known = [200, 404, 409].includes(response.status) && text.length <= MOST_ANSWER
    if (!known) throw new LabError(`the lease server ${address} answered ${response.status}: ${text.slice(0, 200)}`)
    try {
      return { status: response.status, answer: JSON.parse(text) }
    } catch {
      throw new LabError(`the lease server ${address} answered no JSON: ${text.slice(0, 200)}`)
    }
  }
  const answered = ({ status, answer }: { status: number; answer: unknown }): Answer => {
    const { lease, held, instead } = answer as Readonly<Record<string, unknown>>
    if (status === 200 && isLease(lease))
      return { granted: true, lease, leases: {}, ...(isLease(instead) && { instead }) }
    if (status !== 200) return { granted: false, held: isLease(held) ? held : undefined, leases: {} }
    throw new LabError(`the lease server ${address} answered without a lease`)
  }
  const at = (place: string) => `/leases/${encodeURIComponent(place)}`
  return {
    // Process numbers mean nothing on another machine.
    acquire: async ({ holder: _, place, ...wish }) => answered(await ask('POST', at(place), wish)),
    renew: async (place, token_, ttlMs) => answered(await ask('PUT', at(place), { token: token_, ttlMs })),
    release: async (place, token_) => {
      await ask('DELETE', at(place), { token: token_ })
    },
    list: async () => {
      const leases = readLeases((await ask('GET', '/leases')).answer)
      if (leases === undefined) throw new LabError(`the lease server ${address} answered no leases`)
      return leases
    },
  }
}
