import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { noise } from '../bundle/tools.ts'
import { makeBundle } from '../helpers/bundle.ts'
import { have, run } from '../helpers/run.ts'
import { signedRoot } from '../keys/helpers.ts'
import { putIntoExfat } from './exfat.ts'
import { startUsbVm } from './usb-vm.ts'

/** exFAT sticks on an emulated USB controller, driven by a real kernel's exfat; and what is left of their file systems. */

const ready = have('qemu-system-x86_64', 'setpriv', 'mkfs.exfat', 'fsck.exfat', 'cpio', 'zstd', 'depmod')
const LIMIT_MS = 180_000

test.skipIf(!ready)(
  'an exFAT stick: pulled in mid-install it goes on when it is plugged in again, takes the result, and stays clean',
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'bistable-exfat-'))
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
    const bundle = await makeBundle(folder, 'release', { boot: noise(1 << 20), rootfs: noise(8 << 20, 'rootfs') })
    const made = (name: string) => {
      const path = join(folder, name)
      writeFileSync(path, '')
      truncateSync(path, 32 << 20)
      run('mkfs.exfat', [path])
      return path
    }
    const stick = made('stick.img')
    putIntoExfat(stick, 'release.bundle', readFileSync(bundle.path))
    expect(run('fsck.exfat', ['-n', stick])).toContain('clean')
    const empty = made('empty.img')

    const vm = await startUsbVm(folder, await signedRoot({}, [1, 2]), LIMIT_MS)
    onTestFinished(() => vm.end())
    await vm.line(/^bistable: running slot=a/)
    await vm.plug(stick, 4 << 20)
    await vm.line(/^led: installing [1-8]0 OK$/)
    await vm.pull()
    await vm.line(/^bistable: stick sd[a-z] TRANSPORT_FILE_FAILED /)
    expect(run('fsck.exfat', ['-n', stick])).toContain('clean')

    await vm.plug(stick)
    await vm.line(/^bistable: state=armed slot=b release=0\.2/)
    await vm.line(/^bistable: stick sd[a-z] OK release 0\.2 /)
    await vm.pull()
    expect(run('fsck.exfat', ['-n', stick])).toContain('clean')
    expect(readFileSync(stick).includes('"armed": "0.2"')).toBe(true)

    await vm.plug(empty)
    await vm.line(/^bistable: stick sd[a-z] USB_NO_BUNDLE /)
    await vm.pull()
    expect(run('fsck.exfat', ['-n', empty])).toContain('clean')
    expect(readFileSync(empty).includes('"code": "USB_NO_BUNDLE"')).toBe(true)
    expect(vm.console()).not.toMatch(/no module|Kernel panic|the agent ended/)
  },
)
