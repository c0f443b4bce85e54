import { defineErrors } from '../base/errors.ts'

/** The agent's refusals: configuration, records, channel, health, policies, control socket. Other rooms have their own. */
export const deviceErrors = defineErrors({
  CONFIG_MISSING: {
    family: 'environment',
    meaning: 'The file that names this product and its hardware is not there.',
    next: 'Run this on a device made by bistable; the image carries /usr/lib/bistable/system.json.',
  },
  CONFIG_INVALID: {
    family: 'usage',
    meaning: 'A configuration file has unknown, missing or wrong fields.',
    next: 'Correct every field named; docs/operations.md lists them.',
  },
  AGENT_NOT_A_DEVICE: {
    family: 'environment',
    meaning: 'The running system was not started from a slot.',
    next: 'Run this on a device that was booted through bistable; see /proc/cmdline for bistable.slot.',
  },
  AGENT_NEEDS_ROOT: {
    family: 'environment',
    meaning: 'Only root may do this.',
    next: 'Run the command as root.',
  },
  AGENT_BUSY: {
    family: 'device',
    meaning: 'Another command or the agent is at work on this device.',
    next: "Wait for it, or stop it with 'bistable cancel'.",
  },
  AGENT_CANCELLED: {
    family: 'device',
    meaning: 'The work was stopped on request.',
    next: 'Run it again when wanted; what was already written is kept and checked again.',
  },
  AGENT_IDLE: {
    family: 'device',
    meaning: 'There is nothing to cancel.',
    next: "Nothing: 'bistable status' shows the present state.",
  },
  AGENT_STATE: {
    family: 'device',
    meaning: 'The command does not fit the present state.',
    next: "See 'bistable status' for the state and what it allows.",
  },
  REPAIR_UNDECIDED: {
    family: 'device',
    meaning: 'The boot state is lost, and nothing on the device says for certain which slot was primary.',
    next: "Find out which slot is good (the running one came up: see 'bistable status'), then 'bistable repair --slot a|b'.",
  },
  REPAIR_UNSUPPORTED: {
    family: 'device',
    meaning: 'The bootloader of this device keeps its boot state where it cannot be repaired from here.',
    next: "Use the bootloader's own tools; docs/operations.md, table of bootloaders.",
  },
  AGENT_STALLED: {
    family: 'transport',
    meaning: 'An operation made no progress within its time limit.',
    next: 'Check the network or the medium; the next attempt goes on from what is there.',
  },
  START_TROUBLE: {
    family: 'storage',
    meaning: 'The initramfs brought the system up without something that the data partition could not give.',
    next: 'Read what it says; make room on the data partition or check it, and reboot.',
  },
  AGENT_STUCK: {
    family: 'device',
    meaning: 'An operation that was stopped did not end, so the agent ends and is started again.',
    next: 'Look for a disk or a mount that does not answer; the next attempt goes on from what is there.',
  },
  AGENT_MEMORY: {
    family: 'device',
    meaning: 'There was not enough memory for an operation.',
    next: 'Find out what takes the memory of this device; the next attempt goes on from what is there.',
  },
  HOOK_REFUSED: {
    family: 'policy',
    meaning: 'A hook of the image or the device said no to the next step.',
    next: 'Read what the hook said; it is asked again at the next attempt.',
  },
  HOOK_TIMEOUT: {
    family: 'device',
    meaning: 'The hooks before a step did not end within their time, so the step was not taken.',
    next: 'Make the hook quicker, or raise policy.hookSeconds.',
  },
  HOOK_FAILED: {
    family: 'device',
    meaning: 'A hook after a step failed; the step itself was taken.',
    next: 'Read what the hook said; what it should have done has to be done by hand.',
  },
  POLICY_WINDOW: {
    family: 'policy',
    meaning: 'The maintenance window for this step is not open.',
    next: "Wait for it, or do it by hand: 'bistable install' and 'bistable reboot' heed no window.",
  },
  POLICY_CLOCK: {
    family: 'policy',
    meaning: 'A step has a maintenance window, and the clock cannot be right, so nobody can say whether it is open.',
    next: 'Set the clock, or do it by hand.',
  },
  POLICY_METERED: {
    family: 'policy',
    meaning: 'The step may not use a link that costs by the byte.',
    next: 'Wait for another link, or do it by hand.',
  },
  POLICY_POWER: {
    family: 'policy',
    meaning: 'The step waits for mains, or for a fuller battery.',
    next: 'Connect the device to its supply, or do it by hand.',
  },
  POLICY_SPREAD: {
    family: 'policy',
    meaning: 'The step waits for the place of this device in the spread of the fleet.',
    next: 'Wait for it, or do it by hand.',
  },
  AGENT_ANSWER: {
    family: 'internal',
    meaning: 'The control socket gave an answer that is not understood.',
    next: 'Check that the agent and the command line are of one release; restart the agent.',
  },
  RECORD_INVALID: {
    family: 'storage',
    meaning: 'A state record is torn or damaged.',
    next: 'Nothing: the other record is used and this one is rewritten; check the disk if it happens again.',
  },
  RECORD_ROOTS: {
    family: 'storage',
    meaning: 'A stored root statement is missing or damaged, so the trust recorded cannot be rebuilt.',
    next: 'Install a bundle: it carries the whole root chain.',
  },
  CHANNEL_UNSET: {
    family: 'usage',
    meaning: 'No channel is configured.',
    next: 'Give --url, or set agent.channel in /etc/bistable/agent.json.',
  },
  CHANNEL_WRONG: {
    family: 'policy',
    meaning: 'The channel file is for another product.',
    next: 'Correct the channel address of this device.',
  },
  CHANNEL_EXPIRED: {
    family: 'policy',
    meaning: 'The channel file is authentic but too old to be believed.',
    next: 'Publish the channel again; check the clock of the device.',
  },
  CHANNEL_FUTURE: {
    family: 'policy',
    meaning: 'The channel file was issued in the future of a synchronised clock.',
    next: 'Check the clock of the machine that publishes.',
  },
  CHANNEL_REPLAYED: {
    family: 'policy',
    meaning: 'The channel file is older than one already seen.',
    next: 'Find out why the server offers an old file: a stale mirror, a cache, or an attacker.',
  },
  CHANNEL_BUNDLE: {
    family: 'authenticity',
    meaning: 'The bundle at the announced address is not the release that the channel announced.',
    next: 'Publish the channel again; check caches between the server and the device.',
  },
  ASSIGNMENT_OTHER_DEVICE: {
    family: 'policy',
    meaning: 'The assignment is for another device.',
    next: "Assign the release to this device; 'bistable status' shows its id.",
  },
  ASSIGNMENT_REPLAYED: {
    family: 'policy',
    meaning: 'An assignment with a higher sequence, or another one with the same, was accepted before.',
    next: 'Assign with a higher sequence; if nobody made two, find out who offers old files.',
  },
  ASSIGNMENT_EXPIRED: {
    family: 'policy',
    meaning: 'The assignment in the bundle has expired.',
    next: 'Check the clock of this device, or assign again.',
  },
  ASSIGNMENT_EARLY: {
    family: 'policy',
    meaning: 'The time from which the assignment counts has not come, or cannot be known to have come.',
    next: 'Wait for it; without a clock, assign without a start time.',
  },
  RELEASE_BLOCKED: {
    family: 'policy',
    meaning: 'This release failed on this device before and is not tried again by itself.',
    next: 'Publish a corrected release, or give --force to try this one once more.',
  },
  ROLLBACK_NO_SPARE: {
    family: 'device',
    meaning: 'The other slot holds no release that was once committed here.',
    next: 'Install a release instead.',
  },
  ROLLBACK_FLOOR: {
    family: 'policy',
    meaning: 'The release in the other slot is older than the security floor.',
    next: 'Publish the old content under a new number and install that.',
  },
  VERIFY_NO_RELEASE: {
    family: 'device',
    meaning: 'Nothing is known about the content of this slot.',
    next: 'Install a release into it first.',
  },
  HEALTH_FAILED: {
    family: 'device',
    meaning: 'A required health check did not pass.',
    next: "See the results with 'bistable health --json' and the check's own output.",
  },
  COMMIT_HELD: {
    family: 'device',
    meaning: 'The release is healthy, and its commit waits for a person; when nobody commits in time it is given up.',
    next: "Run 'bistable commit' to keep it, 'bistable reboot' to wait for the next try, or nothing to go back.",
  },
  AGENT_INTERRUPTED: {
    family: 'device',
    meaning: 'An install was cut short, by a power cut or a stopped agent, before anything was armed.',
    next: 'Install again; what was already written is kept and checked.',
  },
  TRY_TRIES_SPENT: {
    family: 'device',
    meaning: 'A new release used up its tries without ever being committed, and left no reason.',
    next: 'Look at the console of a try: a panic or a hang before the agent starts leaves no other trace.',
  },
  TRY_INITRAMFS: {
    family: 'device',
    meaning: 'The initramfs gave up a boot and stored why.',
    next: 'Read the stage in the message: a root hash that does not match means damaged content.',
  },
  TRY_COUNTER_UNWRITABLE: {
    family: 'boot',
    meaning: 'The bootloader could not write its try counter, so the old slot was booted.',
    next: 'Check the bootstate partition for write errors.',
  },
  TRY_STATE_UNREADABLE: {
    family: 'boot',
    meaning: 'The boot state could not be read.',
    next: 'Check the bootstate partition; the next install writes it anew.',
  },
  TRY_PRIMARY_BROKEN: {
    family: 'boot',
    meaning: 'The primary slot was started several times and never came up, so the spare was booted.',
    next: 'Install a release: it rewrites the broken slot.',
  },
  TRY_IMAGE_UNREADABLE: {
    family: 'boot',
    meaning: 'The bootloader could not load kernel and initramfs of the slot it wanted.',
    next: 'Install a release: it rewrites the broken slot.',
  },
  REBOOT_FAILED: {
    family: 'environment',
    meaning: 'The reboot command failed or had no effect.',
    next: 'Reboot the device by other means; the armed release is tried at the next boot.',
  },
})
