import { defineErrors } from '../base/errors.ts'

export const keyErrors = defineErrors({
  KEY_INVALID: {
    family: 'authenticity',
    meaning: 'A public key is not a sound Ed25519 key: wrong length, not canonical, small order or torsion.',
    next: 'Make a new key with `bistable keys generate`; never use this one.',
  },
  KEY_FILE_INVALID: {
    family: 'input',
    meaning: 'A private key file is not in the form that this version writes.',
    next: 'Check that the right file was given, or take the copy from its backup.',
  },
  KEY_FILE_EXPOSED: {
    family: 'environment',
    meaning: 'A private key file can be read or written by others than its owner.',
    next: 'Run `chmod 600` on the file, and think about who may have read it.',
  },
  KEY_FILE_EXISTS: {
    family: 'usage',
    meaning: 'A file that would be made is there already; keys are never overwritten.',
    next: 'Choose another path, or move the old file away.',
  },
  KEY_FILE_MISSING: {
    family: 'usage',
    meaning: 'A key, statement or passphrase file that the command line names is not there.',
    next: 'Check the path.',
  },
  KEY_PASSPHRASE_WRONG: {
    family: 'authenticity',
    meaning: 'The passphrase or PIN does not open this key, or the key file was changed.',
    next: 'Try it again, but mind that tokens lock after a few wrong PINs; if it is right, take the file from its backup.',
  },
  KEY_PASSPHRASE_MISSING: {
    family: 'usage',
    meaning: 'A passphrase is needed and none was given, or it is empty or too long.',
    next: 'Run it on a terminal, or give --passphrase-file, --passphrase-fd or --passphrase-command.',
  },
  ENVELOPE_INVALID: {
    family: 'input',
    meaning: 'A signed statement is not in the one exact encoding of docs/format.md.',
    next: 'Take the file again from where it was signed.',
  },
  ENVELOPE_TOO_LARGE: {
    family: 'input',
    meaning: 'A signed statement is longer than its limit.',
    next: 'Check that the right file was given.',
  },
  ENVELOPE_BUSY: {
    family: 'environment',
    meaning:
      'Somebody else is writing the file of a signed statement, or was killed while doing so. Nothing was written.',
    next: 'Sign it again. If nobody else signs it now, remove the lock file that the message names first.',
  },
  STATEMENT_TOO_LARGE: {
    family: 'input',
    meaning: 'A statement has more than 4096 bytes under signature.',
    next: 'Shorten it: fewer hardware names, fewer keys.',
  },
  STATEMENT_TYPE: {
    family: 'authenticity',
    meaning: 'A signed statement is of another type than the one wanted here.',
    next: 'Check that the right file was given.',
  },
  SIGNATURE_UNKNOWN: {
    family: 'authenticity',
    meaning: 'A signature verifies under no key that the trusted roots list or once listed for this role.',
    next: 'Do not use the file. If a new key signed it, publish the root that lists the key first.',
  },
  SIGNATURE_THRESHOLD: {
    family: 'authenticity',
    meaning: 'Too few different keys of the newest root signed.',
    next: 'Have more holders of these keys sign, with `bistable sign` (a root: `bistable keys sign`).',
  },
  SIGNATURE_REFUSED: {
    family: 'authenticity',
    meaning: 'A signer returned something that is not a sound signature by its own key.',
    next: 'Check that the signer holds the key it names.',
  },
  SIGNATURE_PRESENT: {
    family: 'usage',
    meaning: 'This key has signed this statement already.',
    next: 'Have another key holder sign.',
  },
  SIGNER_URI: {
    family: 'usage',
    meaning: 'The name of a key is not understood.',
    next: 'Give a key file, or pkcs11:, command:, aws-kms: or gcp-kms: as docs/keys.md shows.',
  },
  SIGNER_MISSING: {
    family: 'environment',
    meaning: 'A key, or something that is needed to reach it, is not here: module, token, credentials.',
    next: 'Check the name of the key, and that the token or the credentials are there.',
  },
  SIGNER_FAILED: {
    family: 'transport',
    meaning: 'A token, a command or a service was asked for a key, a signature or a passphrase and did not give it.',
    next: 'Read what it said; nothing was written.',
  },
  EXPORT_NOTHING: {
    family: 'usage',
    meaning: 'A statement carries no signature by any of the keys that were named.',
    next: 'Name the keys that signed with --root or --public-key.',
  },
  MERGE_OTHER: {
    family: 'usage',
    meaning: 'Two files to merge are not copies of one statement.',
    next: 'Compare them with `bistable keys show`; sign the right one again.',
  },
  ROOT_UNREACHABLE: {
    family: 'usage',
    meaning: 'After the change a role could not reach its threshold, or the change itself could never be signed.',
    next: 'Add another key with --add, or lower the threshold with --threshold.',
  },
  ROOT_INVALID: {
    family: 'input',
    meaning: 'The content of a root statement breaks a rule of its form.',
    next: 'Make the root again with `bistable keys`.',
  },
  ROOT_CHAIN_LENGTH: {
    family: 'input',
    meaning: 'A root chain is empty or longer than 1024 versions.',
    next: 'Check that the right files were given.',
  },
  ROOT_VERSION: {
    family: 'authenticity',
    meaning: 'Root versions do not follow one another by one.',
    next: 'Add the missing root versions to the bundle.',
  },
  ROOT_FORK: {
    family: 'authenticity',
    meaning: 'Two different roots claim the same version.',
    next: 'Do not use the file. Find out who signed the second root: root keys may be stolen.',
  },
  ROOT_PRODUCT: {
    family: 'policy',
    meaning: 'A root names another product than the one before it.',
    next: 'Use the roots of this product.',
  },
  ROOT_EPOCH: {
    family: 'authenticity',
    meaning: 'The epoch of a root is lower than that of the root before it.',
    next: 'Make the root again; the epoch stays or rises.',
  },
})
