import { basename } from 'node:path'
import { printable } from '../../base/printable.ts'
import { failureFrom } from '../agent/core.ts'
import type { InstallDone } from '../agent/work.ts'

/** What went on with a stick, gathered for the result file while it goes. */
export interface Account {
  readonly files: { name: string; code: string; message: string }[]
  readonly notes: string[]
  readonly journal: string[]
  done: InstallDone | undefined
  /** Of each add-on that was put over /usr, for people. */
  readonly applied: string[]
}

/** A file of the stick, as it is told: printable and of bounded length. */
export const nameOf = (path: string): string => printable(basename(path)).slice(0, 255)

export function fileOf(path: string, error: unknown): { name: string; code: string; message: string } {
  return { name: nameOf(path), ...failureFrom(error) }
}
