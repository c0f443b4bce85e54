import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { link, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { type Measured, measure, tool } from './measure.ts'

/** SWUpdate's raw handler writing the same two images: one program, no service. */

export interface Swupdate {
  install(): Promise<Measured>
  /** What is installed, for taking it out of the page cache. */
  readonly file: string
}

type Images = Readonly<Record<'boot' | 'rootfs', string>>

/**
 * A signed update of two images that go straight to their slots, checked while they are written. SWUpdate leaves flushing to
 * the kernel, so a `sync` of the slots follows and counts.
 * @returns undefined where SWUpdate is not installed: Debian's package starts a service, so nothing here installs it
 */
export async function makeSwupdate(folder: string, slot: Images, images: Images): Promise<Swupdate | undefined> {
  const there = await tool('swupdate', ['--version']).catch(() => undefined)
  if (there === undefined) return undefined
  await mkdir(folder)
  const at = (name: string) => join(folder, name)
  const parts: string[] = []
  for (const name of ['rootfs', 'boot'] as const) {
    await link(images[name], at(`${name}.img`))
    const digest = createHash('sha256')
    await pipeline(createReadStream(images[name]), digest)
    const place = `filename = "${name}.img"; device = "${slot[name]}"; type = "raw"; installed-directly = true;`
    parts.push(`    { ${place} sha256 = "${digest.digest('hex')}"; }`)
  }
  const head = 'version = "1";\n  hardware-compatibility: [ "1.0" ];'
  await writeFile(at('sw-description'), `software = {\n  ${head}\n  images: (\n${parts.join(',\n')}\n  );\n}\n`)
  // biome-ignore format: option and value stand together
  await tool('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', at('key.pem'), '-out', at('cert.pem'),
    '-days', '2', '-subj', '/CN=bench', '-addext', 'extendedKeyUsage=emailProtection'])
  // biome-ignore format: option and value stand together
  await tool('openssl', ['cms', '-sign', '-in', at('sw-description'), '-out', at('sw-description.sig'),
    '-signer', at('cert.pem'), '-inkey', at('key.pem'), '-outform', 'DER', '-nosmimecap', '-binary'])
  const members = 'sw-description\\nsw-description.sig\\nrootfs.img\\nboot.img\\n'
  await tool('sh', ['-c', `printf '${members}' | cpio --quiet -o -H crc > bench.swu`], { cwd: folder })
  const file = at('bench.swu')
  const options = `-k ${at('cert.pem')} -H bench:1.0 -M -m`
  const command = `swupdate ${options} -i ${file} && sync ${slot.rootfs} ${slot.boot}`
  return { file, install: () => measure('sh', ['-c', command], { cwd: folder, env: { TMPDIR: folder } }) }
}
