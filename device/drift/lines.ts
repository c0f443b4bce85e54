import { diffComm } from 'node-diff3'

/** Larger texts are not compared line by line. */
export const MAX_DIFF_BYTES = 256 * 1024

/** The lines that differ, "-" those of the release and "+" the device's, with the line number of the release; undefined for
 * what is not text. Pure. */
export function diffLines(release: Uint8Array, device: Uint8Array): string | undefined {
  const [a, b] = [linesOf(release), linesOf(device)]
  if (a === undefined || b === undefined) return undefined
  const out: string[] = []
  let at = 1
  for (const part of diffComm(a, b)) {
    if (part.common !== undefined) {
      at += part.common.length
      continue
    }
    const { buffer1 = [], buffer2 = [] } = part
    out.push(`@ line ${at}`, ...buffer1.map((line) => `-${line}`), ...buffer2.map((line) => `+${line}`))
    at += buffer1.length
  }
  return out.join('\n')
}

function linesOf(bytes: Uint8Array): string[] | undefined {
  if (bytes.length > MAX_DIFF_BYTES || bytes.includes(0)) return undefined
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes).replace(/\n$/, '').split('\n')
  } catch {
    return undefined
  }
}
