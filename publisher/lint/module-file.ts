import { spawnSync } from 'node:child_process'
import { MAX_MODULE, unpackModule } from '../../initramfs/modules.ts'

/**
 * What a kernel module says of itself. Layout: System V gABI (relocatable ELF files); the strings "key=value", each ended
 * by a zero, of section `.modinfo` (Linux, include/linux/moduleparam.h); the signature behind the ELF file (Linux,
 * include/linux/module_signature.h).
 */

export interface ModuleFacts {
  /** "6.1.0-42-amd64 SMP preempt mod_unload modversions " */
  readonly vermagic: string | undefined
  /** Built with the kernel itself. */
  readonly inTree: boolean
  /** e_machine of the ELF header. */
  readonly machine: number
  /** A signature stands behind it. Whose, only the kernel's keys can tell. */
  readonly signed: boolean
}

const MAX_SECTIONS = 65_536
const SHT_NOBITS = 8
const MODINFO = '.modinfo\0'
const SIGNED = Buffer.from('~Module signature appended~\n', 'latin1')
/** struct module_signature: type and lengths, the last one of the signature itself, big-endian. */
const SIGNATURE_INFO = 12
const PKCS7 = 2

/** Reads an uncompressed module, 32 or 64 bits, little-endian. Pure. @throws RangeError when it is no such file */
export function readModule(bytes: Uint8Array): ModuleFacts {
  const file = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (file.length < 64 || file.readUInt32BE(0) !== 0x7f454c46) throw new RangeError('not an ELF file')
  if (file[5] !== 1) throw new RangeError('not little-endian')
  if (file[4] !== 1 && file[4] !== 2) throw new RangeError('neither 32 nor 64 bit')
  const info = modinfo(file, file[4] === 2)
  return {
    vermagic: info.get('vermagic'),
    inTree: info.get('intree') === 'Y',
    machine: file.readUInt16LE(18),
    signed: isSigned(file),
  }
}

/** The first value of each key. */
function modinfo(file: Buffer, wide: boolean): ReadonlyMap<string, string> {
  const word = (at: number): number => (wide ? Number(file.readBigUInt64LE(at)) : file.readUInt32LE(at))
  const table = word(wide ? 40 : 32)
  const size = file.readUInt16LE(wide ? 58 : 46)
  const count = file.readUInt16LE(wide ? 60 : 48)
  if (size !== (wide ? 64 : 40) || count > MAX_SECTIONS) throw new RangeError('no section headers')
  const sections = Array.from({ length: count }, (_, n) => {
    const at = table + n * size
    const [offset, length] = [word(at + (wide ? 24 : 16)), word(at + (wide ? 32 : 20))]
    const name = file.readUInt32LE(at)
    // Without content in the file (.bss) a section says a length all the same.
    if (file.readUInt32LE(at + 4) === SHT_NOBITS) return { name, content: Buffer.alloc(0) }
    if (offset + length > file.length) throw new RangeError('a section lies outside the file')
    return { name, content: file.subarray(offset, offset + length) }
  })
  const names = sections[file.readUInt16LE(wide ? 62 : 50)]?.content ?? Buffer.alloc(0)
  const found = sections.find(({ name }) => names.toString('latin1', name, name + MODINFO.length) === MODINFO)
  if (found === undefined) throw new RangeError('it has no section .modinfo: not a kernel module')
  const info = new Map<string, string>()
  for (const text of found.content.toString('latin1').split('\0')) {
    const cut = text.indexOf('=')
    if (cut > 0 && !info.has(text.slice(0, cut))) info.set(text.slice(0, cut), text.slice(cut + 1))
  }
  return info
}

function isSigned(file: Buffer): boolean {
  if (!file.subarray(-SIGNED.length).equals(SIGNED)) return false
  const at = file.length - SIGNED.length - SIGNATURE_INFO
  if (at < 0 || file[at + 2] !== PKCS7) return false
  const length = file.readUInt32BE(at + 8)
  return length > 0 && length < at
}

/**
 * A module's bytes, unpacked as its name says; xz by the program, where it is installed.
 * @returns undefined when nothing here can unpack it
 * @throws when it is damaged
 */
export function unpackAnyModule(path: string, bytes: Uint8Array): Uint8Array | undefined {
  if (!path.endsWith('.xz')) return unpackModule(path, bytes)
  const limits = ['--memlimit-decompress=256MiB', '--threads=1', '--quiet']
  const { status, stdout, error } = spawnSync('xz', ['--decompress', '--stdout', ...limits], {
    input: bytes,
    maxBuffer: MAX_MODULE,
    stdio: ['pipe', 'pipe', 'ignore'],
  })
  if (error !== undefined && 'code' in error && error.code === 'ENOENT') return undefined
  if (status !== 0 || stdout.length > MAX_MODULE) throw new RangeError('it does not unpack')
  return stdout
}
