import { spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { systemCode } from '../../base/errors.ts'
import type { Platform } from './documents.ts'
import { ociErrors } from './errors.ts'

/** Registries, through skopeo: it knows their protocols, mirrors and logins. Its copy is checked like any other. */

export interface FetchOptions {
  readonly platform: Platform
  /** Folder for the copy. */
  readonly tempDir: string
  /** False: plain HTTP or an unknown certificate is taken. The registry is not trusted either way. */
  readonly tlsVerify: boolean
  readonly signal: AbortSignal | undefined
  /** Where to look for programs; tests use it. */
  readonly path: string | undefined
}

/** The tag under which the copy stands in its layout. */
export const FETCHED_TAG = 'fetched'
const KEEP = 8 * 1024

/**
 * Copies `docker://NAME` into a fresh OCI layout below `tempDir`.
 * @returns the layout's folder and how to remove it
 * @throws IMAGE_SKOPEO_MISSING, IMAGE_REGISTRY_FAILED
 */
export async function fetchImage(
  reference: string,
  options: FetchOptions,
): Promise<{ readonly dir: string; readonly remove: () => Promise<void> }> {
  const dir = await mkdtemp(join(options.tempDir, 'bistable-fetch-'))
  const remove = (): Promise<void> => rm(dir, { recursive: true, force: true })
  try {
    const { os, architecture, variant } = options.platform
    await skopeo(
      [
        `--override-os=${os}`,
        `--override-arch=${architecture}`,
        ...(variant === undefined ? [] : [`--override-variant=${variant}`]),
        'copy',
        '--quiet',
        `--src-tls-verify=${options.tlsVerify}`,
        reference,
        `oci:${join(dir, 'layout')}:${FETCHED_TAG}`,
      ],
      reference,
      options,
    )
    return { dir: join(dir, 'layout'), remove }
  } catch (error) {
    await remove()
    throw error
  }
}

async function skopeo(args: readonly string[], reference: string, options: FetchOptions): Promise<void> {
  // The caller's environment is passed on: logins and proxies are in it.
  const env = options.path === undefined ? process.env : { ...process.env, PATH: options.path }
  const child = spawn('skopeo', args, {
    stdio: ['ignore', 'ignore', 'pipe'],
    env,
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  })
  let last = ''
  child.stderr.setEncoding('utf8')
  child.stderr.on('data', (text: string) => {
    last = (last + text).slice(-KEEP)
  })
  const end = await new Promise<string>((resolve, reject) => {
    let stopped: Error | undefined
    child.on('error', (cause) => {
      if (systemCode(cause) === 'ENOENT')
        reject(ociErrors.IMAGE_SKOPEO_MISSING(`'${reference}' needs skopeo, which is not installed`, { cause }))
      else if (child.pid === undefined) reject(cause)
      // Told to stop, it may still write into the folder that is removed next.
      else stopped = cause
    })
    child.on('close', (code, signal) => (stopped === undefined ? resolve(signal ?? String(code)) : reject(stopped)))
  })
  if (end !== '0')
    throw ociErrors.IMAGE_REGISTRY_FAILED(
      `'${reference}' could not be copied: ${last.trim().split('\n').slice(-2).join(' / ') || `skopeo ended with ${end}`}`,
    )
}
