import { humanBytes } from '../base/bytes.ts'
import { cliErrors, type Invocation, requiredOption, stringOption, type Verb } from '../base/cli.ts'
import { printable } from '../base/printable.ts'
import { type ByteSource, readExactly } from '../base/source.ts'
import { decodeEnvelope } from '../keys/dsse.ts'
import { trustAnchor } from '../keys/root.ts'
import { verifyEnvelope } from '../keys/threshold.ts'
import type { AssignmentStatement } from './assignment.ts'
import { rootVersion } from './authentic.ts'
import { bundleErrors } from './errors.ts'
import { formatNumber } from './fields.ts'
import { fileSource } from './file-source.ts'
import { MAX_ENVELOPE_MEMBER } from './layout.ts'
import { inspectBundle, openBundle } from './reader.ts'
import { unknownReleaseFields } from './release.ts'
import { ATTACHMENT_NAMES, type BundleHead, type ChunkIndex } from './types.ts'
import { readAttachment, verifyBundle } from './verify.ts'

export const bundleVerbs: readonly Verb[] = [
  {
    name: 'inspect',
    usage: 'inspect FILE [--sbom|--provenance|--inventory] [--root root.json]',
    summary: 'Show what a bundle says, or print one of its attachments. Without --root no key of yours is asked.',
    options: {
      sbom: { type: 'boolean', help: 'print the bill of materials (CycloneDX JSON)' },
      provenance: { type: 'boolean', help: 'print the provenance (in-toto, SLSA)' },
      inventory: { type: 'boolean', help: 'print the inventory, one JSON object a line' },
      root: { type: 'string', value: 'FILE', help: 'a root statement you trust: refuse what it does not vouch for' },
    },
    run: inspect,
  },
  {
    name: 'verify',
    usage: 'verify FILE --root root.json',
    summary: 'Verify every byte of a bundle under a root statement that you trust.',
    options: { root: { type: 'string', value: 'FILE', help: 'the root statement you trust (an envelope)' } },
    run: verify,
  },
]

async function inspect(call: Invocation): Promise<number> {
  const [attachment, ...more] = ATTACHMENT_NAMES.filter((name) => call.options[name] === true)
  if (more.length > 0) throw cliErrors.USAGE(`--${attachment} and --${more[0]} exclude one another`)
  return await withFile(onlyFile(call), async (source) => {
    const root = stringOption(call, 'root')
    const authenticated = root !== undefined
    // Read once: on a second read the file may be another one.
    const head =
      root === undefined
        ? (await inspectBundle(source, { signal: call.signal })).head
        : await openBundle(source, { trusted: trustAnchor(await readSmall(root)) }, { signal: call.signal })
    if (attachment !== undefined) {
      await printLines(readAttachment(source, head, attachment, { signal: call.signal }), call.terminal.out)
      return 0
    }
    const facts = factsOf(head)
    if (call.json) call.terminal.out(JSON.stringify({ ok: true, authenticated, ...facts }))
    else for (const line of overview(facts, authenticated)) call.terminal.out(printable(line))
    return 0
  })
}

/** Line by line: an attachment may be larger than what should stand in memory as one text. */
async function printLines(pieces: AsyncIterable<Uint8Array>, out: (line: string) => void): Promise<void> {
  const decoder = new TextDecoder()
  // Of the present line. Joined once: joined at every piece, one long line would be copied again and again.
  let held: string[] = []
  const take = (text: string): void => {
    const [first = '', ...more] = text.split('\n')
    held.push(first)
    for (const line of more) {
      out(held.join(''))
      held = [line]
    }
  }
  for await (const piece of pieces) take(decoder.decode(piece, { stream: true }))
  take(decoder.decode())
  const rest = held.join('')
  if (rest !== '') out(rest)
}

async function verify(call: Invocation): Promise<number> {
  const trusted = trustAnchor(await readSmall(requiredOption(call, 'root')))
  return await withFile(onlyFile(call), async (source) => {
    let told = 0
    const head = await verifyBundle(source, { trusted }, { signal: call.signal, onProgress })
    const { digest, size, statement } = head
    if (call.json) {
      const { product, number, version } = statement
      call.terminal.out(JSON.stringify({ ok: true, digest, size, product, number, version }))
    } else call.terminal.out(`OK ${statement.product} ${formatNumber(statement.number)} ${digest}`)
    return 0

    function onProgress(done: number, total: number): void {
      const tenths = Math.floor((done / total) * 10)
      if (call.json || tenths <= told) return
      told = tenths
      call.terminal.err(`verified ${tenths * 10}% of ${humanBytes(total)}`)
    }
  })
}

function onlyFile(call: Invocation): string {
  const [file, ...more] = call.positionals
  if (file === undefined || more.length > 0) throw cliErrors.USAGE('wanted exactly one FILE')
  return file
}

async function withFile<T>(path: string, use: (source: ByteSource) => Promise<T>): Promise<T> {
  const source = await fileSource(path)
  try {
    return await use(source)
  } finally {
    await source.close()
  }
}

async function readSmall(path: string): Promise<Uint8Array> {
  return await withFile(path, async (source) => {
    if (source.size > MAX_ENVELOPE_MEMBER)
      throw bundleErrors.BUNDLE_TOO_LARGE(
        `${path} has ${source.size} bytes, a root statement at most ${MAX_ENVELOPE_MEMBER}`,
      )
    return await readExactly(source, 0, source.size)
  })
}

function factsOf(head: BundleHead) {
  const { statement, trusted, digest, size, roots, indexes } = head
  const { type: _, images, attachments, ...release } = statement
  const { current } = trusted
  const envelope = decodeEnvelope(head.envelope)
  const first = roots[0] === undefined ? 0 : rootVersion(roots[0], trusted)
  return {
    ...release,
    digest,
    size,
    images: images.map((image) => ({ ...image, chunks: countChunks(indexes[image.name]) })),
    attachments,
    roots: { first, last: first + roots.length - 1 },
    signatures: { by: verifyEnvelope(envelope, 'release', trusted), threshold: current.roles.release.threshold },
    assignment: head.assignment?.statement ?? null,
    ignored: unknownReleaseFields(envelope.payload),
  }
}

function countChunks(index: ChunkIndex): { readonly raw: number; readonly zstd: number } {
  const raw = index.chunks.filter((chunk) => chunk.encoding === 'raw').length
  return { raw, zstd: index.chunks.length - raw }
}

function overview(facts: ReturnType<typeof factsOf>, authenticated: boolean): string[] {
  const { images, attachments, roots, signatures } = facts
  return [
    `product      ${facts.product}`,
    `hardware     ${facts.hardware.join(', ')}`,
    `release      ${formatNumber(facts.number)}  (version ${facts.version}, issued ${facts.issued})`,
    `digest       ${facts.digest}`,
    `security     nothing below ${formatNumber(facts.securityFloor)} boots once this is committed`,
    `size         ${humanBytes(facts.size)} (${facts.size} bytes)`,
    ...images.flatMap(({ name, length, root, data, chunks }) => [
      `image        ${name}: ${humanBytes(length)}, ${humanBytes(data.length)} stored, ${chunks.raw} chunks raw, ${chunks.zstd} zstd`,
      `             root ${root}`,
    ]),
    ...attachments.map(
      ({ name, length, unpacked }) =>
        `attachment   ${name}: ${humanBytes(length)} stored, ${humanBytes(unpacked)} unpacked`,
    ),
    `roots        ${roots.first} to ${roots.last}; the release asks for ${facts.rootVersion} or newer`,
    ...signatures.by.map((key) => `signed by    ${key}`),
    `threshold    ${signatures.threshold} of the release keys`,
    ...(facts.assignment === null ? [] : [assignmentLine(facts.assignment)]),
    ...facts.ignored.map((path) => `ignored      unknown field ${JSON.stringify(path)}`),
    authenticated
      ? 'The root statement given vouches for this. The images were not read: use verify for them.'
      : "NOT AUTHENTICATED: the keys are the bundle's own. Use verify --root for more than a look.",
  ]
}

function assignmentLine({ device, sequence, notBefore, expires, allowDowngrade }: AssignmentStatement): string {
  const from = notBefore === undefined ? '' : `, not before ${notBefore}`
  const to = expires === null ? '' : `, until ${expires}`
  return `assignment   to device ${device}, sequence ${sequence}${from}${to}${allowDowngrade ? ', may go back' : ''}`
}
