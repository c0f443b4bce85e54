import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import * as v from 'valibot'
import { zstdVersion } from '../bundle/zstd.ts'
import { runTool } from './tools.ts'

/** This program itself: where its package is, and the versions of what makes bytes in a build. */

/** The folder of package.json, from the sources (publisher/) and from the built file (dist/). */
export const packageRoot = (): string => join(import.meta.dirname, '..')

const schema = v.object({ version: v.string() })

/** The version in our package.json. */
export async function packageVersion(): Promise<string> {
  return v.parse(schema, JSON.parse(await readFile(join(packageRoot(), 'package.json'), 'utf8'))).version
}

/**
 * Versions of the programs and libraries whose output is in a release.
 * @param mksquashfs whether it wrote the root file system
 * @throws TOOL_MISSING, TOOL_FAILED
 */
export async function toolVersions(mksquashfs: boolean): Promise<Readonly<Record<string, string>>> {
  return {
    bistable: await packageVersion(),
    ...(mksquashfs ? { mksquashfs: await mksquashfsVersion() } : {}),
    node: process.versions.node,
    zstd: zstdVersion,
  }
}

async function mksquashfsVersion(): Promise<string> {
  const { out } = await runTool('mksquashfs', ['-version'])
  return /mksquashfs version ([^ \n]{1,64})/.exec(out)?.[1] ?? 'unknown'
}
