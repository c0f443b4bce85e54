import { existsSync } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { LabError } from './lab-error.ts'

/** The machines that the emulator can be: processor, board, firmware. */

export interface MachineProfile {
  /** The emulator's program. */
  readonly program: string
  /** As QEMU's `-machine`. */
  readonly machine: string
  readonly cpu: string
  /** Node.js's name of the processor: kvm runs only what this machine is. */
  readonly arch: 'x64' | 'arm64'
  /** Arguments that put the firmware in place; `scratch` is a folder for this run. @throws LabError when it is not here */
  firmware(scratch: string): Promise<readonly string[]>
  /** What a stick is plugged into at run time, and the arguments that make it. */
  readonly socket: { readonly bus: string; readonly args: readonly string[] }
}

const OVMF = [
  { code: '/usr/share/OVMF/OVMF_CODE_4M.fd', vars: '/usr/share/OVMF/OVMF_VARS_4M.fd' },
  { code: '/usr/share/OVMF/OVMF_CODE.fd', vars: '/usr/share/OVMF/OVMF_VARS.fd' },
]

const AAVMF = [{ code: '/usr/share/AAVMF/AAVMF_CODE.fd', vars: '/usr/share/AAVMF/AAVMF_VARS.fd' }]

const uefi =
  (known: typeof OVMF, debianPackage: string) =>
  async (scratch: string): Promise<readonly string[]> => {
    const found = known.find(({ code, vars }) => existsSync(code) && existsSync(vars))
    if (found === undefined) throw new LabError(`no UEFI firmware here: install the Debian package ${debianPackage}`)
    const vars = join(scratch, 'vars.fd')
    await copyFile(found.vars, vars)
    return [
      ...['-drive', `if=pflash,format=raw,unit=0,readonly=on,file=${found.code}`],
      ...['-drive', `if=pflash,format=raw,unit=1,file=${vars}`],
    ]
  }

const uboot = (file: string) => async (): Promise<readonly string[]> => {
  if (!existsSync(file)) throw new LabError(`no ${file} here: install the Debian package u-boot-qemu`)
  return ['-bios', file]
}

/**
 * The plainest 64-bit processor. Vector instructions cost the emulator more than they give: OpenSSL's SHA-256 runs at 72 MB/s on
 * `max` and at 109 on this one (QEMU 7.2, TCG), and a change of process has less to save.
 */
const PLAIN_X86 = 'qemu64'

const PCIE_SOCKET = { bus: 'socket', args: ['-device', 'pcie-root-port,id=socket,chassis=1'] }

export const MACHINES = {
  'x86-uefi': {
    program: 'qemu-system-x86_64',
    machine: 'q35',
    cpu: PLAIN_X86,
    arch: 'x64',
    firmware: uefi(OVMF, 'ovmf'),
    socket: PCIE_SOCKET,
  },
  'x86-bios': {
    program: 'qemu-system-x86_64',
    machine: 'q35',
    cpu: PLAIN_X86,
    arch: 'x64',
    // SeaBIOS, the emulator's own.
    firmware: async () => [],
    socket: PCIE_SOCKET,
  },
  'x86-uboot': {
    program: 'qemu-system-x86_64',
    // Debian builds its U-Boot for this board, and of its two only the 32-bit one starts a kernel.
    machine: 'pc',
    cpu: 'max',
    arch: 'x64',
    firmware: uboot('/usr/lib/u-boot/qemu-x86/u-boot.rom'),
    socket: { bus: 'pci.0', args: [] },
  },
  'arm64-uefi': {
    program: 'qemu-system-aarch64',
    machine: 'virt',
    cpu: 'cortex-a57',
    arch: 'arm64',
    firmware: uefi(AAVMF, 'qemu-efi-aarch64'),
    socket: PCIE_SOCKET,
  },
  'arm64-uboot': {
    program: 'qemu-system-aarch64',
    machine: 'virt',
    // The newest processor costs the emulator more than it gives.
    cpu: 'cortex-a57',
    arch: 'arm64',
    firmware: uboot('/usr/lib/u-boot/qemu_arm64/u-boot.bin'),
    socket: PCIE_SOCKET,
  },
} as const satisfies Readonly<Record<string, MachineProfile>>

export type MachineName = keyof typeof MACHINES
