#!/bin/sh
# Makes this machine ready for one of the README's commands: Debian packages and npm packages, only what is missing.
# usage: scripts/setup.sh demo|uboot|test|bench|ostree
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
export PATH

say() { printf 'setup: %s\n' "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 10; }

node_ok=$(node -p 'const [a,b]=process.versions.node.split(".").map(Number); a>20||(a===20&&b>=19)')
[ "$node_ok" = true ] || stop "Node.js $(node --version) found, 20.19 or newer wanted"

# What the product itself calls: the SquashFS builder, FAT, ext4 and GPT tools, GRUB, the emulator.
packages="squashfs-tools mtools dosfstools e2fsprogs btrfs-progs gdisk kmod
  grub-common grub-efi-amd64-bin grub-pc-bin qemu-system-x86 ovmf
  mmdebstrap debian-archive-keyring uidmap umoci skopeo socat zstd xz-utils
  g++ make python3"
case "${1:-}" in
  demo) ;;
  # The places with U-Boot and those of arm64; the device's zstd addon for arm64 is compiled here.
  uboot) packages="$packages u-boot-qemu qemu-system-arm qemu-efi-aarch64 g++-aarch64-linux-gnu" ;;
  test) packages="$packages squashfs-tools-ng squashfuse grub-emu cryptsetup-bin fsverity buildah docker-registry strace attr acl cpio file qemu-utils
    u-boot-qemu u-boot-tools libubootenv-tool qemu-system-arm qemu-efi-aarch64
    busybox-static dmsetup signify-openbsd minisign softhsm2 opensc openssl bsdutils systemd-boot-efi dt-utils efibootmgr device-tree-compiler mosquitto nginx-light exfatprogs qemu-user g++-aarch64-linux-gnu" ;;
  bench) packages="$packages rauc dbus openssl cpio xdelta3 bsdiff casync zchunk zstd ostree" ;;
  ostree) packages="$packages ostree attr acl" ;;
  *) stop "usage: scripts/setup.sh demo|uboot|test|bench|ostree" ;;
esac

command -v dpkg-query >/dev/null || stop "this is not a Debian or Ubuntu machine; install what these Debian packages hold: $packages"
missing=""
for package in $packages; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
  root=""
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || stop "Debian packages are missing, and neither root nor sudo is here to install them. As root:
  apt-get install --no-install-recommends$missing"
    root=sudo
  fi
  say "installing Debian packages:$missing"
  $root apt-get update -qq
  # shellcheck disable=SC2086
  $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# npm ci only when package-lock.json is not the one that node_modules was made from.
stamp=node_modules/.bistable-lock
if ! cmp -s package-lock.json "$stamp"; then
  say "installing npm packages (a native one may compile for half a minute)"
  npm ci --no-audit --no-fund --loglevel=error
  cp package-lock.json "$stamp"
fi
say "ready"
