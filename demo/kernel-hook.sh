#!/bin/sh
# mmdebstrap extract hook: unpacks Debian's cloud kernel into the root "$1" without its maintainer scripts, so that
# no initramfs is generated: bistable builds its own. APT_CONFIG, set by mmdebstrap, points apt at that root.
set -eu
root=$1
meta=linux-image-cloud-$(dpkg --print-architecture)
image=$(apt-cache depends "$meta" | awk '/Depends: linux-image-/ { print $2; exit }')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get -q download "$image" >/dev/null)
dpkg-deb -x "$work"/linux-image-*.deb "$root"
# Only /boot/vmlinuz-* and the modules matter; modules.dep is normally made by the maintainer script.
release=$(basename "$root"/boot/vmlinuz-* | sed 's/^vmlinuz-//')
depmod -b "$root" "$release"
