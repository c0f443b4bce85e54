/**
 * One line for a terminal, a log or a list: what is not seen or moves the rest (control characters, bidirectional and
 * other format characters, line separators, lone surrogates) as \uXXXX. In JSON text that is the same string.
 */
export function printable(line: string): string {
  return line.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (unseen) => {
    let out = ''
    for (let i = 0; i < unseen.length; i++) out += `\\u${unseen.charCodeAt(i).toString(16).padStart(4, '0')}`
    return out
  })
}

/** The same for text of several lines: its line ends stay. */
export function printableLines(text: string): string {
  return text.split('\n').map(printable).join('\n')
}
