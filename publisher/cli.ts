import type { Verb } from '../base/cli.ts'
import { assignVerb } from './verbs/assign.ts'
import { buildVerb, lintVerb } from './verbs/image.ts'
import { diskVerb, packVerb, publishVerb, signVerb } from './verbs/release.ts'
import { serveVerb } from './verbs/serve.ts'

/** The publisher's commands, in the order of a release's life. */
export const publisherVerbs: readonly Verb[] = [
  lintVerb,
  buildVerb,
  signVerb,
  packVerb,
  publishVerb,
  assignVerb,
  serveVerb,
  diskVerb,
]
