import * as v from 'valibot'

/**
 * An absolute path without "//", "." or ".." parts or a trailing slash. Plain characters only: the initramfs's script
 * reads these paths, and an image may not leave that to luck.
 */
export const plainPath = v.pipe(
  v.string(),
  v.maxLength(1024),
  v.regex(/^(?:\/(?!\.{1,2}(?:\/|$))[A-Za-z0-9._+*?@%:,~-]+)+$/, 'not a plain absolute path'),
)

/** The same without wildcards: one place and no pattern. */
export const plainPlace = v.pipe(
  plainPath,
  v.check((path) => !/[*?]/.test(path), 'has a wildcard'),
)

/** True for `path` itself and for all below it. Pure. */
export const isWithin = (path: string, folder: string): boolean => path === folder || path.startsWith(`${folder}/`)
