import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { describe, expect, it } from 'vitest'

// Imports run one way (docs/architecture.md). The table says which rooms a room may import from, itself aside.
const root = resolve(import.meta.dirname, '..')
const allowed: Readonly<Record<string, readonly string[]>> = {
  base: [],
  keys: ['base'],
  bundle: ['base', 'keys'],
  broker: ['base', 'bundle'],
  bootloader: ['base'],
  initramfs: ['base'],
  publisher: ['base', 'keys', 'bundle', 'broker', 'bootloader', 'initramfs'],
  device: ['base', 'keys', 'bundle', 'broker', 'bootloader'],
  'hw-tests': [],
}

function sources(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts') && !name.includes('node_modules'))
    .map((name) => join(root, folder, name))
}

/** Import and re-export specifiers of a file, dynamic imports included. */
function specifiers(text: string): string[] {
  const found: string[] = []
  for (const match of text.matchAll(/(?:\bfrom\s+|\bimport\s+|\bimport\s*\(\s*)['"]([^'"]+)['"]/g))
    if (match[1] !== undefined) found.push(match[1])
  return found
}

function roomOf(path: string): string {
  return relative(root, path).split(sep)[0] ?? ''
}

describe('architecture', () => {
  for (const [room, others] of Object.entries(allowed)) {
    it(`${room} imports only ${['itself', ...others].join(', ')}`, () => {
      const offending: string[] = []
      for (const file of sources(room)) {
        if (file.endsWith('.test.ts')) continue
        for (const specifier of specifiers(readFileSync(file, 'utf8'))) {
          if (!specifier.startsWith('.')) continue
          const target = roomOf(resolve(dirname(file), specifier))
          if (target !== room && !others.includes(target))
            offending.push(`${relative(root, file)} imports ${specifier}`)
        }
      }
      expect(offending).toEqual([])
    })
  }

  it('the import reader sees static, type, side-effect, re-exported and dynamic imports', () => {
    const text = `import a from './a.ts'\nimport type { B } from "./b.ts"\nimport './c.ts'\nexport { d } from './d.ts'\nawait import('./e.ts')`
    expect(specifiers(text)).toEqual(['./a.ts', './b.ts', './c.ts', './d.ts', './e.ts'])
  })

  it('files stay under 350 lines, one subject each', () => {
    const long = [...Object.keys(allowed), 'demo', 'scripts', 'bench']
      .flatMap((room) => {
        try {
          return sources(room)
        } catch {
          return []
        }
      })
      .map((file) => ({ file: relative(root, file), lines: readFileSync(file, 'utf8').split('\n').length }))
      .filter(({ lines }) => lines > 350)
    expect(long).toEqual([])
  })
})
