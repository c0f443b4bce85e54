import { mkdir, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { systemCode } from '../../base/errors.ts'
import { type RunBounded, runBounded } from '../../bootloader/run-bounded.ts'

const TOOL_MS = 60_000
/** More folders that nobody can remove are no accident of ours. */
const MAX_STUCK = 1000

/**
 * Removes an /etc that is not needed any more. People make files immutable (`chattr +i resolv.conf`), which no rm removes: the
 * flag is taken off first, and what stays all the same is put aside, as the initramfs does. It must not keep a device from
 * every update to come.
 * @param run starts chattr, of e2fsprogs or busybox
 * @throws what rename throws
 */
export async function discard(folder: string, run: RunBounded = runBounded): Promise<void> {
  const remove = () => rm(folder, { recursive: true, force: true })
  // Which code an immutable file gives depends on the version of Node.js: whatever it is, the same is tried.
  try {
    await remove()
  } catch {
    await loosen(folder, run)
    await remove().catch(() => putAside(folder, join(dirname(folder), 'stuck')))
  }
}

/** Takes the flags off that keep a folder and what is in it from being removed or renamed. */
export async function loosen(folder: string, run: RunBounded = runBounded): Promise<void> {
  await run(['chattr', '-R', '-i', '-a', folder], '', TOOL_MS)
}

async function putAside(folder: string, stuck: string): Promise<void> {
  await mkdir(stuck, { recursive: true })
  for (let n = 1; ; n++) {
    try {
      await rename(folder, join(stuck, String(n)))
      return
    } catch (error) {
      if (!['ENOTEMPTY', 'EEXIST'].includes(systemCode(error) ?? '') || n >= MAX_STUCK) throw error
    }
  }
}
