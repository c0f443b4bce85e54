import { cliErrors, type Invocation, type OptionSpec, stringOption } from '../../base/cli.ts'
import { MAX_ENVELOPE_BYTES } from '../../keys/dsse.ts'
import { readRequired } from '../../keys/files.ts'
import { trustAnchor, walkRoots } from '../../keys/root.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import { readRoots } from '../roots.ts'

/** What a publisher's verb trusts before it reads a bundle. */

export const trustOptions = {
  root: { type: 'string', value: 'FILE', help: 'the root statement you trust; without it the chain of the bundle' },
  roots: {
    type: 'string',
    value: 'DIR',
    help: 'folder of N.json root statements that you trust, newer ones than the bundle',
  },
} as const satisfies Record<string, OptionSpec>

export async function trustedFrom(call: Invocation): Promise<TrustedRoots | undefined> {
  const root = stringOption(call, 'root')
  const folder = stringOption(call, 'roots')
  if (root !== undefined && folder !== undefined) throw cliErrors.USAGE('--root and --roots exclude one another')
  if (folder !== undefined) return walkRoots(await readRoots(folder))
  return root === undefined ? undefined : trustAnchor(await readRequired(root, MAX_ENVELOPE_BYTES))
}
