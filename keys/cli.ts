import type { Verb } from '../base/cli.ts'
import { generateVerb, initVerb } from './verbs/make.ts'
import { composeVerb, revokeVerb, rotateVerb } from './verbs/roots.ts'
import { exportVerb, mergeVerb, showVerb, signVerb } from './verbs/statements.ts'

/** The key commands, in the order of a key's life. */
export const keyVerbs: readonly Verb[] = [
  initVerb,
  generateVerb,
  composeVerb,
  showVerb,
  signVerb,
  mergeVerb,
  rotateVerb,
  revokeVerb,
  exportVerb,
]
