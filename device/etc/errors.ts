import { defineErrors } from '../../base/errors.ts'

/** Refusals of the configuration merge. */
export const etcErrors = defineErrors({
  ETC_REFUSED: {
    family: 'device',
    meaning: 'The merge of /etc would lose something that no rule decides about; nothing was armed.',
    next: "See 'bistable etc preview BUNDLE'; decide with 'bistable etc resolve PATH local|image', then install again.",
  },
  ETC_TOO_LARGE: {
    family: 'storage',
    meaning: 'A configuration tree has more or larger files than a merge takes.',
    next: 'Move data out of /etc; configuration of more than 64 MiB or 20,000 paths is not merged.',
  },
  ETC_UNREADABLE: {
    family: 'storage',
    meaning: 'A configuration tree could not be read.',
    next: "Check the disk; 'bistable verify' shows whether the running slot is sound.",
  },
  ETC_WRITE_FAILED: {
    family: 'storage',
    meaning: 'The merged /etc could not be written, or differed when it was read back; nothing was armed.',
    next: 'Make room on the data partition or check it, then install again.',
  },
  ETC_RULES_INVALID: {
    family: 'usage',
    meaning: 'The rules for the merge of /etc have unknown, missing or wrong fields.',
    next: 'Correct every field named in /etc/bistable/etc.json; docs/etc.md lists them.',
  },
})
