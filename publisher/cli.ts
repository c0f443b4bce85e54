import type { Verb } from '../base/cli.ts'
import { addonVerbs } from './verbs/addon.ts'
import { assignVerb } from './verbs/assign.ts'
import { deltaVerb } from './verbs/delta.ts'
import { buildVerb, lintVerb } from './verbs/image.ts'
import { diskVerb, packVerb, publishVerb, signVerb } from './verbs/release.ts'
import { serveVerb } from './verbs/serve.ts'

/** The publisher's commands, in the order of a release's life. */
export const publisherVerbs: readonly Verb[] = [
  lintVerb,
  buildVerb,
  signVerb,
  packVerb,
  deltaVerb,
  publishVerb,
  assignVerb,
  ...addonVerbs,
  serveVerb,
  diskVerb,
]
