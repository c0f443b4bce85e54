import { defineErrors } from '../base/errors.ts'

/** Refusals of add-ons: small signed extensions of /usr. */
export const addonErrors = defineErrors({
  ADDON_FORMAT: {
    family: 'input',
    meaning: 'The file is not an add-on, or is damaged.',
    next: 'Get the add-on again from where it was made.',
  },
  ADDON_INVALID: {
    family: 'input',
    meaning: 'The statement of an add-on has missing or wrong fields.',
    next: "Build it again with 'bistable addon build'.",
  },
  ADDON_CONTENT: {
    family: 'authenticity',
    meaning: 'The image of an add-on is not the one that was signed.',
    next: 'Get the add-on again from where it was made.',
  },
  ADDON_LAYOUT: {
    family: 'input',
    meaning:
      'The image of an add-on holds something that an add-on may not change, or lacks its extension-release file.',
    next: 'Put files below usr/ only, nothing below usr/lib/bistable, no devices.',
  },
  ADDON_LIBRARY: {
    family: 'input',
    meaning: 'A program of an add-on needs a shared library that neither the add-on nor its release has.',
    next: 'Put the library below usr/lib of the add-on, or build the program without it.',
  },
  ADDON_BASE: {
    family: 'policy',
    meaning: 'The add-on was made for other releases than the one that runs.',
    next: "Build it for this release: 'bistable addon build --base'; 'bistable status' shows the digest.",
  },
  ADDON_EXPIRED: {
    family: 'policy',
    meaning: 'The time of the add-on has passed.',
    next: 'Install a release that contains what it brought, or build it anew.',
  },
  ADDON_CONTAINED: {
    family: 'policy',
    meaning: 'The running release says that it contains what the add-on fixes.',
    next: 'Nothing: the add-on is not needed any more.',
  },
  ADDON_STATE: {
    family: 'device',
    meaning: 'There is no such add-on on the device, or there are as many as there may be.',
    next: "See 'bistable addon list'.",
  },
  ADDON_SPACE: {
    family: 'storage',
    meaning: 'The data partition has no room for the add-on.',
    next: "Make room on /data, or remove another add-on: 'bistable addon list'.",
  },
  ADDON_MOUNT: {
    family: 'device',
    meaning: 'An add-on could not be put over /usr, or taken away.',
    next: 'Read what the tool said; the system needs losetup, dmsetup, mount and the modules loop and overlay. A reboot starts afresh.',
  },
  ADDON_UNANSWERED: {
    family: 'device',
    meaning: 'The system started several times with the add-on over /usr, and the agent never came up.',
    next: 'Look what it changes that a start needs; after power cuts alone, apply it again.',
  },
  UNLOCK_PRODUCTION: {
    family: 'policy',
    meaning: 'The release is not declared for development, so its /usr stays read-only.',
    next: 'Use a debug add-on, or a development release ("development": true in system.json).',
  },
})
