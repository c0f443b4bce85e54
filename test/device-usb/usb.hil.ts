import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { noise } from '../bundle/tools.ts'
import { makeBundle } from '../helpers/bundle.ts'
import { have, run } from '../helpers/run.ts'
import { signedRoot } from '../keys/helpers.ts'
import { startUsbVm } from './usb-vm.ts'

/** Sticks on an emulated USB controller, driven by a real kernel's xhci, usb-storage and vfat. */

const ready = have('qemu-system-x86_64', 'setpriv', 'mkfs.fat', 'mcopy', 'mtype', 'sgdisk', 'cpio', 'zstd', 'depmod')
const LIMIT_MS = 300_000

test.skipIf(!ready)(
  'A15 C2 a FAT stick pulled in mid-install goes on when it is plugged in again, and takes the result',
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'bistable-usb-'))
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
    const bundle = await makeBundle(folder, 'release', { boot: noise(1 << 20), rootfs: noise(12 << 20, 'rootfs') })
    // As sticks are sold: a partition table, one FAT partition.
    const fat = join(folder, 'fat.img')
    writeFileSync(fat, '')
    truncateSync(fat, 34 << 20)
    run('sgdisk', ['-n', '1:2048:+32M', '-t', '1:0700', fat])
    run('mkfs.fat', ['--offset', '2048', fat, String(32 * 1024)])
    run('mcopy', ['-i', `${fat}@@1M`, bundle.path, '::release.bundle'])

    const vm = await startUsbVm(folder, await signedRoot({}, [1, 2]), LIMIT_MS)
    onTestFinished(() => vm.end())
    await vm.line(/^bistable: running slot=a/)
    await vm.plug(fat, 4 << 20)
    await vm.line(/^led: found 0 OK$/)
    await vm.line(/^led: installing [1-8]0 OK$/)
    await vm.pull()
    await vm.line(/^bistable: stick sd[a-z]1 TRANSPORT_FILE_FAILED /)
    expect(vm.console()).not.toContain('state=armed')

    await vm.plug(fat)
    await vm.line(/^bistable: state=armed slot=b release=0\.2/)
    await vm.line(/^led: armed 100 OK$/)
    await vm.line(/^bistable: stick sd[a-z]1 OK release 0\.2 /)
    await vm.pull()
    const [name = ''] = run('mdir', ['-b', '-i', `${fat}@@1M`, '::']).match(/bistable-[0-9a-f]{32}\.json/) ?? []
    const result = JSON.parse(run('mtype', ['-i', `${fat}@@1M`, `::${name}`]))
    expect(result).toMatchObject({ ok: true, code: 'OK', exit: 0, running: '0.1', armed: '0.2' })
    // What had arrived before the stick was pulled was not read again.
    expect(result.journal.join('\n')).toMatch(/rootfs keep 0-[0-9]+\nrootfs fetch/)
    expect(vm.console()).not.toMatch(/no module|Kernel panic|the agent ended/)
  },
)
