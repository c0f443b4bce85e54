import { join } from 'node:path'
import { nodeFiles } from '../base/durable.ts'
import { openBuild } from '../bundle/build.ts'
import { bundleErrors } from '../bundle/errors.ts'
import { fileSource } from '../bundle/file-source.ts'
import type { BundleHead } from '../bundle/types.ts'
import { unpackAttachment, verifyBundle } from '../bundle/verify.ts'
import { checkParts, writeBundle } from '../bundle/writer.ts'
import { MAX_ENVELOPE_BYTES } from '../keys/dsse.ts'
import { walkRoots } from '../keys/root.ts'
import { checkProvenance } from './provenance.ts'

/**
 * Puts a build folder, its signed envelope (release.json) and a root chain into a bundle, then reads the whole bundle
 * back as a device would.
 * @throws BUILD_FOLDER, PROVENANCE_DIFFERS, the errors of `writeBundle` and `verifyBundle`
 */
export async function packBundle(
  folder: string,
  roots: readonly Uint8Array[],
  output: string,
  options: { readonly signal?: AbortSignal; readonly assignment?: Uint8Array } = {},
): Promise<BundleHead> {
  const envelope = await nodeFiles.read(join(folder, 'release.json'), MAX_ENVELOPE_BYTES)
  if (envelope === undefined)
    throw bundleErrors.BUILD_FOLDER(`${folder} has no release.json: it is not signed yet`, {
      next: "Sign it with 'bistable sign'.",
    })
  const { parts, statement } = await openBuild(folder)
  checkParts(statement, parts)
  await checkProvenance(statement, (entry) => {
    const part = parts.attachments.find(({ name }) => name === entry.name)
    return unpackAttachment(entry, part?.stored ?? new Uint8Array())
  })
  const { assignment } = options
  await writeBundle({ ...parts, roots, envelope, ...(assignment === undefined ? {} : { assignment }) }, output, options)
  const source = await fileSource(output)
  try {
    return await verifyBundle(source, { trusted: walkRoots(roots) }, options)
  } finally {
    await source.close()
  }
}
