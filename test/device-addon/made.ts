import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { AddonStatement } from '../../bundle/addon.ts'
import { type AddonRequest, buildAddon, packAddon } from '../../publisher/addon.ts'
import { signFile } from '../../publisher/sign.ts'
import { signedRoot, signer } from '../keys/helpers.ts'

/** Add-ons made as a publisher makes them: built, signed and packed. */

export const ROOT = await signedRoot({ root: [1], threshold: 1 }, [1])

export interface MadeAddon {
  readonly folder: string
  readonly file: string
  readonly build: string
  readonly statement: AddonStatement
}

export interface AddonPlan extends Partial<Omit<AddonRequest, 'folder'>> {
  /** Below the folder, to content. */
  readonly files?: Readonly<Record<string, string>>
  readonly by?: readonly number[]
}

export function scratchFolder(): string {
  return mkdtempSync(join(tmpdir(), 'bistable-addon-test-'))
}

export const drop = (folder: string) => rmSync(folder, { recursive: true, force: true })

/** @param bases digests of release statements */
export async function makeAddon(folder: string, bases: readonly string[], plan: AddonPlan = {}): Promise<MadeAddon> {
  const { files = { 'usr/bin/tool': '#!/bin/sh\necho tool\n' }, by = [11], ...more } = plan
  const name = more.name ?? 'hotfix'
  const source = join(folder, `${name}.tree`)
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(source, path)), { recursive: true })
    writeFileSync(join(source, path), text)
    chmodSync(join(source, path), 0o755)
  }
  const build = join(folder, `${name}.build`)
  const facts = { name, kind: 'fix' as const, summary: 'a fix', fixes: ['CVE-1'], product: 'demo', bases }
  const times = { issued: '2026-11-21T00:00:00Z', expires: '2026-12-21T00:00:00Z' }
  const statement = await buildAddon({ folder: source, ...facts, ...times, ...more }, build)
  await signFile({ input: join(build, 'statement.json'), output: join(build, 'release.json') }, by.map(signer))
  const file = join(folder, `${name}.addon`)
  await packAddon(build, [ROOT], file)
  return { folder, file, build, statement }
}
