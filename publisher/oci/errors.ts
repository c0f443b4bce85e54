import { defineErrors } from '../../base/errors.ts'

/** What reading and merging an image refuses: IMAGE_ codes are about the input as a whole, LAYER_ codes about one tar. */
export const ociErrors = defineErrors({
  IMAGE_REFERENCE_INVALID: {
    family: 'usage',
    meaning: 'An image reference or platform is not in a form that is understood.',
    next: 'Write oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], rootfs:FILE or docker://NAME.',
  },
  IMAGE_NOT_FOUND: {
    family: 'input',
    meaning: 'The image file or folder cannot be opened or read.',
    next: 'Check the path and that it can be read.',
  },
  IMAGE_UNKNOWN_FORM: {
    family: 'input',
    meaning: 'The file or folder is not an image in a form that is known.',
    next: 'Give an OCI layout, an oci-archive or docker-archive tar; for a plain file system tar write rootfs:FILE.',
  },
  IMAGE_ARCHIVE_INVALID: {
    family: 'input',
    meaning: 'The outer tar of an image archive is malformed.',
    next: 'Save the image again; unpack a compressed archive first.',
  },
  IMAGE_JSON_INVALID: {
    family: 'input',
    meaning: 'An index, manifest or config of the image is not JSON of the wanted shape.',
    next: 'Build or save the image again with a current tool.',
  },
  IMAGE_MEDIA_TYPE: {
    family: 'input',
    meaning: 'A media type is unknown, or does not fit what it labels.',
    next: 'Build the image again as an ordinary OCI or Docker image; treat its source with suspicion.',
  },
  IMAGE_BLOB_MISSING: {
    family: 'input',
    meaning: 'A manifest, config or layer that the image names is not there.',
    next: 'Copy the image again, all of it.',
  },
  IMAGE_DIGEST_MISMATCH: {
    family: 'authenticity',
    meaning: 'A part of the image does not have the size or digest that names it.',
    next: 'Copy the image again; if it repeats, the source is damaged or was changed.',
  },
  IMAGE_EXTERNAL_LAYER: {
    family: 'policy',
    meaning: 'The image points to content at an address outside itself.',
    next: 'Build the image so that it holds all its layers.',
  },
  IMAGE_PLATFORM_ABSENT: {
    family: 'input',
    meaning: 'The image has nothing for the platform that was asked for.',
    next: 'Choose one of the listed platforms with --platform.',
  },
  IMAGE_AMBIGUOUS: {
    family: 'input',
    meaning: 'More than one image fits what was asked for.',
    next: 'Name one of the listed images by its tag or platform.',
  },
  IMAGE_REGISTRY_FAILED: {
    family: 'transport',
    meaning: 'The image could not be copied from its registry.',
    next: 'Read what skopeo said in the message; check the name, the network and the login.',
  },
  IMAGE_SKOPEO_MISSING: {
    family: 'environment',
    meaning: 'The program skopeo, which copies images from registries, is not installed.',
    next: 'Install the Debian package skopeo, or give the image as a file.',
  },
  IMAGE_STORE_FAILED: {
    family: 'storage',
    meaning: 'The work folder could not be written or read.',
    next: 'Free space there, or give another work folder.',
  },
  IMAGE_FILE_TOO_LARGE: {
    family: 'input',
    meaning: 'A file of the image that is read whole is larger than anything that belongs in its place.',
    next: 'Find out what put this file into the image.',
  },
  LAYER_COMPRESSION: {
    family: 'input',
    meaning: 'A compressed layer is damaged, cut short, or not compressed as it says.',
    next: 'Build the image again.',
  },
  LAYER_HEADER: {
    family: 'input',
    meaning: 'A tar header is malformed, or two readers could read it differently.',
    next: 'Build the layer again with an ordinary tool; treat its source with suspicion.',
  },
  LAYER_TRUNCATED: {
    family: 'input',
    meaning: 'A tar ends before its end mark.',
    next: 'Copy or build the image again.',
  },
  LAYER_TRAILING: {
    family: 'input',
    meaning: 'Something other than zeros follows the end of a tar or of its compressed stream.',
    next: 'Build the layer again with an ordinary tool; treat its source with suspicion.',
  },
  LAYER_TYPE: {
    family: 'input',
    meaning: 'A tar entry is of a kind that images do not hold: sparse file, volume label, multi-volume part.',
    next: 'Build the layer again without it (GNU tar: no --sparse, no --label).',
  },
  LAYER_PATH: {
    family: 'input',
    meaning: 'An entry is named by an absolute path, or with empty, "." or ".." parts.',
    next: 'Build the layer again with plain relative names; treat its source with suspicion.',
  },
  LAYER_NAME: {
    family: 'input',
    meaning: 'A name or link target holds control bytes, is not UTF-8, is empty or is too long.',
    next: 'Rename that file in the image.',
  },
  LAYER_PARENT: {
    family: 'input',
    meaning: 'An entry stands below something that is not a directory, such as a symbolic link.',
    next: 'Build the layer so that it names the real directory.',
  },
  LAYER_LINK: {
    family: 'input',
    meaning: 'A hard link does not lead to a regular file that came before it in the image.',
    next: 'Build the layer again; put the link after its target.',
  },
  LAYER_WHITEOUT: {
    family: 'input',
    meaning: 'A name with the reserved prefix ".wh." is not a proper whiteout.',
    next: 'Rename that file; the prefix is reserved in image layers.',
  },
  LAYER_DUPLICATE: {
    family: 'input',
    meaning: 'One layer holds the same path twice.',
    next: 'Build the layer again so that each path stands in it once.',
  },
  LAYER_DEVICE: {
    family: 'policy',
    meaning: 'The image holds a device node or FIFO where the policy allows none.',
    next: 'Remove it from the image; devices are made at boot.',
  },
  LAYER_LIMIT: {
    family: 'policy',
    meaning: 'The image is over a limit: layers, entries, bytes, compression ratio, depth or header size.',
    next: 'Make the image smaller; if it is honest and must be so, raise that limit.',
  },
})
