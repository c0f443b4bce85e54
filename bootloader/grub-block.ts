/**
 * GRUB's environment block as GRUB itself reads it, lenient as it is: the agent must see the very variables that the
 * bootloader sees, also in a damaged block. Format: GNU GRUB manual, "Environment block".
 */

const SIGNATURE = '# GRUB Environment Block\n'
/** The only size that `grub-editenv` accepts. */
export const BLOCK_BYTES = 1024

/** A fresh block: the signature, the variables in the given order, `#` up to 1024 bytes. Values hold no newline or backslash. */
export function makeBlock(variables: readonly (readonly [string, string])[]): Uint8Array {
  const text = SIGNATURE + variables.map(([name, value]) => `${name}=${value}\n`).join('')
  const block = Buffer.alloc(BLOCK_BYTES, '#')
  block.write(text, 'latin1')
  return new Uint8Array(block)
}

/** The variables of a block; undefined when GRUB would refuse it. The last of two equal names wins, as in GRUB. */
export function readBlock(bytes: Uint8Array): Map<string, string> | undefined {
  const assignments = readAssignments(bytes)
  return assignments && new Map(assignments)
}

/** Every assignment of a block in order. */
export function readAssignments(bytes: Uint8Array): (readonly [string, string])[] | undefined {
  // One character per byte, so that positions are byte positions.
  const text = Buffer.from(bytes).toString('latin1')
  if (!text.startsWith(SIGNATURE)) return undefined
  const found: (readonly [string, string])[] = []
  let at = SIGNATURE.length
  while (at < text.length) {
    if (text[at] !== '#') {
      const equals = text.indexOf('=', at)
      if (equals === -1) break
      const [value, end] = readValue(text, equals + 1)
      if (end >= text.length) break
      found.push([cString(text.slice(at, equals)), cString(value)])
      at = end
    }
    at = nextLine(text, at)
  }
  return found
}

/** A value ends at a newline that no backslash protects; a backslash stands for the character behind it. */
function readValue(text: string, start: number): [string, number] {
  let value = ''
  let at = start
  while (at < text.length && text[at] !== '\n') {
    if (text[at] === '\\') at++
    value += text[at] ?? ''
    at++
  }
  return [value, at]
}

function nextLine(text: string, start: number): number {
  let at = start
  while (at < text.length && text[at] !== '\n') at += text[at] === '\\' ? 2 : 1
  return at + 1
}

function cString(text: string): string {
  const nul = text.indexOf('\0')
  return nul === -1 ? text : text.slice(0, nul)
}
