import { Buffer } from 'node:buffer'

/** Writes tars byte by byte, the malformed ones too. */

export interface Member {
  readonly name: string | Uint8Array
  /** The type flag: "0" file, "1" hard link, "2" symbolic link, "3" char, "4" block, "5" dir, "6" fifo, "x" PAX, … */
  readonly type?: string
  readonly body?: string | Uint8Array
  readonly link?: string
  readonly mode?: number
  readonly uid?: number
  readonly mtime?: number
  readonly rdev?: readonly [number, number]
  /** PAX records to put before it. */
  readonly pax?: Readonly<Record<string, string | Uint8Array>>
  /** What the size field says, if not the truth. */
  readonly size?: number
  /** Bytes to put into the header before it is summed, by offset. */
  readonly patch?: Readonly<Record<number, string>>
}

export const END = new Uint8Array(1024)

export function file(name: string, body: string | Uint8Array = '', more: Partial<Member> = {}): Member {
  return { name, body, ...more }
}

export function dir(name: string, more: Partial<Member> = {}): Member {
  return { name, type: '5', mode: 0o755, ...more }
}

export function symlink(name: string, link: string): Member {
  return { name, type: '2', link, mode: 0o777 }
}

export function hardlink(name: string, link: string): Member {
  return { name, type: '1', link }
}

/** A whole tar; an array given as a member is taken as bytes already made. */
export function tar(...members: readonly (Member | Uint8Array)[]): Buffer {
  return Buffer.concat([...members.map((m) => (m instanceof Uint8Array ? m : member(m))), END])
}

export function member(m: Member): Buffer {
  const body = Buffer.from(m.body ?? '')
  const padded = Buffer.concat([body, Buffer.alloc((512 - (body.length % 512)) % 512)])
  const before = m.pax === undefined ? [] : [member({ name: 'PaxHeader', type: 'x', body: paxBody(m.pax) })]
  return Buffer.concat([...before, header(m, body.length), padded])
}

export function paxBody(records: Readonly<Record<string, string | Uint8Array>>): Buffer {
  return Buffer.concat(Object.entries(records).map(([key, value]) => paxRecord(key, value)))
}

export function paxRecord(key: string, value: string | Uint8Array): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from('\n')])
  let length = rest.length
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length
  return Buffer.concat([Buffer.from(String(length)), rest])
}

function header(m: Member, bodyLength: number): Buffer {
  const out = Buffer.alloc(512)
  Buffer.from(m.name).copy(out, 0, 0, 100)
  const field = (at: number, width: number, value: number): void => {
    out.write(value.toString(8).padStart(width - 1, '0'), at, 'latin1')
  }
  field(100, 8, m.mode ?? 0o644)
  field(108, 8, m.uid ?? 0)
  field(116, 8, 0)
  field(124, 12, m.size ?? bodyLength)
  field(136, 12, m.mtime ?? 1_700_000_000)
  out.write(m.type ?? '0', 156, 'latin1')
  out.write(m.link ?? '', 157)
  out.write('ustar\u000000', 257, 'latin1')
  field(329, 8, m.rdev?.[0] ?? 0)
  field(337, 8, m.rdev?.[1] ?? 0)
  for (const [at, text] of Object.entries(m.patch ?? {})) out.write(text, Number(at), 'latin1')
  out.fill(' ', 148, 156)
  const sum = out.reduce((a, b) => a + b, 0)
  out.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return out
}
