import { grubModules } from './grub-modules.ts'

/** What the demo's and the test kit's systems are built for. */

export type TargetName = 'x86' | 'arm64'

export interface Target {
  /** As Node.js says it. */
  readonly arch: 'x64' | 'arm64'
  /** As Debian and OCI say it. */
  readonly debian: 'amd64' | 'arm64'
  readonly hardware: string
  /** The console's device. */
  readonly tty: string
  readonly kernelArgs: readonly string[]
  /** Arguments of `bistable disk` for each bootloader. */
  readonly disk: Readonly<Partial<Record<BootloaderName, () => Promise<readonly string[]>>>>
}

export type BootloaderName = 'grub' | 'grub-bios' | 'uboot'

export const TARGETS: Readonly<Record<TargetName, Target>> = {
  x86: {
    arch: 'x64',
    debian: 'amd64',
    hardware: 'qemu-x86_64',
    tty: 'ttyS0',
    // On a busy host the emulated timer is late, and the kernel would take it for broken.
    kernelArgs: ['no_timer_check'],
    disk: {
      grub: async () => [],
      'grub-bios': async () => ['--firmware', 'bios'],
      uboot: async () => ['--bootloader', 'uboot', '--arch', 'x86_64'],
    },
  },
  arm64: {
    arch: 'arm64',
    debian: 'arm64',
    hardware: 'qemu-arm64',
    tty: 'ttyAMA0',
    kernelArgs: [],
    disk: {
      grub: async () => ['--arch', 'arm64', '--grub-modules', await grubModules('arm64')],
      uboot: async () => ['--bootloader', 'uboot', '--arch', 'arm64'],
    },
  },
}
