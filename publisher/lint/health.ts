import { parseStrictJson } from '../../base/strict-json.ts'
import {
  checkHealthPlan,
  HEALTH_MAX_BYTES,
  HEALTH_PATH,
  type HealthPlan,
  leavesDevice,
  NO_PLAN,
} from '../../bundle/health-plan.ts'
import type { System } from '../../bundle/system.ts'
import type { MergedTree, TreeEntry } from '../tree.ts'
import { isFile } from './kernel.ts'
import type { Report } from './report.ts'

/** The health checks of an image: a check that cannot run, or never runs, is found here and not in the field. */

export async function lintHealth(tree: MergedTree, system: System | undefined, report: Report): Promise<void> {
  for (const [level, patterns] of Object.entries({
    required: system?.health.required ?? [],
    wanted: system?.health.wanted ?? [],
  }))
    for (const pattern of patterns) lintPattern(tree, level, pattern, report)
  const plan = await readPlan(tree, report)
  const systemd = isProgram(tree.resolve('usr/bin/systemctl')) || isProgram(tree.resolve('bin/systemctl'))
  for (const check of plan.checks) {
    const where = `check '${check.name}'`
    if (check.kind === 'program' && !isProgram(tree.resolve(check.path.slice(1))))
      report('error', 'health-program', check.path, `${where} runs it, but it is not an executable of the image`)
    if ((check.kind === 'unit' || check.kind === 'no-failed-units') && !systemd)
      report('error', 'health-no-systemd', HEALTH_PATH, `${where} asks systemd, and the image has no systemctl`)
    else if (check.kind === 'unit' && !hasUnit(tree, check.unit))
      report('warning', 'health-unit', HEALTH_PATH, `${where}: the image has no unit ${check.unit}`)
    if (check.level === 'required' && leavesDevice(check))
      report(
        'warning',
        'health-network',
        HEALTH_PATH,
        `${where} is required and asks another machine: while that is away, good releases are given up; make it wanted`,
      )
  }
}

async function readPlan(tree: MergedTree, report: Report): Promise<HealthPlan> {
  const entry = tree.resolve(HEALTH_PATH.slice(1))
  if (entry === undefined) return NO_PLAN
  const bad = (sentence: string) => report('error', 'health-invalid', HEALTH_PATH, sentence)
  if (!isFile(entry) || entry.node.size > HEALTH_MAX_BYTES) {
    bad(`not a file of at most ${HEALTH_MAX_BYTES} bytes`)
    return NO_PLAN
  }
  let value: unknown
  try {
    value = parseStrictJson(await tree.readSmall(entry.node, HEALTH_MAX_BYTES), { maxBytes: HEALTH_MAX_BYTES })
  } catch (error) {
    bad(error instanceof Error ? error.message : String(error))
    return NO_PLAN
  }
  const checked = checkHealthPlan(value)
  if ('plan' in checked) return checked.plan
  for (const problem of checked.problems) bad(problem)
  return NO_PLAN
}

/** The agent takes executables only: what lost its mode in a build would be a check less. */
function lintPattern(tree: MergedTree, level: string, pattern: string, report: Report): void {
  const cut = pattern.lastIndexOf('/')
  if (!pattern.includes('*')) {
    if (!isProgram(tree.resolve(pattern.slice(1))))
      report('error', 'health-program', pattern, `${level} by system.json, but it is not an executable of the image`)
    return
  }
  const folder = tree.resolve(pattern.slice(1, cut))
  for (const entry of folder === undefined ? [] : tree.children(folder.path)) {
    const found = tree.resolve(entry.path)
    if (isFile(found) && !isProgram(found))
      report('warning', 'health-not-executable', `/${entry.path}`, 'among the health checks, but it is not executable')
  }
}

const isProgram = (entry: TreeEntry | undefined) => isFile(entry) && (entry.node.mode & 0o111) !== 0

/** "getty@tty1.service" comes from "getty@.service". */
function hasUnit(tree: MergedTree, unit: string): boolean {
  const template = unit.replace(/@[^.]*\./, '@.')
  return ['etc/systemd/system', 'usr/lib/systemd/system', 'lib/systemd/system'].some((folder) =>
    [unit, template].some(
      (name) => tree.get(`${folder}/${name}`) !== undefined || isFile(tree.resolve(`${folder}/${name}`)),
    ),
  )
}
