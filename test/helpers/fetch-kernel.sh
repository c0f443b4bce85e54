#!/bin/sh
# Unpacks Debian's newest kernel behind a meta package into a folder shaped like a root.
# usage: fetch-kernel.sh META FOLDER
set -eu
meta=$1
folder=$2
mkdir -p "$(dirname "$folder")"
# Test files run side by side, and apt's lists are one for the machine: one at a time, the second finds it done.
exec 9>"$(dirname "$folder")/fetch-kernel.lock"
flock 9
[ ! -e "$folder" ] || exit 0
newest() { apt-cache depends "$meta" 2>/dev/null | sed -nE 's/.*Depends: (linux-image-[0-9][^ ]*-amd64)$/\1/p' | head -n 1; }
name=$(newest)
if [ -z "$name" ]; then
  apt-get -qq -o Acquire::Retries=3 update
  name=$(newest)
fi
[ -n "$name" ] || { echo "apt knows no $meta" >&2; exit 1; }
fresh=$folder.fresh
rm -rf "$fresh"
mkdir -p "$fresh/deb"
(cd "$fresh/deb" && apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 download "$name")
dpkg-deb -x "$fresh"/deb/*.deb "$fresh"
rm -r "$fresh/deb"
depmod -b "$fresh" "$(ls "$fresh/lib/modules")"
mv "$fresh" "$folder"
