#!/bin/sh
# mmdebstrap customize hook: writes the root "$1" of release 1 to the tar file "$2", then changes a few packages for
# release 2, whose root mmdebstrap packs itself.
set -eu
# mmdebstrap's own apt configuration: the packages of the new root, not of this machine.
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
root=$1
first=$2
extra=$(mktemp -d)
trap 'rm -rf "$extra"' EXIT

# What belongs to a machine and not to an image.
: >"$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root/etc/resolv.conf" "$root"/etc/ssh/ssh_host_*
echo appliance >"$root/etc/hostname"
ln -sf /usr/share/zoneinfo/UTC "$root/etc/localtime"
systemctl --root="$root" enable systemd-networkd >/dev/null 2>&1

chmod 755 "$extra"
(cd "$extra" && apt-get -qq -o APT::Sandbox::User=root download tree jq >/dev/null)
clean() {
  rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* "$root"/var/cache/debconf/*-old \
    "$root"/var/lib/dpkg/*-old "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/tmp/*
}
clean
tar -C "$root" --warning=no-file-changed --numeric-owner --xattrs --xattrs-include='*' --sort=name --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* -cf "$first" . || [ $? = 1 ]

mkdir "$root/tmp/extra"
cp "$extra"/*.deb "$root/tmp/extra"
chroot "$root" sh -c 'dpkg -i /tmp/extra/*.deb && dpkg --purge nano' >/dev/null
rm -rf "$root/tmp/extra"
clean
