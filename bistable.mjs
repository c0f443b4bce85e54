#!/usr/bin/env node
import { existsSync } from 'node:fs'

// The command line: the built file in an installed package, the sources (through tsx) in a checkout that was not built.
const built = new URL('./dist/bistable.mjs', import.meta.url)
if (existsSync(built)) await import(built.href)
else {
  const { register } = await import('tsx/esm/api')
  register()
  await import('./main.ts')
}
