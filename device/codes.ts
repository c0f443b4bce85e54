import { cliErrors } from '../base/cli.ts'
import { type ErrorFamily, EXIT } from '../base/errors.ts'
import { fileErrors } from '../base/file-errors.ts'
import { jsonErrors } from '../base/strict-json.ts'
import { bootErrors } from '../bootloader/errors.ts'
import { addonErrors } from '../bundle/addon-errors.ts'
import { bundleErrors } from '../bundle/errors.ts'
import { keyErrors } from '../keys/errors.ts'
import { doorErrors } from './doors/errors.ts'
import { driftErrors } from './drift/errors.ts'
import { deviceErrors } from './errors.ts'
import { etcErrors } from './etc/errors.ts'
import { installErrors } from './install/errors.ts'
import { slotErrors } from './slots/errors.ts'
import { stateErrors } from './state/errors.ts'
import { usbErrors } from './usb/errors.ts'

/** The class of every code that an outcome may carry: the same on the command line, in status, on the socket, on a stick. */

const tables = [
  ...[addonErrors, cliErrors, fileErrors, jsonErrors, bootErrors, bundleErrors, keyErrors],
  ...[deviceErrors, doorErrors, driftErrors, etcErrors, installErrors, slotErrors, stateErrors, usbErrors],
]
const families = new Map<string, ErrorFamily>(
  tables.flatMap(({ catalogue }) => Object.entries(catalogue).map(([code, { family }]) => [code, family])),
)

export interface CodeClass {
  readonly family: ErrorFamily | null
  /** What a command that ended so would exit with; 0 for a success. */
  readonly exit: number
}

/** A code nobody knows is told as a defect: it came from another version, or from one. */
export function classOf(outcome: { readonly ok: boolean; readonly code?: string | undefined }): CodeClass {
  if (outcome.ok) return { family: null, exit: 0 }
  const family = families.get(outcome.code ?? '') ?? 'internal'
  return { family, exit: EXIT[family] }
}

export const knownCodes = (): readonly string[] => [...families.keys()]
