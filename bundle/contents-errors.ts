import { defineErrors } from '../base/errors.ts'

/** Refusals of everything that looks into a root file system: inventory, package lists, comparison. */
export const contentsErrors = defineErrors({
  INVENTORY_PATH: {
    family: 'input',
    meaning: 'A path of the image contains control characters, which an inventory cannot hold.',
    next: 'Rename the file in the image and build again.',
  },
  INVENTORY_INVALID: {
    family: 'input',
    meaning: 'An inventory is not in its one exact form.',
    next: 'Build the release again with a matching version of bistable.',
  },
  PACKAGES_INVALID: {
    family: 'input',
    meaning: 'A package database in the image is malformed.',
    next: 'Look at the named file in the image; the package manager that wrote it may have been interrupted.',
  },
  PACKAGES_TOO_LARGE: {
    family: 'input',
    meaning: 'A package database in the image is larger than is read.',
    next: 'Check that the named file is really a package database.',
  },
  DIFF_INPUT: {
    family: 'input',
    meaning: 'A file given for comparison is neither a bundle nor a SquashFS image.',
    next: 'Give two bundles, two SquashFS images, or one of each.',
  },
})
