#!/bin/sh
# mmdebstrap customize hook: makes the root "$1", Debian with sysvinit or OpenRC, an appliance's.
set -eu
root=$1
here=$(dirname "$0")

# What belongs to a machine and not to an image.
: >"$root/etc/machine-id"
rm -f "$root/etc/resolv.conf"
echo appliance >"$root/etc/hostname"

# The root is mounted already, and stays read-only.
echo '/dev/mapper/bistable-root / squashfs ro 0 0' >"$root/etc/fstab"
# One terminal, which needs no password here.
sed -i '/getty/d' "$root/etc/inittab"
echo 'T0:2345:respawn:/sbin/agetty --autologin root --keep-baud 115200 ttyS0 vt100' >>"$root/etc/inittab"
# The card is eth0, wherever it is.
ln -s /dev/null "$root/etc/udev/rules.d/80-net-setup-link.rules"

install -m 755 "$here/app" "$root/etc/init.d/app"
install -m 755 "$here/net" "$root/etc/init.d/appliance-net"
chroot "$root" update-rc.d app defaults
chroot "$root" update-rc.d appliance-net defaults
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* "$root"/var/cache/debconf/*-old \
  "$root"/var/lib/dpkg/*-old "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/tmp/*
