/** More changes than this make another word. */
const MOST_CHANGES = 2

/** The word that a typing error may have meant: at most two letters too many, missing or wrong. Pure. */
export function nearest(typed: string, words: readonly string[]): string | undefined {
  const found = words.map((word) => ({ word, changes: changes(typed, word) })).sort((a, b) => a.changes - b.changes)[0]
  // A word of two letters is no error of another one of two.
  return found !== undefined && found.changes <= Math.min(MOST_CHANGES, (typed.length - 1) >> 1)
    ? found.word
    : undefined
}

/** Levenshtein's distance, by rows. */
function changes(a: string, b: string): number {
  let above = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1
      row[j] = Math.min((above[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (above[j - 1] ?? 0) + same)
    }
    above = row
  }
  return above[b.length] ?? 0
}
