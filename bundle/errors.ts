import { defineErrors } from '../base/errors.ts'

/** What can be wrong with a bundle, its parts, and the source it comes from. */
export const bundleErrors = defineErrors({
  BUNDLE_NOT_A_BUNDLE: {
    family: 'input',
    meaning: 'The file does not start as a bundle does.',
    next: 'Check that this is the right file: a server or a captive portal may have answered with a web page.',
  },
  BUNDLE_FORMAT_UNKNOWN: {
    family: 'input',
    meaning: 'The bundle is of a format version this program does not know.',
    next: 'Update bistable, or publish the release in format version 1.',
  },
  BUNDLE_HEADER: {
    family: 'input',
    meaning: 'A member header is not the one expected at this place.',
    next: 'The file is damaged or was not made by bistable; fetch it again.',
  },
  BUNDLE_TOO_LARGE: {
    family: 'input',
    meaning: 'A member of the bundle is empty, or larger than the format allows.',
    next: 'Publish the release again within the limits of docs/format.md.',
  },
  BUNDLE_PADDING: {
    family: 'input',
    meaning: 'Bytes that must be zero are not.',
    next: 'The file is damaged; fetch it again.',
  },
  BUNDLE_TRUNCATED: {
    family: 'input',
    meaning: 'The bundle ends early.',
    next: 'The copy or the download was cut short; fetch it again.',
  },
  BUNDLE_TRAILING_BYTES: {
    family: 'input',
    meaning: 'There are bytes behind the end of the bundle.',
    next: 'Something was appended to the file; fetch the original.',
  },
  BUNDLE_DIGEST: {
    family: 'authenticity',
    meaning: 'The bytes of a chunk index, an attachment or a chunk do not have the digest that was signed.',
    next: 'The file is damaged or was changed; fetch it again.',
  },
  BUNDLE_ROOT_HASH: {
    family: 'authenticity',
    meaning: 'All chunks are as their index says, but together they are not the image that was signed.',
    next: 'The release was built wrongly; build and sign it again.',
  },
  BUNDLE_INDEX_INVALID: {
    family: 'input',
    meaning: 'A chunk index breaks a rule of the format, or does not fit its image.',
    next: 'Build the release again with a matching version of bistable.',
  },
  BUNDLE_ROOTS: {
    family: 'authenticity',
    meaning: 'The root chain in the bundle does not serve its release: wrong name, or older than the release asks for.',
    next: 'Publish the release again with the newest root statement.',
  },
  BUNDLE_PRODUCT: {
    family: 'authenticity',
    meaning: 'The release names another product than the root statement that it is signed under.',
    next: 'Sign the release with the keys of its own product.',
  },
  BUNDLE_EPOCH: {
    family: 'authenticity',
    meaning: 'The release claims an epoch that no root statement has opened.',
    next: 'Open the epoch with a new root statement first; if nobody did this on purpose, suspect the release key.',
  },
  BUNDLE_ATTACHMENT: {
    family: 'input',
    meaning: 'An attachment is missing, or does not unpack to the size that was signed.',
    next: 'Build the release again with this attachment.',
  },
  BUNDLE_PARTS: {
    family: 'input',
    meaning: 'The parts to be written are not those that the signed statement names.',
    next: 'Sign and publish the same build folder that was built; build again if its files were changed.',
  },
  BUNDLE_WRITE: {
    family: 'storage',
    meaning: 'A file could not be written.',
    next: 'Check the space and the permissions of the target folder, then run the command again.',
  },
  BUILD_FOLDER: {
    family: 'input',
    meaning: 'A build folder lacks a file or holds one that is out of bounds.',
    next: 'Run the build again.',
  },
  IMAGE_LENGTH: {
    family: 'input',
    meaning: 'An image is empty or not a whole number of 4096-byte blocks.',
    next: 'Pad the image with zeros to a multiple of 4096 bytes.',
  },
  IMAGE_BOUNDARIES: {
    family: 'input',
    meaning: 'The cut boundaries of an image are not ascending positions inside it.',
    next: 'This is a defect of the image builder; report it.',
  },
  RELEASE_INVALID: {
    family: 'input',
    meaning: 'A release statement has missing or malformed fields.',
    next: 'Correct the named fields and build the release again.',
  },
  RELEASE_CRITICAL: {
    family: 'policy',
    meaning: 'The release statement depends on a field that this version of bistable does not know.',
    next: 'Install a release that carries a newer agent first.',
  },
  RELEASE_WRONG_PRODUCT: {
    family: 'policy',
    meaning: 'The release is for another product.',
    next: 'Use a bundle of this product.',
  },
  RELEASE_WRONG_HARDWARE: {
    family: 'policy',
    meaning: 'The release does not run on this hardware.',
    next: 'Use a bundle that lists this hardware.',
  },
  RELEASE_BELOW_FLOOR: {
    family: 'policy',
    meaning: 'The release is older than this device accepts.',
    next: 'Publish the wanted content under a new, higher number.',
  },
  RELEASE_TOO_FAR_AHEAD: {
    family: 'policy',
    meaning: 'The counter of the release is implausibly far above the one installed.',
    next: 'Suspect the release key. If this is on purpose, open a new epoch with a root statement.',
  },
  FRESHNESS_INVALID: {
    family: 'input',
    meaning: 'A freshness statement has missing or malformed fields.',
    next: 'Publish the channel again.',
  },
  ASSIGNMENT_INVALID: {
    family: 'input',
    meaning: 'An assignment has missing or malformed fields.',
    next: "Make it again with 'bistable assign'.",
  },
  ASSIGNMENT_CRITICAL: {
    family: 'policy',
    meaning: 'The assignment depends on a field that this version of bistable does not know.',
    next: 'Assign a release that carries a newer agent first.',
  },
  ASSIGNMENT_RELEASE: {
    family: 'authenticity',
    meaning: 'The assignment is for another release or product than what it stands with.',
    next: 'Assign the release that is meant; a bundle carries only an assignment of its own release.',
  },
  ZSTD_INVALID: {
    family: 'input',
    meaning: 'Compressed bytes are damaged, cut short, or need more memory than allowed.',
    next: 'The file is damaged; fetch it again.',
  },
  ZSTD_LENGTH: {
    family: 'input',
    meaning: 'Compressed bytes do not unpack to the announced length.',
    next: 'Build the release again.',
  },
  ZSTD_TRAILING: {
    family: 'input',
    meaning: 'There are bytes behind the end of a compressed frame.',
    next: 'Build the release again.',
  },
  SOURCE_OPEN: {
    family: 'storage',
    meaning: 'A file or block device could not be opened.',
    next: 'Check the path and the permissions.',
  },
  SOURCE_READ: {
    family: 'storage',
    meaning: 'A file or block device could not be read, or became shorter while it was read.',
    next: 'Check the medium and its cable; copy the file again.',
  },
})
