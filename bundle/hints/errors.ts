import { defineErrors } from '../../base/errors.ts'

/** Refusals of hints. None of them stops an install: what hints do not give is fetched from the bundle. */
export const hintsErrors = defineErrors({
  HINTS_INVALID: {
    family: 'input',
    meaning: 'The hints beside a bundle are not in their one exact form. They are not used.',
    next: 'Nothing: chunk indexes and inventory are fetched whole. Publish the bundle again with the present version.',
  },
  HINTS_DIGEST: {
    family: 'authenticity',
    meaning: 'What was made with the hints beside a bundle does not have the signed digest. It is not used.',
    next: 'Nothing: the whole is fetched. If it comes back, check the server and publish the bundle again.',
  },
  HINTS_WRONG_RELEASE: {
    family: 'input',
    meaning: 'The hints beside a bundle are of another release.',
    next: 'Nothing: chunk indexes and inventory are fetched whole. Publish the bundle again.',
  },
})
