import { execFileSync } from 'node:child_process'
import { chmodSync, copyFileSync, mkdirSync, readdirSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type OwnDut, startQemu } from 'bistable/hil'

// The board: a Debian kernel with a busybox, and a login on its console. Nothing of bistable is on it. A real one would give its
// power and its serial port instead: see docs/hil.md.

const INIT = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
hostname board
echo "board: services are up"
exec getty -L 115200 ttyS0 vt100
`
const TOOLS =
  'sh mount hostname getty login stty sync reboot cat echo printf sed wc cut base64 sha256sum head seq rm dd mv uname sleep'

function kernel(): string {
  const named = process.env['KERNEL']
  if (named !== undefined) return named
  const found = readdirSync('/boot').find((name) => name.startsWith('vmlinuz-'))
  if (found === undefined) throw new Error('no kernel in /boot: set KERNEL to one')
  return join('/boot', found)
}

/** Packs the board's only file system. */
function initramfs(folder: string): string {
  const tree = join(folder, 'tree')
  for (const name of ['bin', 'dev', 'etc', 'proc', 'sys', 'tmp', 'root'])
    mkdirSync(join(tree, name), { recursive: true })
  copyFileSync('/bin/busybox', join(tree, 'bin', 'busybox'))
  for (const tool of TOOLS.split(' ')) copyFileSync('/bin/busybox', join(tree, 'bin', tool))
  writeFileSync(join(tree, 'init'), INIT)
  chmodSync(join(tree, 'init'), 0o755)
  writeFileSync(join(tree, 'etc', 'passwd'), 'root::0:0:root:/root:/bin/sh\n')
  // The password is "secret".
  const hash = execFileSync('openssl', ['passwd', '-1', '-salt', 'board', 'secret'], { encoding: 'utf8' }).trim()
  writeFileSync(join(tree, 'etc', 'passwd'), `root:${hash}:0:0:root:/root:/bin/sh\n`)
  const archive = join(folder, 'initramfs')
  execFileSync('sh', ['-c', 'cd "$0" && find . | cpio -o -H newc --quiet | gzip -1 >"$1"', tree, archive])
  return archive
}

/** One board per test. */
export async function board({ folder }: { folder: string }): Promise<OwnDut> {
  const disk = join(folder, 'disk')
  writeFileSync(disk, '')
  truncateSync(disk, 1024 * 1024)
  // On a busy machine an emulated timer is late, and the kernel would take it for broken.
  const kernelArguments = 'console=ttyS0,115200 panic=1 no_timer_check'
  const extra = ['-no-reboot', '-kernel', kernel(), '-initrd', initramfs(folder), '-append', kernelArguments]
  return {
    disk,
    machine: () => startQemu({ disk, memoryMiB: 256, extra }),
    login: { user: 'root', password: 'secret' },
    ready: async (dut) => {
      await dut.sees(/board: services are up/, 300_000)
    },
  }
}
