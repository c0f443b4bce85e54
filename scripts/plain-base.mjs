/**
 * @noble/ed25519 as the device has it: without the table of multiples of the base point.
 *
 * The table is for programs that sign all day. It takes 4224 additions of points to make, and an install verifies three
 * signatures with a few hundred each: half of the time in which a command gets its trust, at every start. The library
 * says of itself which call to leave out; multiplication then goes the way of every other point. A test holds both
 * against the same vectors.
 */

const CALL = /\n +if \(this\.equals\(G\)\)\n +return wNAF\(n\)\.p;/g

/** @param {string} source of the library; another version of it than this was made for is refused */
export function withoutBaseTable(source) {
  const found = source.match(CALL)?.length ?? 0
  if (found !== 1) throw new Error(`@noble/ed25519 uses its table of the base point in ${found} places, wanted 1`)
  return source.replace(CALL, '')
}
