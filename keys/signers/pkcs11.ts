import type { Attribute, Handle, PKCS11 } from 'pkcs11js'
import { hex } from '../../base/bytes.ts'
import { nodeFiles } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { checkPublicKey } from '../ed25519.ts'
import { keyErrors } from '../errors.ts'
import type { AskPassphrase } from '../file-signer.ts'
import type { PublicKey, Signer } from '../types.ts'
import type { Pkcs11Uri } from './uri.ts'

/**
 * Keys in a PKCS#11 token. Each use opens a session of its own and closes it.
 *
 * In the process and not through `pkcs11-tool`: that one takes the PIN from its arguments or environment, and signs at
 * most 1024 bytes with EdDSA (it reads 1025 and goes on in parts, which EdDSA has not); a release statement with
 * provenance is longer.
 */

// From PKCS#11 2.40 and, for Edwards curves, 3.0.
const CKO_PUBLIC_KEY = 2
const CKO_PRIVATE_KEY = 3
const CKA_CLASS = 0
const CKA_LABEL = 3
const CKA_KEY_TYPE = 0x100
const CKA_ID = 0x102
const CKA_EC_POINT = 0x181
const CKA_ALWAYS_AUTHENTICATE = 0x202
const CKK_EC_EDWARDS = 0x40
const CKM_EDDSA = 0x1057
const CKF_SERIAL_SESSION = 4
const CKF_TOKEN_INITIALIZED = 0x400
const CKU_USER = 1
const CKU_CONTEXT_SPECIFIC = 2
const MAX_TOKENS = 64

/** The public key object of that name; needs no PIN. @throws SIGNER_MISSING, SIGNER_FAILED, KEY_INVALID */
export async function pkcs11PublicKey(uri: Pkcs11Uri): Promise<PublicKey> {
  return await withSession(uri, (p11, session) => {
    const object = findOne(p11, session, uri, CKO_PUBLIC_KEY)
    const [type, point] = p11.C_GetAttributeValue(session, object, [{ type: CKA_KEY_TYPE }, { type: CKA_EC_POINT }])
    if (type?.value === undefined || Buffer.from(type.value as Buffer).readUInt8(0) !== CKK_EC_EDWARDS)
      throw keyErrors.SIGNER_MISSING(`${describe(uri)} is no Edwards key (CKK_EC_EDWARDS)`)
    return checkPublicKey(pointBytes(new Uint8Array(point?.value as Buffer)))
  })
}

/** @throws SIGNER_MISSING, SIGNER_FAILED, KEY_INVALID; when it signs also KEY_PASSPHRASE_* */
export async function pkcs11Signer(uri: Pkcs11Uri, askPin: AskPassphrase): Promise<Signer> {
  return {
    publicKey: await pkcs11PublicKey(uri),
    describe: describe(uri),
    async sign(bytes) {
      const pin = await pinOf(uri, askPin)
      return await withSession(uri, (p11, session) => {
        // One try only: tokens lock themselves after a few wrong PINs.
        p11.C_Login(session, CKU_USER, pin)
        const key = findOne(p11, session, uri, CKO_PRIVATE_KEY)
        p11.C_SignInit(session, { mechanism: CKM_EDDSA }, key)
        // A key that wants its PIN for each signature (the PIV slot for signatures does) takes it between the two.
        if (alwaysAuthenticates(p11, session, key)) p11.C_Login(session, CKU_CONTEXT_SPECIFIC, pin)
        return new Uint8Array(p11.C_Sign(session, Buffer.from(bytes), Buffer.alloc(128)))
      })
    },
  }
}

/** PKCS#11 3.0, section 4.9. Older tokens do not know the attribute, and want nothing then. */
function alwaysAuthenticates(p11: PKCS11, session: Handle, key: Handle): boolean {
  try {
    const [asked] = p11.C_GetAttributeValue(session, key, [{ type: CKA_ALWAYS_AUTHENTICATE }])
    return asked !== undefined && Buffer.from(asked.value as Buffer).some((byte) => byte !== 0)
  } catch {
    return false
  }
}

const describe = ({ token, serial, object, id }: Pkcs11Uri): string =>
  `token ${token ?? serial ?? '(any)'}, key ${object ?? `id ${hex(id ?? new Uint8Array())}`}`

/** DER OCTET STRING around the point, as PKCS#11 says; some tokens give the bare point. */
function pointBytes(value: Uint8Array): Uint8Array {
  return value.length === 34 && value[0] === 0x04 && value[1] === 0x20 ? value.subarray(2) : value
}

async function pinOf(uri: Pkcs11Uri, askPin: AskPassphrase): Promise<string> {
  if (uri.pinFile === undefined) return Buffer.from(await askPin(describe(uri))).toString('utf8')
  const bytes = await nodeFiles.read(uri.pinFile, 1024)
  if (bytes === undefined) throw keyErrors.KEY_FILE_MISSING(`the PIN file ${uri.pinFile} is not there`)
  return Buffer.from(bytes).toString('utf8').split(/\r?\n/, 1)[0] ?? ''
}

async function withSession<T>(uri: Pkcs11Uri, use: (p11: PKCS11, session: Handle) => T): Promise<T> {
  const p11 = await loadModule(uri.module)
  try {
    p11.C_Initialize()
    try {
      const session = p11.C_OpenSession(findToken(p11, uri), CKF_SERIAL_SESSION)
      return use(p11, session)
    } finally {
      // Closes the session and logs out, too.
      p11.C_Finalize()
    }
  } catch (cause) {
    if (isBistableError(cause)) throw cause
    const sentence = cause instanceof Error ? cause.message : String(cause)
    if (/^CKR_PIN_(INCORRECT|INVALID|LEN_RANGE|LOCKED)/.test(sentence))
      throw keyErrors.KEY_PASSPHRASE_WRONG(`${describe(uri)} does not take the PIN: ${sentence}`, { cause })
    throw keyErrors.SIGNER_FAILED(`${describe(uri)}: ${sentence}`, { cause })
  } finally {
    p11.close()
  }
}

async function loadModule(path: string): Promise<PKCS11> {
  let p11: PKCS11
  try {
    const library = await import('pkcs11js')
    p11 = new library.default.PKCS11()
  } catch (cause) {
    throw keyErrors.SIGNER_MISSING('PKCS#11 support is not installed', {
      cause,
      next: "Run 'npm install pkcs11js' where bistable is installed; it needs a C++ compiler.",
    })
  }
  try {
    p11.load(path)
  } catch (cause) {
    throw keyErrors.SIGNER_MISSING(`the PKCS#11 library ${path} cannot be loaded: ${String(cause)}`, { cause })
  }
  return p11
}

function findToken(p11: PKCS11, uri: Pkcs11Uri): Handle {
  const found = p11
    .C_GetSlotList(true)
    .slice(0, MAX_TOKENS)
    .filter((slot) => {
      const { label, serialNumber, flags } = p11.C_GetTokenInfo(slot)
      // Both are padded with blanks.
      const fits = (wanted: string | undefined, is: string) => wanted === undefined || wanted === is.trimEnd()
      return (flags & CKF_TOKEN_INITIALIZED) !== 0 && fits(uri.token, label) && fits(uri.serial, serialNumber)
    })
  return onlyOne(found, `tokens fit ${describe(uri)}`)
}

function findOne(p11: PKCS11, session: Handle, uri: Pkcs11Uri, objectClass: number): Handle {
  const template: Attribute[] = [{ type: CKA_CLASS, value: objectClass }]
  if (uri.object !== undefined) template.push({ type: CKA_LABEL, value: uri.object })
  if (uri.id !== undefined) template.push({ type: CKA_ID, value: Buffer.from(uri.id) })
  p11.C_FindObjectsInit(session, template)
  const found = p11.C_FindObjects(session, 2)
  p11.C_FindObjectsFinal(session)
  return onlyOne(found, `${objectClass === CKO_PUBLIC_KEY ? 'public' : 'private'} key objects are ${describe(uri)}`)
}

function onlyOne(found: readonly Handle[], what: string): Handle {
  const [first, second] = found
  if (first === undefined || second !== undefined)
    throw keyErrors.SIGNER_MISSING(`${first === undefined ? 'no' : 'several'} ${what}`)
  return first
}
