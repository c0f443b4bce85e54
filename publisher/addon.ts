import { createReadStream } from 'node:fs'
import { appendFile, chmod, cp, lstat, mkdir, mkdtemp, readdir, realpath, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isSha256, type Sha256 } from '../base/bytes.ts'
import { nodeFiles } from '../base/durable.ts'
import { systemReason } from '../base/errors.ts'
import { type AddonStatement, encodeAddon, MIN_ADDON_BYTES, parseAddon } from '../bundle/addon.ts'
import { addonErrors } from '../bundle/addon-errors.ts'
import { checkAddonLayout, EXTENSION_RELEASE, extensionRelease, openAddon, writeAddon } from '../bundle/addon-file.ts'
import { rootVersion } from '../bundle/authentic.ts'
import { sha256 } from '../bundle/digest.ts'
import { fileSource } from '../bundle/file-source.ts'
import { inspectBundle } from '../bundle/reader.ts'
import { openSquashfs } from '../bundle/squashfs/image.ts'
import { openImageFile } from '../bundle/squashfs/reader.ts'
import { BLOCK, createTreeHasher } from '../bundle/tree.ts'
import { MAX_ENVELOPE_BYTES, MAX_SIGNED_BYTES } from '../keys/dsse.ts'
import { walkRoots } from '../keys/root.ts'
import { lackingLibraries, librariesOfBundle } from './addon-libraries.ts'
import { runTool } from './tools.ts'

/**
 * Add-ons on the publisher's side, in three steps as for releases: `build` sees no key, `sign` sees only the statement,
 * `pack` puts both and the root chain into one file. The build folder holds `statement.json` and `addon.squashfs`.
 */

export interface AddonRequest extends Omit<AddonStatement, 'type' | 'image' | 'product' | 'bases' | 'rootVersion'> {
  /** A folder with usr/ in it. */
  readonly folder: string
  /** Bundles, or digests of release statements. */
  readonly bases: readonly string[]
  /** Needed where only digests are given. */
  readonly product?: string | undefined
  readonly rootVersion?: number | undefined
}

const IMAGE = 'addon.squashfs'
/** Of what an add-on lacks. */
const MOST_NAMED = 5
const STATEMENT = 'statement.json'
/** What `sign` writes beside the statement of a build folder. */
const SIGNED = 'release.json'

/**
 * Builds the image and the unsigned statement into the new folder `output`; when it fails, the folder is removed.
 * @throws ADDON_LAYOUT, ADDON_LIBRARY, ADDON_INVALID, TOOL_*, and the errors of reading a bundle
 */
export async function buildAddon(request: AddonRequest, output: string, signal?: AbortSignal): Promise<AddonStatement> {
  const { folder, name, kind, summary, fixes, issued, expires } = request
  const found = await Promise.all(request.bases.map((base) => readBase(base, signal)))
  const products = new Set([...found.map(({ product }) => product), request.product].filter((p) => p !== undefined))
  const [product, second] = products
  if (product === undefined) throw addonErrors.ADDON_INVALID('no product: give --product, or a bundle as --base')
  if (second !== undefined) throw addonErrors.ADDON_INVALID(`two products: ${[...products].join(', ')}`)
  const rootVersion = request.rootVersion ?? Math.max(1, ...found.map((base) => base.rootVersion ?? 1))
  const top = await readdir(folder).catch((cause: unknown) => {
    throw addonErrors.ADDON_LAYOUT(`${folder}: ${systemReason(cause)}`, { cause })
  })
  const stray = top.find((entry) => entry !== 'usr')
  if (stray !== undefined || top.length === 0)
    throw addonErrors.ADDON_LAYOUT(`${folder} holds ${stray ?? 'nothing'}, wanted usr/ only`)
  const bases = found.map(({ digest }) => digest)
  const facts = { type: 'addon', product, name, kind, summary, bases, fixes, rootVersion, issued, expires } as const
  // Before the name becomes a part of paths: its form is checked by the statement's rules.
  encodeAddon({ ...facts, image: { length: MIN_ADDON_BYTES, root: sha256(new Uint8Array()) } })
  await mkdir(output)
  try {
    return await buildInto(output, folder, facts, found, signal)
  } catch (error) {
    await rm(output, { recursive: true, force: true })
    throw error
  }
}

async function buildInto(
  output: string,
  folder: string,
  facts: Omit<AddonStatement, 'image'>,
  found: readonly Base[],
  signal: AbortSignal | undefined,
): Promise<AddonStatement> {
  const { name, issued } = facts
  const image = join(output, IMAGE)
  const scratch = await mkdtemp(join(tmpdir(), 'bistable-addon-'))
  try {
    const tree = join(scratch, 'tree')
    // A link to the folder would be copied as one, and what follows be done to the folder itself.
    await cp(await realpath(folder), tree, { recursive: true, verbatimSymlinks: true, preserveTimestamps: true })
    await writeMarker(tree, extensionRelease(name))
    await openFolders(tree)
    const time = String(Math.floor(Date.parse(issued) / 1000))
    // biome-ignore format: option and value stand together
    await runTool('mksquashfs', [tree, image, '-comp', 'zstd', '-all-root', '-no-xattrs', '-exit-on-error',
      '-no-progress', '-quiet'], { env: { SOURCE_DATE_EPOCH: time }, ...(signal && { signal }) })
  } finally {
    await rm(scratch, { recursive: true, force: true })
  }
  const { size } = await stat(image)
  const length = Math.max(MIN_ADDON_BYTES, Math.ceil(size / BLOCK) * BLOCK)
  await appendFile(image, Buffer.alloc(length - size))
  const opened = await openImageFile(image)
  try {
    const addon = await openSquashfs(opened, opened.size)
    await checkAddonLayout(addon, name)
    // Of a release that is only named, nothing is known.
    const releases = found.flatMap(({ digest, libraries }) => (libraries ? [{ name: digest, libraries }] : []))
    const lacking = await lackingLibraries(addon, releases)
    if (lacking.length > 0)
      throw addonErrors.ADDON_LIBRARY(lacking.slice(0, MOST_NAMED).join('; '), { details: { lacking } })
  } finally {
    await opened.close()
  }
  const tree = createTreeHasher()
  for await (const piece of createReadStream(image) as AsyncIterable<Buffer>) tree.update(piece)
  const { root } = tree.finish()
  const payload = encodeAddon({ ...facts, image: { length, root } })
  await writeFile(join(output, STATEMENT), payload)
  return parseAddon(payload)
}

/** Through no link of the tree, which could lead anywhere on this machine. @throws ADDON_LAYOUT */
async function writeMarker(tree: string, path: string): Promise<void> {
  const parts = path.split('/')
  for (let n = 1; n < parts.length; n++) {
    const folder = parts.slice(0, n).join('/')
    const about = await lstat(join(tree, folder)).catch(() => undefined)
    if (about === undefined) await mkdir(join(tree, folder))
    else if (!about.isDirectory()) throw addonErrors.ADDON_LAYOUT(`/${folder}: a link or file in the place of a folder`)
  }
  const marker = join(tree, path)
  await rm(marker, { recursive: true, force: true })
  await writeFile(marker, EXTENSION_RELEASE, { flag: 'wx' })
  await chmod(marker, 0o644)
}

/**
 * Lets everybody into all folders. On a device a folder of an add-on stands in the place of the system's own: one that was made
 * under a narrow umask would close /usr to all but root.
 */
async function openFolders(folder: string): Promise<void> {
  await chmod(folder, ((await lstat(folder)).mode & 0o7777) | 0o755)
  for (const entry of await readdir(folder, { withFileTypes: true }))
    if (entry.isDirectory()) await openFolders(join(folder, entry.name))
}

interface Base {
  readonly digest: Sha256
  /** Names of its shared libraries. */
  readonly libraries?: ReadonlySet<string>
  readonly product?: string
  readonly rootVersion?: number
}

async function readBase(base: string, signal?: AbortSignal): Promise<Base> {
  if (isSha256(base)) return { digest: base }
  const source = await fileSource(base)
  try {
    const { head } = await inspectBundle(source, signal === undefined ? {} : { signal })
    const { digest, statement, trusted } = head
    const libraries = await librariesOfBundle(source, head)
    return { digest, libraries, product: statement.product, rootVersion: trusted.current.version }
  } finally {
    await source.close()
  }
}

/**
 * Packs a signed build folder into a new file, and reads that back as a device would.
 * @throws ADDON_*, FILE_*, the errors of keys/ when too few have signed
 */
export async function packAddon(folder: string, roots: readonly Uint8Array[], output: string): Promise<AddonStatement> {
  const read = async (name: string, limit: number) => {
    const bytes = await nodeFiles.read(join(folder, name), limit)
    if (bytes === undefined)
      throw addonErrors.ADDON_FORMAT(`${folder} has no ${name}`, {
        next: name === SIGNED ? "Sign it with 'bistable addon sign'." : "Make it with 'bistable addon build'.",
      })
    return bytes
  }
  const payload = await read(STATEMENT, MAX_SIGNED_BYTES)
  const envelope = await read(SIGNED, MAX_ENVELOPE_BYTES)
  const { image } = parseAddon(payload)
  const trusted = walkRoots(roots)
  const first = roots[0] === undefined ? 1 : rootVersion(roots[0], trusted)
  await writeAddon(output, { roots, first, envelope, image: join(folder, IMAGE), length: image.length })
  const source = await fileSource(output)
  try {
    const head = await openAddon(source, trusted)
    if (head.digest !== sha256(payload))
      throw addonErrors.ADDON_CONTENT(`${SIGNED} is of another statement than ${STATEMENT}`)
    const tree = createTreeHasher()
    for await (const piece of source.read(head.offset, image.length)) tree.update(piece)
    if (tree.finish().root !== image.root) throw addonErrors.ADDON_CONTENT(`${IMAGE} is not the image of ${STATEMENT}`)
    return head.statement
  } catch (error) {
    await rm(output, { force: true })
    throw error
  } finally {
    await source.close()
  }
}
