import { readFile, realpath, stat } from 'node:fs/promises'
import { basename } from 'node:path'
import { systemReason } from '../base/errors.ts'
import type { BootBackend } from './backend.ts'
import { openWhole } from './bootstate.ts'
import { bootErrors } from './errors.ts'
import {
  type EnvPlace,
  type OwnCopy,
  type OwnEnvironment,
  ownEnvironmentBackend,
  parseFwEnvConfig,
} from './uboot-own.ts'

const MAX_CONFIG = 16 * 1024

/** Opens the environment that a fw_env.config names. Throws BOOT_ENV_CONFIG, BOOT_STATE_READ. */
export async function openOwnEnvironment(
  config: string,
  rest: Pick<OwnEnvironment, 'names' | 'counter'>,
): Promise<BootBackend> {
  const text = await readFile(config, 'utf8').catch((cause: unknown) => {
    throw bootErrors.BOOT_ENV_CONFIG(`${config}: ${systemReason(cause)}`, { cause })
  })
  if (text.length > MAX_CONFIG) throw bootErrors.BOOT_ENV_CONFIG(`${config} has ${text.length} characters`)
  const [first, second] = parseFwEnvConfig(text)
  const one = await openCopy(first)
  try {
    return ownEnvironmentBackend({ copies: [one, await openCopy(second)], ...rest })
  } catch (error) {
    await one.device.close()
    throw error
  }
}

async function openCopy({ device, offset, size }: EnvPlace): Promise<OwnCopy> {
  const opened = await openWhole(device)
  try {
    return { device: opened, offset: offset < 0 ? (await lengthOf(device)) + offset : offset, size }
  } catch (error) {
    await opened.close()
    throw error
  }
}

/** Bytes of a file or a block device. */
async function lengthOf(device: string): Promise<number> {
  const found = await stat(device)
  if (found.isFile()) return found.size
  const sectors = await readFile(`/sys/class/block/${basename(await realpath(device))}/size`, 'utf8').catch(() => '')
  if (!/^\d+\s*$/.test(sectors)) throw bootErrors.BOOT_ENV_CONFIG(`the kernel tells no size for ${device}`)
  return Number(sectors) * 512
}
