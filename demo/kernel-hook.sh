#!/bin/sh
# mmdebstrap hook: unpacks Debian's cloud kernel into the root "$1" without its maintainer scripts, so that no initramfs
# is generated: bistable builds its own. With "$2" = slim only the modules a virtual machine needs stay. "$3": Debian's name
# of the processor, this machine's unless given.
set -eu
# mmdebstrap's own apt configuration: the packages of the new root, not of this machine.
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
root=$1
meta=linux-image-cloud-${3:-$(dpkg --print-architecture)}
image=$(apt-cache depends "$meta" | awk '/Depends: linux-image-/ { print $2; exit }')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
(cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$image" >/dev/null)
# /lib may be a link to usr/lib: unpacking must follow it, not replace it by a folder.
dpkg-deb --fsys-tarfile "$work"/linux-image-*.deb | tar -x --keep-directory-symlink -C "$root"
release=$(basename "$root"/boot/vmlinuz-* | sed 's/^vmlinuz-//')
rm -rf "$root"/boot/System.map-* "$root"/usr/share/doc/linux-image-*
if [ "${2:-}" = slim ]; then
  modules="$root/lib/modules/$release/kernel"
  find "$modules" -name '*.ko' | grep -Ev '/kernel/(drivers/(md|dax|virtio|block|net/virtio_net|net/net_failover|char/hw_random|watchdog)|net/core/failover|fs/(squashfs|ext4|jbd2|mbcache|fat|nls|overlayfs)|lib|crypto|arch/(x86|arm64)/crypto)' | xargs rm -f
fi
# modules.dep is normally made by the maintainer script.
depmod -b "$root" "$release"
