import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** The functions of the initramfs that `init` shares with its other half: a file to source. Wants `TMP`. */
export const STATE_FUNCTIONS = fileURLToPath(new URL('../../initramfs/state.sh', import.meta.url))

/**
 * Functions of `initramfs/init` by name, as text to source: what the device runs, and no copy of it.
 * @param instead what stands for a path of the device ("/sys/class/block/": "/tmp/x/")
 */
export function initFunctions(names: readonly string[], instead: Readonly<Record<string, string>> = {}): string {
  const init = readFileSync(new URL('../../initramfs/init', import.meta.url), 'utf8')
  const found = names.map((name) => {
    const text = new RegExp(`^${name}\\(\\) \\{.*?^\\}$`, 'ms').exec(init)?.[0]
    if (text === undefined) throw new Error(`initramfs/init has no function ${name}`)
    return text
  })
  return Object.entries(instead).reduce((text, [path, other]) => text.replaceAll(path, other), found.join('\n'))
}
