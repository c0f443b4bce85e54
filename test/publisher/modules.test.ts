import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { describe, expect, it } from 'vitest'
import { readModule } from '../../publisher/lint/module-file.ts'
import { lintModules } from '../../publisher/lint/modules.ts'
import type { Problem } from '../../publisher/lint/report.ts'
import { debianKernel } from '../helpers/kernel.ts'
import { memoryTree, type Spec } from './memory-tree.ts'

// Modules of a real Debian kernel, altered and moved as vendors' drivers stand in images.

const { root, release } = debianKernel()
const folder = `lib/modules/${release}`
const bytesOf = (path: string) => readFileSync(join(root, folder, path))
const vsock = bytesOf('kernel/net/vmw_vsock/vsock.ko')
const signatureAt = vsock.length - vsock.readUInt32BE(vsock.length - 28 - 4) - 12 - 28
const unsigned = vsock.subarray(0, signatureAt)

/** The same file for another kernel: one byte of its vermagic. */
function altered(bytes: Buffer, from: string, to: string): Buffer {
  const copy = Buffer.from(bytes)
  const at = copy.indexOf(Buffer.from(`vermagic=${from}`))
  if (at < 0 || from.length !== to.length) throw new Error('not there')
  copy.write(to, at + 'vermagic='.length, 'latin1')
  return copy
}

async function lint(files: Record<string, Spec>, secureBoot = false): Promise<string[]> {
  const tree = memoryTree({
    [`${folder}/modules.order`]: bytesOf('modules.order').toString(),
    [`${folder}/modules.dep`]: 'kernel/net/vmw_vsock/vsock.ko:\n',
    [`${folder}/modules.builtin`]: '',
    [`${folder}/kernel/net/vmw_vsock/vsock.ko`]: vsock,
    ...Object.fromEntries(
      Object.entries(files).map(([path, spec]) => [path.startsWith('lib/') ? path : `${folder}/${path}`, spec]),
    ),
  })
  const problems: Problem[] = []
  const report = (severity: Problem['severity'], id: string, path: string, sentence: string) =>
    problems.push({ severity, id, path, sentence })
  await lintModules(tree, { version: release, needed: ['vsock'], secureBoot }, report)
  return problems.map(
    ({ severity, id, path, sentence }) => `${severity} ${id} ${path.replace(folder, 'M')} ${sentence}`,
  )
}
const xz = (bytes: Uint8Array) => execFileSync('xz', ['--stdout', '-1'], { input: bytes })
const zst = (bytes: Uint8Array) => {
  // The program writes the size into the frame only when it knows it.
  return execFileSync('zstd', ['--stdout', '-1', `--stream-size=${bytes.length}`], { input: bytes })
}

describe('what a real module says of itself', () => {
  it('that need one another by the thousand are counted before one is read', async () => {
    // Other names of one and the same file.
    const names = Array.from({ length: 1100 }, (_, n) => `kernel/${'./'.repeat(n)}net/vmw_vsock/vsock.ko`)
    expect(await lint({ 'modules.dep': `kernel/net/vmw_vsock/vsock.ko: ${names.join(' ')}\n` })).toEqual([
      'error modules-table /M/modules.dep 1100 modules to start with, at most 1024 are read',
    ])
  })

  it('agrees with modinfo', () => {
    const facts = readModule(vsock)
    const path = join(root, folder, 'kernel/net/vmw_vsock/vsock.ko')
    const modinfo = (field: string) => execFileSync('/sbin/modinfo', ['-F', field, path], { encoding: 'utf8' }).trim()
    expect(facts.vermagic?.trim()).toBe(modinfo('vermagic'))
    expect(facts.inTree).toBe(modinfo('intree') === 'Y')
    expect(facts.signed).toBe(modinfo('sig_id') === 'PKCS#7')
    expect(facts.machine).toBe(62)
    expect(readModule(unsigned)).toMatchObject({ signed: false, vermagic: facts.vermagic })
  })

  it('is refused when it is cut short, or no module', () => {
    expect(() => readModule(Buffer.alloc(100))).toThrow('not an ELF file')
    for (const length of [40, 64, 1000, signatureAt - 64])
      expect(() => readModule(vsock.subarray(0, length))).toThrow(RangeError)
  })
})

describe('modules that were not built with the kernel', () => {
  const other = release.replace('6.', '7.')
  const wrong = altered(unsigned, release, other)

  it('that fit are fine, in every compression', async () => {
    const files = {
      'updates/dkms/one.ko': vsock,
      'extra/two.ko.xz': xz(vsock),
      'updates/three.ko.zst': zst(vsock),
      'updates/four.ko.gz': gzipSync(vsock),
    }
    expect(await lint(files)).toEqual([])
    expect(await lint(files, true)).toEqual([])
  })

  it('of another kernel are named, in every compression', async () => {
    const said = await lint({
      'updates/dkms/one.ko': wrong,
      'extra/two.ko.xz': xz(wrong),
      'updates/three.ko.zst': zst(wrong),
      'updates/four.ko.gz': gzipSync(wrong),
    })
    const each = (path: string) => `error module-vermagic /M/${path} built for kernel ${other}, not for ${release}`
    expect(said.sort()).toEqual(
      ['extra/two.ko.xz', 'updates/dkms/one.ko', 'updates/four.ko.gz', 'updates/three.ko.zst'].map(each),
    )
  })

  it('of another build of the same version are named too', async () => {
    const flags = readModule(vsock).vermagic ?? ''
    const changed = altered(vsock, flags, flags.replace('SMP', 'UPX'))
    expect(await lint({ 'updates/one.ko': changed })).toEqual([
      expect.stringContaining(`error module-vermagic /M/updates/one.ko built with '${release} UPX`),
    ])
  })

  it('without a signature do not go with Secure Boot', async () => {
    expect(await lint({ 'updates/one.ko': unsigned })).toEqual([])
    expect(await lint({ 'updates/one.ko': unsigned }, true)).toEqual([
      expect.stringContaining('error module-unsigned /M/updates/one.ko'),
    ])
    // The kernel's own look at the end of the file is not fooled by the words alone.
    const pretended = Buffer.concat([unsigned, Buffer.alloc(12), vsock.subarray(-28)])
    expect(await lint({ 'updates/one.ko': pretended }, true)).toHaveLength(1)
  })

  it('for another processor, damaged, or for a kernel that is not here', async () => {
    const arm = Buffer.from(vsock)
    arm.writeUInt16LE(183, 18)
    expect(await lint({ 'updates/one.ko': arm })).toEqual([expect.stringContaining('module-machine /M/updates/one.ko')])
    expect(await lint({ 'updates/one.ko.xz': Buffer.from('not xz') })).toEqual([
      expect.stringContaining('module-damaged /M/updates/one.ko.xz'),
    ])
    expect(await lint({ [`lib/modules/${other}/updates/one.ko`]: vsock })).toEqual([
      expect.stringContaining(`warning modules-other-kernel /lib/modules/${other}`),
    ])
  })
})
