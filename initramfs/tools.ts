/** The programs in the initramfs: where they may stand in an image, and the busybox applets that `init` calls. */

export interface Tool {
  readonly name: string
  /** In order of preference, without leading slash. */
  readonly paths: readonly string[]
  /** Left out when the image has none. */
  readonly optional?: boolean
}

export const TOOLS: readonly Tool[] = [
  { name: 'busybox', paths: ['bin/busybox', 'usr/bin/busybox', 'sbin/busybox', 'usr/sbin/busybox'] },
  { name: 'dmsetup', paths: ['sbin/dmsetup', 'usr/sbin/dmsetup', 'bin/dmsetup', 'usr/bin/dmsetup'] },
  // Repairs a data partition that does not mount.
  { name: 'e2fsck', paths: ['sbin/e2fsck', 'usr/sbin/e2fsck'], optional: true },
]

/** Where the data partition may be btrfs: subvolumes and snapshots. */
export const BTRFS_TOOL: Tool = { name: 'btrfs', paths: ['bin/btrfs', 'usr/bin/btrfs', 'sbin/btrfs', 'usr/sbin/btrfs'] }

/** Everything that `initramfs/init` and `state.sh` call by name and that its shell does not have built in. */
export const APPLETS = [
  ...[
    'cat',
    'chmod',
    'chown',
    'chroot',
    'cp',
    'cttyhack',
    'cut',
    'dd',
    'dirname',
    'dmesg',
    'find',
    'grep',
    'head',
    'insmod',
    'ls',
    'mkdir',
  ],
  ...[
    'mount',
    'mv',
    'printf',
    'readlink',
    'reboot',
    'rm',
    'sed',
    'setsid',
    'sh',
    'sha256sum',
    'sleep',
    'sort',
    'stat',
    'switch_root',
  ],
  ...['sync', 'tail', 'timeout', 'tr', 'umount', 'watchdog'],
] as const
