import { randomBytes, scrypt } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { dirname } from 'node:path'
import { xchacha20poly1305 } from '@noble/ciphers/chacha.js'
import { concatBytes } from '@noble/hashes/utils.js'
import * as v from 'valibot'
import { fromHex, hex, KiB } from '../base/bytes.ts'
import { nodeFiles, requireReadBack } from '../base/durable.ts'
import { isBistableError, systemCode } from '../base/errors.ts'
import { fileErrors } from '../base/file-errors.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import { checkPublicKey, publicKeyOf, signWithSeed } from './ed25519.ts'
import { keyErrors } from './errors.ts'
import type { PublicKey, Signer } from './types.ts'

/**
 * Private keys in files: JSON, mode 0600, the 32-byte seed sealed with XChaCha20-Poly1305 under a scrypt key.
 *
 * The parts that are not secret (public key, scrypt cost) are bound to the seal as associated data, so a changed
 * file does not open.
 */

/** scrypt cost as a power of two; r = 8, p = 1. 17: 128 MiB and about half a second (RFC 7914, OWASP's advice). */
export const SCRYPT_LOG_N = 17
/** A hostile key file must not take more than 1 GiB. */
const MAX_SCRYPT_LOG_N = 20
const MAX_KEY_FILE_BYTES = 4 * KiB
const MAX_PASSPHRASE_BYTES = KiB

/** Asks for the passphrase when, and only when, it is needed. @param what the key, for the person who is asked */
export type AskPassphrase = (what: string) => Promise<Uint8Array>

export type Protection =
  | { readonly kind: 'passphrase'; readonly passphrase: AskPassphrase; readonly logN?: number }
  /** The seed lies bare in the file: for development only, never chosen by default. */
  | { readonly kind: 'none' }

const hexText = (bytes: number) => v.pipe(v.string(), v.regex(new RegExp(`^[0-9a-f]{${bytes * 2}}$`)))
const common = { type: v.literal('bistable-key-1'), publicKey: hexText(32) }
const fileSchema = v.variant('protection', [
  v.strictObject({
    ...common,
    protection: v.literal('scrypt-xchacha20poly1305'),
    logN: v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(MAX_SCRYPT_LOG_N)),
    salt: hexText(32),
    nonce: hexText(24),
    sealed: hexText(48),
  }),
  v.strictObject({ ...common, protection: v.literal('none'), seed: hexText(32) }),
])
type KeyFile = v.InferOutput<typeof fileSchema>

/** What a key file tells without its passphrase. */
export interface KeyFileInfo {
  readonly publicKey: PublicKey
  readonly protection: KeyFile['protection']
}

/**
 * Makes a new key and writes it to a new file, durably, mode 0600. An existing file is never replaced.
 * @param random gives the seed, salt and nonce
 * @throws KEY_FILE_EXISTS, KEY_FILE_EXPOSED, KEY_PASSPHRASE_MISSING, FILE_*
 */
export async function createKeyFile(
  path: string,
  protection: Protection,
  random: (length: number) => Uint8Array = randomBytes,
): Promise<PublicKey> {
  const seed = new Uint8Array(random(32))
  try {
    const publicKey = publicKeyOf(seed)
    const file =
      protection.kind === 'none' ? bare(seed, publicKey) : await seal(seed, publicKey, protection, random, path)
    await writeSecret(path, Buffer.from(`${JSON.stringify(file, undefined, 2)}\n`))
    return publicKey
  } finally {
    seed.fill(0)
  }
}

/** Reads a key file without opening it. @throws KEY_FILE_INVALID, KEY_FILE_MISSING, KEY_INVALID, FILE_* */
export async function readKeyFileInfo(path: string): Promise<KeyFileInfo> {
  const { publicKey, protection } = await readKeyFile(path)
  return { publicKey: checkPublicKey(fromHex(publicKey)), protection }
}

/**
 * Opens a key file. The seed stays inside the returned signer and is printed nowhere.
 * @param passphrase asked for only when the file is protected
 * @throws KEY_FILE_INVALID, KEY_FILE_EXPOSED, KEY_FILE_MISSING, KEY_PASSPHRASE_WRONG, KEY_PASSPHRASE_MISSING, FILE_*
 */
export async function loadSigner(path: string, passphrase: AskPassphrase): Promise<Signer> {
  const file = await readKeyFile(path)
  const seed = file.protection === 'none' ? fromHex(file.seed) : await unseal(file, passphrase, path)
  const publicKey = publicKeyOf(seed)
  if (publicKey !== file.publicKey)
    throw keyErrors.KEY_FILE_INVALID(`${path} names the public key ${file.publicKey} but holds another key`)
  return {
    publicKey,
    describe: `key file ${path}`,
    sign: async (bytes) => signWithSeed(seed, bytes),
  }
}

function bare(seed: Uint8Array, publicKey: PublicKey): KeyFile {
  return { type: 'bistable-key-1', publicKey, protection: 'none', seed: hex(seed) }
}

async function seal(
  seed: Uint8Array,
  publicKey: PublicKey,
  protection: Extract<Protection, { kind: 'passphrase' }>,
  random: (length: number) => Uint8Array,
  path: string,
): Promise<KeyFile> {
  const logN = protection.logN ?? SCRYPT_LOG_N
  const salt = random(32)
  const nonce = random(24)
  const key = await stretch(await checkedPassphrase(protection.passphrase, path), salt, logN)
  const sealed = xchacha20poly1305(key, nonce, associated(publicKey, logN)).encrypt(seed)
  key.fill(0)
  return {
    type: 'bistable-key-1',
    publicKey,
    protection: 'scrypt-xchacha20poly1305',
    logN,
    salt: hex(salt),
    nonce: hex(nonce),
    sealed: hex(sealed),
  }
}

async function unseal(
  file: Extract<KeyFile, { logN: number }>,
  passphrase: AskPassphrase,
  path: string,
): Promise<Uint8Array> {
  const key = await stretch(await checkedPassphrase(passphrase, path), fromHex(file.salt), file.logN)
  try {
    const opened = xchacha20poly1305(key, fromHex(file.nonce), associated(file.publicKey, file.logN))
    return opened.decrypt(fromHex(file.sealed))
  } catch (cause) {
    throw keyErrors.KEY_PASSPHRASE_WRONG(`the passphrase does not open ${path}`, { cause })
  } finally {
    key.fill(0)
  }
}

function associated(publicKey: string, logN: number): Uint8Array {
  return concatBytes(Buffer.from(`bistable-key-1 scrypt ${logN} 8 1 `), fromHex(publicKey))
}

async function checkedPassphrase(ask: AskPassphrase, path: string): Promise<Uint8Array> {
  const passphrase = await ask(path)
  if (passphrase.length === 0 || passphrase.length > MAX_PASSPHRASE_BYTES)
    throw keyErrors.KEY_PASSPHRASE_MISSING(
      `the passphrase has ${passphrase.length} bytes, wanted 1 to ${MAX_PASSPHRASE_BYTES}`,
    )
  return passphrase
}

function stretch(passphrase: Uint8Array, salt: Uint8Array, logN: number): Promise<Uint8Array> {
  const N = 2 ** logN
  const options = { N, r: 8, p: 1, maxmem: 128 * N * 8 + 1024 * KiB }
  return new Promise((resolve, reject) =>
    scrypt(passphrase, salt, 32, options, (error, key) =>
      error === null ? resolve(new Uint8Array(key)) : reject(error),
    ),
  )
}

async function readKeyFile(path: string): Promise<KeyFile> {
  let handle: FileHandle | undefined
  try {
    // Non-blocking: a FIFO in the place of a file must not stop the reader for ever.
    handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    await requirePrivate(handle, path)
    const buffer = new Uint8Array(MAX_KEY_FILE_BYTES + 1)
    const { bytesRead } = await handle.read(buffer, 0, buffer.length)
    return parseKeyFile(buffer.subarray(0, bytesRead), path)
  } catch (cause) {
    if (isBistableError(cause)) throw cause
    if (systemCode(cause) === 'ENOENT') throw keyErrors.KEY_FILE_MISSING(`${path} is not there`, { cause })
    throw fileErrors.FILE_FAILED(`cannot read ${path}: ${systemCode(cause) ?? cause}`, { cause })
  } finally {
    await handle?.close()
  }
}

/** @throws KEY_FILE_EXPOSED */
async function requirePrivate(handle: FileHandle, path: string, extras?: { readonly next: string }): Promise<void> {
  const mode = (await handle.stat()).mode & 0o777
  if ((mode & 0o077) !== 0)
    throw keyErrors.KEY_FILE_EXPOSED(`${path} has mode ${mode.toString(8).padStart(4, '0')}, wanted 0600`, extras)
}

function parseKeyFile(bytes: Uint8Array, path: string): KeyFile {
  let json: unknown
  try {
    json = parseStrictJson(bytes, { maxBytes: MAX_KEY_FILE_BYTES, maxDepth: 1 })
  } catch {
    // The parser's sentence quotes the text, which may be a private key: it is not passed on.
    throw keyErrors.KEY_FILE_INVALID(`${path} is not a key file: not strict JSON`)
  }
  const parsed = v.safeParse(fileSchema, json)
  if (parsed.success) return parsed.output
  const [issue] = parsed.issues
  throw keyErrors.KEY_FILE_INVALID(`${path} is not a key file: the field '${v.getDotPath(issue) ?? ''}' is wrong`)
}

async function writeSecret(path: string, bytes: Uint8Array): Promise<void> {
  let handle: FileHandle | undefined
  try {
    handle = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600)
    // Some file systems (FAT) have no modes of their own: before the key is in it, not when it is used.
    await requirePrivate(handle, path, { next: 'Mount that file system with umask=077, or make the key on another.' })
    await handle.writeFile(bytes)
    await handle.sync()
  } catch (cause) {
    if (systemCode(cause) === 'EEXIST') throw keyErrors.KEY_FILE_EXISTS(`${path} is there already`, { cause })
    // Our own torn file goes, or it would stand in the way of the next try.
    if (handle !== undefined) await nodeFiles.remove(path)
    if (isBistableError(cause)) throw cause
    throw fileErrors.FILE_FAILED(`cannot write ${path}: ${systemCode(cause) ?? cause}`, { cause })
  } finally {
    await handle?.close()
  }
  await nodeFiles.syncDir(dirname(path))
  // Before anybody signs a root that lists this key.
  await requireReadBack(path, bytes)
}
