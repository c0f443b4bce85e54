/** ELF files as far as our readers look at them. */

const MAGIC = '\x7fELF\x02\x01\x01'
const X86_64 = 62

/** A relocatable kernel module of two sections: .modinfo and the names. */
export function fakeModule(version: string, flags = 'SMP mod_unload ', inTree = true): Uint8Array {
  const info = Buffer.from(`license=GPL\0${inTree ? 'intree=Y\0' : ''}vermagic=${version} ${flags}\0`)
  const names = Buffer.from('\0.modinfo\0.names\0')
  const head = Buffer.alloc(64)
  head.write(MAGIC, 'latin1')
  head.writeUInt16LE(1, 16)
  head.writeUInt16LE(X86_64, 18)
  head.writeBigUInt64LE(BigInt(64 + info.length + names.length), 40)
  head.writeUInt16LE(64, 58)
  head.writeUInt16LE(3, 60)
  head.writeUInt16LE(2, 62)
  const section = (name: number, offset: number, length: number) => {
    const header = Buffer.alloc(64)
    header.writeUInt32LE(name, 0)
    header.writeUInt32LE(1, 4)
    header.writeBigUInt64LE(BigInt(offset), 24)
    header.writeBigUInt64LE(BigInt(length), 32)
    return header
  }
  const sections = [Buffer.alloc(64), section(1, 64, info.length), section(10, 64 + info.length, names.length)]
  return Buffer.concat([head, info, names, ...sections])
}

/** A static ELF program, as far as its header goes. */
export function fakeProgram(): Uint8Array {
  const bytes = Buffer.alloc(64)
  bytes.write(MAGIC, 'latin1')
  bytes.writeUInt16LE(2, 16)
  bytes.writeUInt16LE(X86_64, 18)
  bytes.writeUInt32LE(1, 20)
  bytes.writeBigUInt64LE(64n, 32)
  bytes.writeUInt16LE(64, 52)
  bytes.writeUInt16LE(56, 54)
  return bytes
}
