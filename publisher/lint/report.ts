import { printable } from '../../base/printable.ts'

/** What the fitness check finds. Errors stop a build, warnings and facts do not. */

export type Severity = 'error' | 'warning' | 'fact'

export interface Problem {
  /** Stable, lower-case: "kernel-missing". */
  readonly id: string
  readonly severity: Severity
  /** Absolute path in the image. */
  readonly path: string
  readonly sentence: string
}

export type Report = (severity: Severity, id: string, path: string, sentence: string) => void

/** "error kernel-missing /boot: no kernel …" */
export function problemLine(problem: Problem): string {
  return printable(`${problem.severity} ${problem.id} ${problem.path}: ${problem.sentence}`)
}
