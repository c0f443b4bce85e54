import { parseStrictJson } from '../../base/strict-json.ts'
import { checkSystem, ROOT_PATH, SYSTEM_MAX_BYTES, SYSTEM_PATH, type System } from '../../bundle/system.ts'
import { MAX_ENVELOPE_BYTES } from '../../keys/dsse.ts'
import { trustAnchor } from '../../keys/root.ts'
import type { Root } from '../../keys/types.ts'
import type { MergedTree } from '../tree.ts'
import { isFile } from './kernel.ts'
import type { Report } from './report.ts'

/** What the image says about itself: system.json and the trust anchor root.json. */

/** Parses and validates system.json; `undefined` after having reported why not. */
export async function lintSystem(tree: MergedTree, report: Report): Promise<System | undefined> {
  const entry = tree.resolve(SYSTEM_PATH)
  if (!isFile(entry)) {
    report(
      'error',
      'system-missing',
      SYSTEM_PATH,
      'missing; it names the product and its hardware (docs/architecture.md)',
    )
    return undefined
  }
  if (entry.node.size > SYSTEM_MAX_BYTES) {
    report('error', 'system-invalid', SYSTEM_PATH, `${entry.node.size} bytes, at most ${SYSTEM_MAX_BYTES} are read`)
    return undefined
  }
  let value: unknown
  try {
    value = parseStrictJson(await tree.readSmall(entry.node, SYSTEM_MAX_BYTES), { maxBytes: SYSTEM_MAX_BYTES })
  } catch (error) {
    report('error', 'system-invalid', SYSTEM_PATH, error instanceof Error ? error.message : String(error))
    return undefined
  }
  const checked = checkSystem(value)
  if ('system' in checked) {
    if (checked.system.development)
      report(
        'warning',
        'development',
        SYSTEM_PATH,
        "a development release: 'bistable unlock' makes /usr writable; do not ship it",
      )
    // The kernel's own default, and the bootloader's panic=5 stands in front: the last one counts.
    if (/^panic=0*$/.test(checked.system.kernelArgs.findLast((arg) => arg.startsWith('panic=')) ?? ''))
      report(
        'error',
        'panic-halts',
        SYSTEM_PATH,
        'panic=0: a kernel that panicked would stand still, and no try would end',
      )
    return checked.system
  }
  for (const problem of checked.problems) report('error', 'system-invalid', SYSTEM_PATH, problem)
  return undefined
}

/** Checks that root.json is a root statement of this product, signed by a threshold of its own keys. */
export async function lintRoot(
  tree: MergedTree,
  product: string | undefined,
  report: Report,
): Promise<Root | undefined> {
  const entry = tree.resolve(ROOT_PATH)
  if (!isFile(entry)) {
    report('error', 'root-missing', ROOT_PATH, 'missing; it is what devices trust first')
    return undefined
  }
  try {
    // readSmall refuses more than an envelope's bytes; the walk checks type, form and the threshold of its own keys.
    const { current } = trustAnchor(await tree.readSmall(entry.node, MAX_ENVELOPE_BYTES))
    if (product !== undefined && current.product !== product)
      report('error', 'root-product', ROOT_PATH, `it is for product ${current.product}, system.json says ${product}`)
    return current
  } catch (error) {
    report('error', 'root-invalid', ROOT_PATH, error instanceof Error ? error.message : String(error))
    return undefined
  }
}
