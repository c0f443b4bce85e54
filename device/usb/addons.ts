import { applyCarried } from '../agent/addons.ts'
import type { Core } from '../agent/core.ts'
import { type Account, fileOf, nameOf } from './account.ts'

/**
 * Every add-on of a stick that counts on this device, put over /usr. One that does not is passed over: whatever else is on the
 * stick is used all the same.
 * @param check only says what would become of them
 * @returns what became of those that count, for people; the first refusal
 */
export async function takeAddons(
  core: Core,
  paths: readonly string[],
  check: boolean,
  account: Account,
  signal: AbortSignal,
): Promise<{ readonly messages: readonly string[]; readonly refused: unknown }> {
  const messages: string[] = []
  let refused: unknown
  for (const path of paths) {
    core.activity.beat()
    try {
      const { applied, message } = await applyCarried(core, path, check, signal)
      account.files.push({ name: nameOf(path), code: 'OK', message })
      messages.push(message)
      if (applied) account.applied.push(message)
    } catch (error) {
      if (signal.aborted) throw signal.reason
      refused ??= error
      account.files.push(fileOf(path, error))
    }
  }
  return { messages, refused }
}
