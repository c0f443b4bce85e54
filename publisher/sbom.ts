import { createHash } from 'node:crypto'
import { formatNumber } from '../bundle/fields.ts'
import type { Package, PackageList } from '../bundle/packages.ts'
import type { ReleaseNumber } from '../bundle/types.ts'

/**
 * The bill of materials: CycloneDX 1.6 as JSON (cyclonedx.org/docs/1.6/json), the packages that the image's own databases
 * list. Same image, same bytes: its serial number follows from its content, its time is the release's.
 */

export interface SbomFacts {
  readonly product: string
  readonly version: string
  readonly number: ReleaseNumber
  readonly hardware: readonly string[]
  /** Root hash of the root file system that the packages are in. */
  readonly rootfsRoot: string
  /** "2026-11-21T00:00:00Z" */
  readonly issued: string
  /** Of bistable. */
  readonly toolVersion: string
  /** From os-release. */
  readonly distribution: Distribution | undefined
}

export interface Distribution {
  /** "debian" */
  readonly id: string
  /** "12" */
  readonly version: string | undefined
  /** "Debian GNU/Linux 12 (bookworm)" */
  readonly name: string | undefined
}

/** The text of the SBOM, ending in a newline. Pure. */
export function makeSbom(list: PackageList, facts: SbomFacts): string {
  const { product, version, number, hardware, rootfsRoot, issued, toolVersion, distribution } = facts
  const ref = `${product}@${formatNumber(number)}`
  const components = [
    ...(distribution === undefined ? [] : [systemComponent(distribution)]),
    ...packageComponents(list.packages, distribution),
  ]
  const body = {
    version: 1,
    metadata: {
      timestamp: issued,
      tools: { components: [{ type: 'application', name: 'bistable', version: toolVersion }] },
      component: {
        type: 'firmware',
        'bom-ref': ref,
        name: product,
        version,
        properties: [
          property('release', formatNumber(number)),
          ...hardware.map((name) => property('hardware', name)),
          property('rootfs-root', rootfsRoot),
        ],
      },
      ...(list.unread.length === 0
        ? {}
        : { properties: list.unread.map((path) => property('packages-unread', `/${path}`)) }),
    },
    components,
    dependencies: [{ ref, dependsOn: components.map((component) => component['bom-ref']) }],
    compositions: [{ aggregate: list.unread.length === 0 ? 'unknown' : 'incomplete', assemblies: [ref] }],
  }
  const head = { bomFormat: 'CycloneDX', specVersion: '1.6', serialNumber: serialOf(JSON.stringify(body)) }
  return `${JSON.stringify({ ...head, ...body }, undefined, 1)}\n`
}

const property = (name: string, value: string) => ({ name: `bistable:${name}`, value })

function systemComponent({ id, version, name }: Distribution) {
  return {
    type: 'operating-system',
    'bom-ref': `os:${id}${version === undefined ? '' : `@${version}`}`,
    name: id,
    ...(version === undefined ? {} : { version }),
    ...(name === undefined ? {} : { description: name }),
  }
}

function packageComponents(packages: readonly Package[], distribution: Distribution | undefined) {
  // A package that two databases list is one component: references must be distinct.
  const byRef = new Map<string, ReturnType<typeof packageComponent>>()
  for (const one of packages) {
    const component = packageComponent(one, distribution)
    if (!byRef.has(component['bom-ref'])) byRef.set(component['bom-ref'], component)
  }
  return [...byRef.values()]
}

function packageComponent(one: Package, distribution: Distribution | undefined) {
  const purl = packageUrl(one, distribution)
  return {
    type: 'library',
    'bom-ref': purl,
    name: one.name,
    version: one.version,
    ...(one.license === undefined ? {} : { licenses: [{ license: { name: one.license } }] }),
    purl,
    ...(one.source === undefined ? {} : { properties: [property('source', one.source)] }),
  }
}

const TYPES = { dpkg: 'deb', apk: 'apk', rpm: 'rpm' } as const
/** What a database does not name itself is named after the distribution that it comes from first of all. */
const NAMESPACES = { dpkg: 'debian', apk: 'alpine', rpm: 'fedora' } as const

/** The package URL (github.com/package-url/purl-spec): what scanners look packages up by. Pure. */
export function packageUrl(one: Package, distribution: Distribution | undefined): string {
  const namespace = distribution?.id ?? NAMESPACES[one.manager]
  // An rpm's epoch is a qualifier; in a deb it is a part of the version.
  const [, epoch, bare] = one.manager === 'rpm' ? (/^(?:([0-9]+):)?(.*)$/.exec(one.version) ?? []) : []
  const distro =
    distribution === undefined
      ? undefined
      : distribution.version === undefined
        ? distribution.id
        : `${distribution.id}-${distribution.version}`
  const qualifiers = Object.entries({ arch: one.arch, distro, epoch }).flatMap(([key, value]) =>
    value === undefined ? [] : [`${key}=${encode(value)}`],
  )
  const name = one.manager === 'rpm' ? one.name : one.name.toLowerCase()
  return `pkg:${TYPES[one.manager]}/${encode(namespace)}/${encode(name)}@${encode(bare ?? one.version)}?${qualifiers.join('&')}`
}

/** Percent-encoding of the purl specification: unlike in other URLs a colon stays. */
function encode(text: string): string {
  return encodeURIComponent(text)
    .replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`)
    .replaceAll('%3A', ':')
}

/** A UUID of version 8 (RFC 9562: of our own making) from the content. */
function serialOf(content: string): string {
  const hash = createHash('sha256').update(content).digest()
  hash[6] = ((hash[6] ?? 0) & 0x0f) | 0x80
  hash[8] = ((hash[8] ?? 0) & 0x3f) | 0x80
  const hex = hash.toString('hex')
  return `urn:uuid:${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20, 32)}`
}

/**
 * ID, VERSION_ID and PRETTY_NAME of an os-release file (os-release(5)); undefined when it names no plain ID. Pure.
 */
export function parseOsRelease(text: string): Distribution | undefined {
  const fields = new Map<string, string>()
  for (const line of text.split('\n')) {
    // Trimmed first: two patterns that both take blanks try every place between them.
    const [, key, quoted, plain] = /^([A-Z_]+)=(?:"((?:[^"\\]|\\.)*)"|'?([^'"]*)'?)$/.exec(line.trimEnd()) ?? []
    if (key !== undefined) fields.set(key, (quoted ?? plain ?? '').replace(/\\(.)/g, '$1'))
  }
  const id = fields.get('ID') ?? ''
  if (!/^[a-z0-9._-]{1,64}$/.test(id)) return undefined
  const plain = (key: string, form: RegExp): string | undefined => {
    const value = fields.get(key) ?? ''
    return form.test(value) ? value : undefined
  }
  return { id, version: plain('VERSION_ID', /^[A-Za-z0-9._-]{1,64}$/), name: plain('PRETTY_NAME', /^[ -~]{1,256}$/) }
}
