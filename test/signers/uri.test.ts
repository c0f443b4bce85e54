import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { isBistableError } from '../../base/errors.ts'
import { parseKeyUri } from '../../keys/signers/uri.ts'
import { codeOf } from '../codes.ts'
import { key } from '../keys/helpers.ts'

const GCP = 'projects/p/locations/global/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1'

describe('the name of a key', () => {
  it.each([
    ['keys/root-1.key', { kind: 'file', path: 'keys/root-1.key' }],
    ['./pkcs11:x', { kind: 'file', path: './pkcs11:x' }],
    [`command:${key(1)}:ssh hsm sign: now`, { kind: 'command', publicKey: key(1), command: 'ssh hsm sign: now' }],
    ['aws-kms:alias/release', { kind: 'aws-kms', keyId: 'alias/release' }],
    [
      'aws-kms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab',
      { kind: 'aws-kms', keyId: 'arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab' },
    ],
    [`gcp-kms:${GCP}`, { kind: 'gcp-kms', name: GCP }],
    [
      'pkcs11:token=My%20token;serial=1f;object=rel;id=%01%FF;type=private?module-path=/lib/p.so&pin-source=file:/run/pin',
      {
        kind: 'pkcs11',
        module: '/lib/p.so',
        token: 'My token',
        serial: '1f',
        object: 'rel',
        id: Uint8Array.of(1, 255),
        pinFile: '/run/pin',
      },
    ],
    ['pkcs11:id=a%C3%A4?module-path=p.so', { kind: 'pkcs11', module: 'p.so', id: Uint8Array.of(0x61, 0xc3, 0xa4) }],
    ['pkcs11:id=%01?module-path=/opt/a?b/p.so', { kind: 'pkcs11', module: '/opt/a?b/p.so', id: Uint8Array.of(1) }],
  ])('%s', (text, wanted) => {
    expect(parseKeyUri(text)).toEqual(wanted)
  })

  it.each([
    ['a PIN that every process would see', 'pkcs11:id=%01?module-path=p.so&pin-value=1234'],
    ['no module', 'pkcs11:id=%01'],
    ['no key', 'pkcs11:token=t?module-path=p.so'],
    ['a field twice', 'pkcs11:id=%01;id=%02?module-path=p.so'],
    ['an unknown field', 'pkcs11:id=%01;slot-id=1?module-path=p.so'],
    ['a public key object', 'pkcs11:id=%01;type=public?module-path=p.so'],
    ['a broken escape', 'pkcs11:id=%1?module-path=p.so'],
    ['no value', 'pkcs11:id=?module-path=p.so'],
    ['a command without its key', 'command:sign-it'],
    ['a command without a command', `command:${key(1)}:`],
    ['a KMS key id with a newline', 'aws-kms:a\nb'],
    ['a key without a version', 'gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k'],
    ['a name that climbs', `gcp-kms:${GCP.replace('global', '..%2f..')}/../x`],
  ])('is refused with %s', (_, text) => {
    expect(codeOf(() => parseKeyUri(text))).toBe('SIGNER_URI')
  })

  it('is refused with a public key that is unsound', () => {
    expect(codeOf(() => parseKeyUri(`command:${'00'.repeat(32)}:x`))).toBe('KEY_INVALID')
  })

  it('whatever it is, it is read or refused by name', () => {
    const scheme = fc.constantFrom('pkcs11:', 'command:', 'aws-kms:', 'gcp-kms:', '')
    const pieces = fc.constantFrom('id=', 'token=', '%41', '%', ';', '?', '&', 'module-path=', 'x', '\n', 'ä', ':')
    fc.assert(
      fc.property(scheme, fc.array(fc.oneof(pieces, fc.string())), (start, rest) => {
        try {
          parseKeyUri(start + rest.join(''))
        } catch (error) {
          expect(isBistableError(error)).toBe(true)
        }
      }),
    )
  })
})
