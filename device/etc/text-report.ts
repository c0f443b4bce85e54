import type { EtcReport } from './prepare.ts'

/** What `bistable etc` prints. Pure. */
export function etcVerbText({ report, message }: { readonly report?: EtcReport; readonly message?: string }): string {
  return report === undefined ? (message ?? '') : etcText(report)
}

/** The report for people. Pure. */
export function etcText({ mode, xattrs, notes, conflicts, refused, findings }: EtcReport): string {
  const lines = [`/etc: ${mode}, ${refused} refused, ${conflicts} conflicts, ${notes} notes`]
  if (!xattrs) lines.push('extended attributes are not carried: this system has no getfattr (package attr)')
  for (const { level, kind, path, taken, rule, detail, old, local, image } of findings) {
    const facts = [old && `old ${old}`, local && `here ${local}`, image && `image ${image}`].filter(Boolean)
    const why = rule === 'default' ? '' : ` by rule ${rule}`
    lines.push(
      `${level.padEnd(8)} ${path}: ${kind}, taken: ${taken}${why}${detail === undefined ? '' : ` (${detail})`}`,
    )
    if (level !== 'note' && facts.length > 0) lines.push(`         ${facts.join(', ')}`)
  }
  return lines.join('\n')
}
