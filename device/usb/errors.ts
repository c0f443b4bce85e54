import { defineErrors } from '../../base/errors.ts'

/** Sticks: what can be wrong before a bundle is opened. */
export const usbErrors = defineErrors({
  USB_NOT_A_STICK: {
    family: 'usage',
    meaning: 'The device named is not a disk that may be taken for a stick.',
    next: "Give the device of the stick, as /dev/sdb1; 'bistable usb' without a name finds it.",
  },
  USB_NONE: {
    family: 'device',
    meaning: 'There is no stick.',
    next: 'Plug one in. Only removable or USB disks count; any other must be named.',
  },
  USB_FILE_SYSTEM: {
    family: 'input',
    meaning: 'The stick has no file system that this device reads.',
    next: 'Format the stick with FAT, exFAT or ext4 and copy the bundle to it.',
  },
  USB_MOUNT: {
    family: 'transport',
    meaning: 'The file system of the stick cannot be mounted.',
    next: 'Check the stick on another machine; the kernel of this device must have the file system.',
  },
  USB_NO_BUNDLE: {
    family: 'input',
    meaning: 'The stick holds no bundle and no add-on.',
    next: "Copy a file that ends in .bundle or .addon to the stick's top folder, or to a folder named bistable.",
  },
  USB_RESULT: {
    family: 'storage',
    meaning: 'The result could not be written to the stick.',
    next: 'Nothing, if the stick is write-protected; status on the device says the same as the file would.',
  },
})
