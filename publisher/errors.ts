import { defineErrors } from '../base/errors.ts'

/** What lint, build, sign, publish and disk refuse. Reading OCI images has its own table in publisher/oci. */
export const publisherErrors = defineErrors({
  DELTA_RELEASES: {
    family: 'usage',
    meaning: 'A patch was asked for between releases that no device moves between: of two products, or the same one.',
    next: 'Give an older and a newer release of one product.',
  },
  TOOL_MISSING: {
    family: 'environment',
    meaning: 'A program that this command runs is not installed.',
    next: 'Install the Debian package that the message names.',
  },
  TOOL_FAILED: {
    family: 'environment',
    meaning: 'A program that this command runs ended with a failure.',
    next: 'Read its last lines in the message; most often the disk is full.',
  },
  IMAGE_UNFIT: {
    family: 'input',
    meaning: 'The image cannot work as a release; every missing piece is listed.',
    next: 'Mend the image and run lint again.',
  },
  IMAGE_NO_KERNEL: {
    family: 'input',
    meaning: 'The image holds no kernel, or more than one.',
    next: 'Install exactly one kernel in the image: /boot/vmlinuz-VERSION or /usr/lib/modules/VERSION/vmlinuz.',
  },
  IMAGE_PATH_TAKEN: {
    family: 'input',
    meaning: 'A file to be added to the image would hide something that is not a directory, or lies behind a link.',
    next: 'Remove that path from the image, or build without adding it.',
  },
  IMAGE_FROM_FUTURE: {
    family: 'input',
    meaning: 'The image holds a file that is newer than the clock of this machine.',
    next: 'Set the clock, or cap the times with SOURCE_DATE_EPOCH.',
  },
  IMAGE_READBACK_DIFFERS: {
    family: 'internal',
    meaning: 'An image, read back, is not what it was made from.',
    next: 'Report this, with the image if you can; nothing was published.',
  },
  IMAGE_TOO_LARGE: {
    family: 'input',
    meaning: 'An image with its hash tree does not fit its slot.',
    next: 'Make the image smaller, or the slot larger if no device has been provisioned with the old size.',
  },
  DISK_FILE_SYSTEM: {
    family: 'usage',
    meaning: 'The release does not say that it can run from this file system of the data partition.',
    next: 'Set state.btrfs in the system.json of the image, which needs the btrfs program, or leave the option out.',
  },
  DISK_TOO_SMALL: {
    family: 'usage',
    meaning: 'The partitions do not fit the disk size that was asked for.',
    next: 'Give a larger --size, or leave it out.',
  },
  FAT_NAME_INVALID: {
    family: 'internal',
    meaning: 'A file meant for a FAT file system has a name that bootloaders may not find.',
    next: 'Report this.',
  },
  AGENT_PARTS_INVALID: {
    family: 'input',
    meaning: 'A file to be added to the image is missing, or is neither a file nor a folder.',
    next: "Run 'npm run build', and give files that exist.",
  },
  STATEMENT_INVALID: {
    family: 'input',
    meaning: 'The file to be signed is neither a statement that this program knows nor its envelope.',
    next: 'Give statement.json of a build, or an envelope made from it.',
  },
  PUBLISH_LOWER: {
    family: 'policy',
    meaning: 'The channel already announces this release number or a higher one.',
    next: 'Publish a release with a higher number.',
  },
  PUBLISH_PRODUCT: {
    family: 'policy',
    meaning: 'The channel belongs to another product.',
    next: 'Publish to another folder or channel.',
  },
  PUBLISH_BUSY: {
    family: 'environment',
    meaning: 'Another publisher is at work in the publish folder and does not come to an end.',
    next: 'Find the other one (it may wait for a PIN or a token) and let it end, then publish again.',
  },
  PUBLISH_ROOTS: {
    family: 'policy',
    meaning: 'The channel already announces a newer root than those given: devices would not hear of it any more.',
    next: 'Give the folder with all root statements as --roots.',
  },
  PUBLISH_CLOCK: {
    family: 'environment',
    meaning:
      "The channel file was issued later than this machine's clock says: devices that have seen it would take a new one for an old one.",
    next: 'Set the clock of this machine, or of the one that issued that file, then publish again.',
  },
  PUBLISH_CHANNEL_INVALID: {
    family: 'input',
    meaning: 'The channel file in the publish folder is not one that these roots believe.',
    next: 'Find out who wrote it; move it away to start the channel anew.',
  },
  PUBLISH_KEY: {
    family: 'authenticity',
    meaning: 'The fleet keys given are not enough for the newest root of the bundle.',
    next: 'Give as many of the fleet keys of that root as its threshold asks for.',
  },
  PUBLISH_DIRECTED: {
    family: 'usage',
    meaning: 'The bundle carries an assignment: every other device would refuse it.',
    next: "Publish the bundle that was packed without one; 'bistable assign' directs a device to it.",
  },
  PUBLISH_SEQUENCE: {
    family: 'policy',
    meaning: 'The publish folder holds an assignment of this device that the new one would not replace.',
    next: 'Give a higher --sequence, or none.',
  },
  PROVENANCE_DIFFERS: {
    family: 'authenticity',
    meaning: 'The provenance in the release is malformed, or says that other images were built than the release names.',
    next: 'Somebody changed the images after the build: find out who, then build and sign again.',
  },
  ROOTS_INVALID: {
    family: 'input',
    meaning: 'The folder of root statements is not one: N.json, consecutive versions.',
    next: 'Give the folder that the keys commands keep.',
  },
  SERVE_PORT: {
    family: 'environment',
    meaning: 'The address or port to listen on cannot be had.',
    next: 'Give another --port, --mqtt-port or --host, or stop the program that has it.',
  },
  OUTPUT_EXISTS: {
    family: 'usage',
    meaning: 'The output path already exists.',
    next: 'Give a new path, or remove the old one.',
  },
})
