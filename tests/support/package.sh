#!/bin/bash
# Builds the package for Debian, installs it in a fresh system, uses it there as a new user would, and removes it. OCIFS_BINARY names
# a program that is built already; OCIFS_MIRROR a mirror of Debian.
set -euo pipefail
room=$(mktemp -d)
new=$room/root
mounted=()
clean() {
  for at in "$new/mnt/tree" "${mounted[@]}"; do umount -l "$at" 2> /dev/null || true; done
  rm -rf --one-file-system "$room"
}
trap clean EXIT

packaging/package.sh deb
package=$(ls -t target/packages/ocifs_*.deb | head -n 1)
dpkg-deb --info "$package"

suite=$(. /etc/os-release; echo "${VERSION_CODENAME:-trixie}")
debootstrap --variant=minbase "$suite" "$new" ${OCIFS_MIRROR:+"$OCIFS_MIRROR"}
for at in proc dev; do
  mount --rbind "/$at" "$new/$at"
  mount --make-rslave "$new/$at"
  mounted+=("$new/$at")
done
inside() { chroot "$new" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive "$@"; }
inside apt-get -q update
# What the package needs, before the picture of what is there.
inside apt-get -q install -y --no-install-recommends fuse3 man-db
# Documents of packages are as good a part of a package as others.
rm -f "$new"/etc/dpkg/dpkg.cfg.d/*
picture() { (cd "$new" && find . -xdev \( -path ./proc -o -path ./dev -o -path ./run -o -path ./var/cache -o -path ./var/log -o -path ./var/lib/dpkg -o -path ./var/lib/apt \) -prune -o -print | sort); }
picture > "$room/before"

cp "$package" "$new/ocifs.deb"
inside apt-get -q install -y --no-install-recommends ./ocifs.deb
rm "$new/ocifs.deb"
inside dpkg -L ocifs
for name in mount.ocifs mount.fuse.ocifs; do
  [ "$(inside readlink -f "/sbin/$name")" = /usr/bin/ocifs ]
done
inside sh -c 'man ocifs-mount | grep -q SYNOPSIS'
inside test -s /usr/share/bash-completion/completions/ocifs
inside test -s /usr/share/doc/ocifs/docs/operations.md

packaging/demo.sh --layout "$new/srv/layout"
mkdir -p "$new/mnt/tree"
inside ocifs mount oci:/srv/layout:demo /mnt/tree
inside test -d /mnt/tree/merged
inside ocifs umount /mnt/tree
# As fstab has it.
echo 'oci:/srv/layout:demo /mnt/tree ocifs ro,noauto,view=merged,x-systemd.automount 0 0' >> "$new/etc/fstab"
inside mount /mnt/tree
[ "$(inside findmnt -n -t fuse.ocifs -o TARGET)" = /mnt/tree ]
inside test -d /mnt/tree/srv
inside umount /mnt/tree
sed -i '\|/mnt/tree|d' "$new/etc/fstab"
rm -rf "$new/srv/layout" "$new/root/.cache"
rmdir "$new/mnt/tree"

inside apt-get -q purge -y ocifs
picture > "$room/after"
diff "$room/before" "$room/after"
echo 'nothing is left'
