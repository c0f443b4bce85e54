import { defineErrors } from '../../base/errors.ts'

/** Refusals about what outlives the slots: the schema of the data, and room and means to put them back. */
export const stateErrors = defineErrors({
  STATE_NEWER: {
    family: 'policy',
    meaning: 'The data were migrated, and the release is too old to read them.',
    next: "Install a release that reads them; 'bistable rollback --with-state' returns to the data of before, --force to the release alone.",
  },
  STATE_TOO_OLD: {
    family: 'policy',
    meaning: 'The release has no migration that begins with the data of this device.',
    next: 'Install a release in between first; it brings the data nearer.',
  },
  STATE_FILE_SYSTEM: {
    family: 'policy',
    meaning: 'The data partition is btrfs, and the release does not say that it can run from it.',
    next: 'Set state.btrfs in the system.json of the image, which needs the btrfs program.',
  },
  STATE_IN_MEMORY: {
    family: 'device',
    meaning: 'The data partition could not be mounted, so /data is in memory, and no release can be tried.',
    next: 'Repair the data partition or make a new file system on it, and reboot; docs/operations.md, "Recover".',
  },
  STATE_NO_SPACE: {
    family: 'storage',
    meaning: 'There is no room to keep what the migrations of the release change.',
    next: 'Make room on the data partition, or keep state.paths to what migrations change.',
  },
  STATE_SEED_MISSING: {
    family: 'input',
    meaning: 'The new image declares places or migrations that are not in it.',
    next: "Correct the image, which 'bistable lint' checks; nothing was armed.",
  },
  STATE_UNREADABLE: {
    family: 'input',
    meaning: 'The declaration in the new image, or the state that it is about, cannot be read.',
    next: "Check the image with 'bistable lint' and the data partition; nothing was armed.",
  },
  STATE_NO_SNAPSHOT: {
    family: 'device',
    meaning: 'There is no snapshot of the state from before the running release.',
    next: "Snapshots are made on a btrfs data partition before each update; 'bistable status' lists them.",
  },
  STATE_WRITE_FAILED: {
    family: 'storage',
    meaning: 'What the next start has to know of the state could not be written, or a snapshot not removed.',
    next: 'Look for a full or broken data partition; nothing of the state was changed.',
  },
})
