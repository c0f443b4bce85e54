/**
 * Whether a path matches a glob: "*" and "?" within one name, "**" across names. A glob that names a folder covers all
 * that is in it. Both are absolute. Pure.
 */
export function matchesGlob(glob: string, path: string): boolean {
  const pattern = glob
    .split(/(\*\*|\*|\?)/)
    .map((part) => {
      if (part === '**') return '.*'
      if (part === '*') return '[^/]*'
      if (part === '?') return '[^/]'
      return part.replace(/[.+^${}()|[\]\\]/g, '\\$&')
    })
    .join('')
  return new RegExp(`^${pattern}(?:/.*)?$`, 's').test(path)
}

/** The first of `globs` that matches, or undefined. Pure. */
export function firstMatch(globs: readonly string[], path: string): string | undefined {
  return globs.find((glob) => matchesGlob(glob, path))
}
