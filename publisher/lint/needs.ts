import type { InitramfsNeeds } from './lint.ts'

/** What our initramfs takes from every image; the image's own `modules` come on top. */
export const INITRAMFS_NEEDS: InitramfsNeeds = {
  modules: ['dm_mod', 'dm_verity', 'squashfs', 'ext4'],
  programs: [
    ['bin/busybox', 'usr/bin/busybox', 'sbin/busybox', 'usr/sbin/busybox'],
    ['sbin/dmsetup', 'usr/sbin/dmsetup'],
  ],
}
