#!/bin/sh
# Makes this machine ready for one of the README's commands: Debian packages and npm packages, only what is missing.
# Every step that uses the network is tried three times and has a limit, so that a server that says nothing ends as an error.
# usage: scripts/setup.sh demo|uboot|test|bench|ostree
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
export PATH

say() { printf 'setup: %s\n' "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 10; }

# usage: patiently SECONDS COMMAND…: three times at most, each for so long at most; as root by the words in `as`.
as=""
patiently() {
  limit=$1
  shift
  for try in 1 2 3; do
    status=0
    # shellcheck disable=SC2086
    $as timeout --foreground --kill-after=20 "$limit" "$@" </dev/null || status=$?
    [ "$status" != 0 ] || return 0
    [ "$try" != 3 ] || break
    [ "$status" = 124 ] && why="took more than $limit s" || why="ended with $status"
    say "$why, once more in 10 s: $*" >&2
    sleep 10
  done
  return "$status"
}

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
    busybox-static dmsetup systemd signify-openbsd minisign softhsm2 opensc openssl bsdutils systemd-boot-efi dt-utils efibootmgr device-tree-compiler mosquitto libfaketime nginx-light exfatprogs qemu-user g++-aarch64-linux-gnu" ;;
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
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || stop "Debian packages are missing, and neither root nor sudo is here to install them. As root:
  apt-get install --no-install-recommends$missing"
    # Where nobody can type a password sudo must not wait for one; asked for here, it is asked for once.
    if [ -t 0 ]; then sudo -v; else sudo -n true || stop "sudo wants a password here; as root: apt-get install --no-install-recommends$missing"; fi
    as="sudo -n"
  fi
  # Another apt may be at work on a new machine: it is waited for, five minutes.
  apt="env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3
    -o Acquire::http::Timeout=60 -o Acquire::https::Timeout=60"
  say "fetching Debian's package lists"
  # shellcheck disable=SC2086
  patiently 300 $apt update || stop "Debian's package lists could not be fetched (apt-get update); is there a network?"
  say "installing Debian packages:$missing"
  # shellcheck disable=SC2086
  patiently 1800 $apt install -y --no-install-recommends -o Dpkg::Use-Pty=0 $missing >/dev/null ||
    stop "these Debian packages could not be installed:$missing"
  as=""
fi

# npm ci only when package-lock.json is not the one that node_modules was made from.
stamp=node_modules/.bistable-lock
if ! cmp -s package-lock.json "$stamp"; then
  say "installing npm packages (a native one may compile for half a minute)"
  # node-gyp compiles on every processor.
  patiently 900 env JOBS="${JOBS:-max}" npm ci --no-audit --no-fund --loglevel=error --fetch-retries=5 --fetch-timeout=60000 ||
    stop "the npm packages could not be installed (npm ci)"
  cp package-lock.json "$stamp"
fi
say "ready"
