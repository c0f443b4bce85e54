import { defineErrors } from '../base/errors.ts'

export const initramfsErrors = defineErrors({
  INITRAMFS_TOOL_MISSING: {
    family: 'input',
    meaning: 'The image lacks a program that the initramfs needs.',
    next: 'Install the named program in the image (Debian: busybox-static, dmsetup).',
  },
  INITRAMFS_LIBRARY_MISSING: {
    family: 'input',
    meaning: 'A shared library that a program in the initramfs needs is not in the image.',
    next: 'Install the named library in the image, or a static build of the program.',
  },
  INITRAMFS_ELF: {
    family: 'input',
    meaning: 'A program for the initramfs is not an ELF file that this builder can read.',
    next: 'Check that the named file is a little-endian ELF program for the device.',
  },
  INITRAMFS_KERNEL: {
    family: 'input',
    meaning: 'The kernel modules of the image cannot be told: none, more than one kernel, or no modules.dep.',
    next: 'Keep one kernel in the image and run depmod for it.',
  },
  INITRAMFS_MODULE_MISSING: {
    family: 'input',
    meaning: 'A kernel module that the initramfs needs is neither in the image nor built into its kernel.',
    next: 'Install the kernel package that has the module, or take the name out of system.json.',
  },
  INITRAMFS_MODULE_DAMAGED: {
    family: 'input',
    meaning: 'A compressed kernel module cannot be unpacked.',
    next: 'Reinstall the kernel package in the image.',
  },
  INITRAMFS_PATH: {
    family: 'usage',
    meaning: 'A path declared for the initramfs has a form that its script cannot take.',
    next: 'Use absolute paths without spaces, quotes or "..", owned paths under /etc.',
  },
  INITRAMFS_TOO_LARGE: {
    family: 'input',
    meaning: 'A file for the initramfs, or the whole of it, is larger than any sensible one.',
    next: 'Check what the named file is.',
  },
})
