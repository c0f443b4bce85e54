import { createHash } from 'node:crypto'
import { MiB, type Sha256 } from '../base/bytes.ts'
import { IN_TOTO_STATEMENT, MAX_PROVENANCE, provenanceFault, SLSA_PROVENANCE } from '../bundle/provenance.ts'
import { openImageFile } from '../bundle/squashfs/reader.ts'
import { createTreeHasher } from '../bundle/tree.ts'
import type { AttachmentEntry, ImageName, ReleaseStatement } from '../bundle/types.ts'
import { publisherErrors } from './errors.ts'

/** What went into a build and what came out, for those who ask later (docs/format.md, "Provenance"). */

/** Where the input came from: no path or address of this machine, so that the same input gives the same bytes anywhere. */
export interface BuildSource {
  /** Digest of the image manifest; undefined for a plain tar of a root file system. */
  readonly image?: Sha256
  /** A registry's name for it ("docker://…"); undefined for what lay on this machine. */
  readonly reference?: string
  /** Lowest first; digests as stored and as unpacked. */
  readonly layers: readonly { readonly digest: Sha256; readonly diffId: Sha256 }[]
}

export interface BuiltImage {
  readonly name: ImageName
  readonly length: number
  readonly root: Sha256
  readonly sha256: Sha256
}

export interface ProvenanceFacts {
  readonly images: readonly BuiltImage[]
  readonly source: BuildSource | undefined
  /** Files that the build added to the image: absolute path and digest. */
  readonly added: readonly { readonly path: string; readonly sha256: Sha256 }[]
  /** What the person or pipeline that ran the build chose. */
  readonly parameters: Readonly<Record<string, unknown>>
  readonly builder: BuilderFacts
  /** Programs and libraries that made the bytes, and their versions. */
  readonly tools: Readonly<Record<string, string>>
}

export interface BuilderFacts {
  /** A URI that names who built and is answerable for it. */
  readonly id: string
  /** The run, as the pipeline names it; no clock and no random number stands in for it. */
  readonly invocation?: string
}

export const BUILD_TYPE = 'urn:x-bistable:build:1'
export const UNNAMED_BUILDER = 'urn:x-bistable:builder:unnamed'

/** The text of the provenance, ending in a newline. Pure; says nothing of the time but what the parameters do. */
export function makeProvenance(facts: ProvenanceFacts): string {
  const { images, source, added, parameters, builder, tools } = facts
  const statement = {
    _type: IN_TOTO_STATEMENT,
    subject: images.map(({ name, length, root, sha256 }) => ({
      name,
      digest: { sha256 },
      annotations: { length, verityRoot: root },
    })),
    predicateType: SLSA_PROVENANCE,
    predicate: {
      buildDefinition: {
        buildType: BUILD_TYPE,
        externalParameters: parameters,
        internalParameters: {},
        resolvedDependencies: [...sourceDependencies(source), ...added.map(addedDependency)],
      },
      runDetails: {
        builder: { id: builder.id, version: tools },
        ...(builder.invocation === undefined ? {} : { metadata: { invocationId: builder.invocation } }),
      },
    },
  }
  return `${JSON.stringify(statement, undefined, 1)}\n`
}

function sourceDependencies(source: BuildSource | undefined) {
  if (source === undefined) return []
  const { image, reference, layers } = source
  return [
    ...(image === undefined
      ? []
      : [{ name: 'image', ...(reference === undefined ? {} : { uri: reference }), digest: { sha256: image } }]),
    ...layers.map(({ digest, diffId }, i) => ({
      name: `layer ${i + 1}`,
      digest: { sha256: digest },
      annotations: { diffId: `sha256:${diffId}` },
    })),
  ]
}

const addedDependency = ({ path, sha256 }: { path: string; sha256: Sha256 }) => ({
  name: `added ${path}`,
  digest: { sha256 },
})

/** One pass over an image file: its SHA-256 and the root of its tree. @throws SOURCE_* */
export async function digestImage(name: ImageName, path: string): Promise<BuiltImage> {
  const file = await openImageFile(path)
  try {
    const tree = createTreeHasher({ onPage: () => undefined })
    const hash = createHash('sha256')
    for (let at = 0; at < file.size; at += MiB) {
      const piece = await file.read(at, Math.min(MiB, file.size - at))
      tree.update(piece)
      hash.update(piece)
    }
    return { name, length: file.size, root: tree.finish().root, sha256: hash.digest('hex') as Sha256 }
  } finally {
    await file.close()
  }
}

/**
 * Refuses a release whose provenance is about other images than its statement: they were changed between the build and
 * the signature. A release without provenance passes.
 * @param read gives the unpacked attachment, checked against the statement
 * @throws PROVENANCE_DIFFERS, and what `read` throws
 */
export async function checkProvenance(
  release: ReleaseStatement,
  read: (entry: AttachmentEntry) => AsyncIterable<Uint8Array>,
): Promise<void> {
  const entry = release.attachments.find(({ name }) => name === 'provenance')
  if (entry === undefined) return
  if (entry.unpacked > MAX_PROVENANCE)
    throw publisherErrors.PROVENANCE_DIFFERS(`it has ${entry.unpacked} bytes, at most ${MAX_PROVENANCE} are read`)
  const pieces: Uint8Array[] = []
  for await (const piece of read(entry)) pieces.push(piece)
  const fault = provenanceFault(Buffer.concat(pieces), release)
  if (fault !== undefined) throw publisherErrors.PROVENANCE_DIFFERS(fault)
}
