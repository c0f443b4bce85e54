import { defineErrors } from '../base/errors.ts'

export const bootErrors = defineErrors({
  BOOT_STATE_INVALID: {
    family: 'boot',
    meaning:
      'A boot state breaks its own rules (a trial equal to the primary, tries without a trial, a number out of range).',
    next: 'This is a defect of the caller; report it with the message.',
  },
  BOOT_ARM_ACTIVE: {
    family: 'boot',
    meaning: 'The primary slot cannot be armed: it boots anyway, and a trial is always the other slot.',
    next: 'Arm the inactive slot; see bistable status for which one that is.',
  },
  BOOT_COMMIT_NOT_TRIED: {
    family: 'boot',
    meaning: 'Only the slot that is on trial and was booted can be committed.',
    next: 'See bistable status for the running slot and what is on trial.',
  },
  BOOT_REFUSE_NOT_TRIED: {
    family: 'boot',
    meaning: 'Only the slot that is on trial can be refused.',
    next: 'See bistable status for what is on trial.',
  },
  BOOT_NO_SPARE: {
    family: 'boot',
    meaning:
      'The other slot does not hold a complete release that was once committed, so there is nothing to return to.',
    next: 'Install a release instead; bistable status shows what each slot holds.',
  },
  BOOT_GENERATION_SPENT: {
    family: 'boot',
    meaning: 'The generation number of the boot state has reached its last value.',
    next: 'Make the boot state anew with a fresh image of its partition.',
  },
  BOOT_STATE_LAYOUT: {
    family: 'boot',
    meaning: 'The boot state partition does not have the one layout that the bootloader and the agent share.',
    next: "Run 'bistable repair': it makes the partition whole in place.",
  },
  BOOT_STATE_SIZE: {
    family: 'boot',
    meaning: 'The boot state partition is smaller than the boot state.',
    next: 'Check that the path is the bootstate partition, and the partition table: it takes 1 MiB.',
  },
  BOOT_STATE_READ: {
    family: 'boot',
    meaning: 'The boot state partition cannot be opened or read.',
    next: 'Check the device path, permissions and the kernel log for disk errors.',
  },
  BOOT_STATE_WRITE: {
    family: 'boot',
    meaning: 'The boot state could not be written; the state from before still counts.',
    next: 'Check the kernel log for disk errors and whether the disk is read-only.',
  },
  BOOT_STATE_NOT_STORED: {
    family: 'boot',
    meaning: 'The boot state was written without an error, but reading it back gives something else.',
    next: 'The storage loses writes: replace it. The next boot follows the last state that reads back.',
  },
  BOOT_COMMAND_FAILED: {
    family: 'boot',
    meaning: 'The program that keeps the boot state failed, took too long, or gave an answer that is not understood.',
    next: 'Run the program by hand with the question of docs/backends.md; correct it, or `boot` in places.json.',
  },
  BOOT_ENV_CONFIG: {
    family: 'usage',
    meaning:
      "The fw_env.config of the board's own U-Boot environment names no pair of copies that can be written safely.",
    next: "Give the board's U-Boot a redundant environment on a block device; for raw flash, a program of kind 'command'.",
  },
  BOOT_FLOOR_INVALID: {
    family: 'boot',
    meaning: 'The floor file is torn or was altered: its checksum does not match.',
    next: 'The agent writes it anew from its records at its next start.',
  },
  BOOT_CFG_INVALID: {
    family: 'input',
    meaning: 'A value for boot.cfg has a form that the bootloader would not read back.',
    next: 'Use printable ASCII without backslashes in kernel arguments, and EPOCH.COUNTER as the release.',
  },
  BOOT_IMAGE_DAMAGED: {
    family: 'boot',
    meaning: 'The boot image of a slot cannot be read, so its kernel cannot be put where the bootloader finds it.',
    next: "Install the release again; 'bistable verify' says what is wrong with the slot.",
  },
  BOOT_DISK_TABLE: {
    family: 'boot',
    meaning: 'The partition that the firmware shall start from is not in the partition table of the disk.',
    next: 'Check the partition names of the disk: boot-a and boot-b, once each.',
  },
  BOOT_TOOL_MISSING: {
    family: 'environment',
    meaning: 'A tool that builds the bootloader image is missing or failed.',
    next: 'Install grub-common and grub-efi-amd64-bin.',
  },
})
