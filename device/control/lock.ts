/**
 * One holder of a name, with nothing to wait for: the name is a symbolic link, and what it leads to (the holder's socket)
 * answers for as long as the holder lives. Node.js has no file locks, and a socket's own file outlives its process.
 *
 * A link changes hands in three ways. Nobody has it: who makes it, has it. Its holder gives it back. Its holder is dead:
 * only who has the right to replace this one holder does, and that right is a link like this one, named by the dead. So
 * by induction no link has two living holders: what names no living process stays as it is until whoever has the right
 * changes it, and names are never used twice. A holder that dies on the way is replaced in the same manner.
 */

export interface LockEdge {
  /** Makes a symbolic link. False when there is something of this name. */
  link(target: string, name: string): Promise<boolean>
  /** Where a link leads; undefined: nothing is there. What is no link leads to itself. */
  target(name: string): Promise<string | undefined>
  /** Puts one link in the place of another. */
  replace(from: string, name: string): Promise<void>
  /** Missing is fine. */
  remove(name: string): Promise<void>
  /** Does a process answer there? A name that had none once never has one again. */
  lives(target: string): Promise<boolean>
  /** Lets others go on. */
  pause(): Promise<void>
}

/** Where somebody is on the way to replace the dead: so often it is looked at whether he has. */
const TRIES = 200
/** Holders that died one after the other while they replaced each other. */
const DEPTH = 8

/**
 * Takes a name for a process that answers at `mine` already, a name that nobody ever had.
 * @returns undefined when it is taken; else where its holder answers
 */
export async function takeName(edge: LockEdge, name: string, mine: string, depth = DEPTH): Promise<string | undefined> {
  let holder = name
  for (let tries = 0; tries < TRIES; tries++) {
    if (await edge.link(mine, name)) return undefined
    const found = await edge.target(name)
    if (found === undefined) continue
    holder = found
    if ((await edge.lives(found)) || depth === 0) return found
    const right = `${found}.over`
    if ((await takeName(edge, right, mine, depth - 1)) !== undefined) {
      await edge.pause()
      continue
    }
    // From here on nobody else replaces it. Had somebody done so before, and given the right back, it would be another.
    const still = (await edge.target(name)) === found
    if (still) {
      await edge.link(mine, `${mine}.new`)
      await edge.replace(`${mine}.new`, name)
    }
    await edge.remove(right)
    if (!still) continue
    if (found !== name) await edge.remove(found)
    return undefined
  }
  return holder
}
