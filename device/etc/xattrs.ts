import { type RunBounded, runBounded } from '../../bootloader/run-bounded.ts'

/**
 * Extended attributes, by the tools of the Debian package `attr`: Node.js has no calls for them. A system without the
 * tools carries none, and the merge says so.
 */

/** Bytes that a listing may have; the xattrs of 20,000 paths are far below. */
const MAX_LISTING = 16 * 1024 * 1024
const TOOL_MS = 60_000

export interface XattrTool {
  /** Relative path to name to base64 value, of all below a folder; undefined when they cannot be read here. */
  read(folder: string): Promise<ReadonlyMap<string, ReadonlyMap<string, string>> | undefined>
  /** Sets what is given and nothing else. @returns what went wrong, or undefined */
  write(folder: string, values: ReadonlyMap<string, ReadonlyMap<string, string>>): Promise<string | undefined>
}

/** @param run starts the tools */
export const xattrsBy = (run: RunBounded): XattrTool => ({
  async read(folder) {
    const options = ['-R', '-P', '-h', '-d', '-m', '-', '-e', 'base64'] as const
    const list = () => run(['getfattr', ...options, '--', '.'], '', TOOL_MS, { cwd: folder, maxOut: MAX_LISTING })
    const first = await list()
    // A file that goes while it lists is a failure to getfattr, and everything else it said is there: once more is enough.
    const listed = first.exit === 1 && first.out !== '' ? await list() : first
    return listed.exit === 0 ? parseDump(listed.out) : undefined
  },
  async write(folder, values) {
    if (values.size === 0) return undefined
    const set = await run(['setfattr', '-h', '--restore=-'], formatDump(values), TOOL_MS, { cwd: folder })
    return set.exit === 0 ? undefined : `setfattr: ${set.said}`
  },
})

export const attrTools = xattrsBy(runBounded)

/** The dump that getfattr prints: "# file: PATH", then NAME=0sBASE64 lines, then an empty one. Pure. */
export function parseDump(text: string): Map<string, Map<string, string>> {
  const all = new Map<string, Map<string, string>>()
  let current: Map<string, string> | undefined
  for (const line of text.split('\n')) {
    const file = /^# file: (.*)$/.exec(line)
    if (file !== null) {
      current = new Map()
      all.set(unescapePath(file[1] ?? '').replace(/^\.$|^\.\//, ''), current)
      continue
    }
    const value = /^([^=]+)=0s(.*)$/.exec(line)
    if (value !== null) current?.set(unescapePath(value[1] ?? ''), value[2] ?? '')
    // A name without a value.
    else if (line !== '' && !line.includes('=')) current?.set(unescapePath(line), '')
  }
  for (const [path, names] of all) all.set(path, new Map([...names].sort(([a], [b]) => (a < b ? -1 : 1))))
  return all
}

/** The same format, for setfattr. Pure. */
export function formatDump(values: ReadonlyMap<string, ReadonlyMap<string, string>>): string {
  return [...values]
    .map(([path, names]) => {
      const lines = [...names].map(([name, value]) => `${escapePath(name)}=0s${value}\n`)
      return `# file: ${escapePath(path === '' ? '.' : path)}\n${lines.join('')}\n`
    })
    .join('')
}

// attr-tools, quote(): backslash and octal digits for control bytes, "=" in names, and the backslash itself.
const unescapePath = (text: string) =>
  Buffer.from(
    Buffer.from(text)
      .toString('latin1')
      .replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8))),
    'latin1',
  ).toString()
const escapePath = (text: string) =>
  text.replace(/[\\\n\r=]/g, (c) => `\\${c.charCodeAt(0).toString(8).padStart(3, '0')}`)
