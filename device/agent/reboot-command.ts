import { failureFrom } from './core.ts'
import type { Ports } from './ports.ts'

/**
 * What reboots this system.
 * @param forced past init, by the kernel: systemctl(1), reboot of busybox and sysvinit
 */
export async function rebootCommand(
  ports: Pick<Ports, 'systemd' | 'boot' | 'say'>,
  forced: boolean,
): Promise<[string, ...string[]]> {
  if (!ports.systemd) return forced ? ['reboot', '-f'] : ['reboot']
  return ['systemctl', 'reboot', ...(forced ? ['--force', '--force'] : await argumentFor(ports))]
}

/** Only systemd hands an argument on; without it the reboot leads to the committed slot and the trial stays armed. */
async function argumentFor({ boot, say }: Pick<Ports, 'boot' | 'say'>): Promise<readonly string[]> {
  try {
    const argument = await boot.rebootArgument()
    return argument === undefined ? [] : [`--reboot-argument=${argument}`]
  } catch (error) {
    say(`bistable: the bootloader cannot be told of the try: ${failureFrom(error).message}`)
    return []
  }
}
