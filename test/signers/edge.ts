import type { SignerEdge } from '../../keys/signers/open.ts'

/** A signer's world in which nothing is set; what a test needs is given. */
export function edge(more: Partial<SignerEdge> = {}): SignerEdge {
  return {
    passphrase: async () => {
      throw new Error('a passphrase was asked for')
    },
    environment: {},
    tokenCommand: 'false',
    now: () => new Date(),
    signal: new AbortController().signal,
    ...more,
  }
}
