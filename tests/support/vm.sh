# Builds a disk that boots in the directory $1, as root:
#   system.qcow2   a Debian minbase root on ext4, with the cloud kernel and its modules as an installed system has them
#   vmlinuz        the same kernel
#   initrd.img     busybox, the modules for a virtio disk, and a script that mounts it and goes on there
#   root.tar       the same root as the layer of a container image
#   initrd-erofs.img  busybox, the modules for a virtio disk with EROFS, and a script that goes on there
#   marker         the line that the machine prints on its first serial port when it has come up
# The root's /sbin/init reads a part of the system, says what it read by its checksum, and switches the machine off.
set -euo pipefail
cd "$1"
mirror=${OCIFS_DEBIAN_MIRROR:-http://deb.debian.org/debian}
root=$PWD/root

debootstrap --variant=minbase bookworm "$root" "$mirror"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# apt of the root, because the lists of the machine may be old or another distribution's. The kernel is unpacked only:
# installing it would need an initramfs by Debian's tools, which takes longer than everything else here.
chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc '
  cd /tmp
  apt-get -q update
  kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/^ *Depends: //p" | head -n 1)
  apt-get -q download "$kernel" busybox-static
  for package in *.deb; do dpkg -x "$package" unpacked; done
  apt-get clean
  rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin'
rm -f "$root"/var/cache/apt/archives/*.deb "$root/etc/resolv.conf"
mv "$root/tmp/unpacked" unpacked
rm -rf "$root"/tmp/*

kernel=$(echo unpacked/boot/vmlinuz-*)
cp "$kernel" vmlinuz
cp -a unpacked/boot/. "$root/boot"
cp -a unpacked/lib/modules "$root/usr/lib/modules"

mkdir -p initramfs/bin initramfs/dev initramfs/proc initramfs/new
cp unpacked/bin/busybox initramfs/bin/busybox
for module in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
  find unpacked/lib/modules -name "$module.ko" -exec cp {} initramfs/ \;
  test -e "initramfs/$module.ko"
done
cat > initramfs/init << 'END'
#!/bin/busybox sh
export PATH=/bin
busybox mount -t devtmpfs dev /dev
for module in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
  busybox insmod "/$module.ko"
done
busybox mount -t ext4 -o rw /dev/vda /new || exit 1
busybox mount -o move /dev /new/dev
exec busybox switch_root /new /sbin/init
END
chmod 0755 initramfs/init
(cd initramfs && find . | ./bin/busybox cpio -o -H newc | gzip -1) > initrd.img

# Which of these the kernel has as modules differs; what EROFS needs of them comes before it.
erofs="libcrc32c crc32c_generic lz4_decompress netfs erofs"
for module in $erofs; do
  find unpacked/lib/modules -name "$module.ko" -exec cp {} initramfs/ \;
done
sed -i -e "s/ virtio_blk; do/ virtio_blk $erofs; do/" -e 's,insmod "/$module.ko",& 2> /dev/null || true,' \
  -e 's/mount -t ext4 -o rw/mount -t erofs -o ro/' initramfs/init
(cd initramfs && find . | ./bin/busybox cpio -o -H newc | gzip -1) > initrd-erofs.img

cat > "$root/sbin/init" << 'END'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
mount -t proc proc /proc
sum=$(cd / && find etc usr/sbin usr/lib/os-release -xdev -type f | sort | xargs cat | sha256sum)
echo written > /var/lib/written
sync
echo "OCIFS-VM-BOOTED ${sum%% *}" > /dev/ttyS0
# Until the port has sent it.
sleep 1
echo o > /proc/sysrq-trigger
sleep 60
END
rm -f "$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/sbin/init"
sum=$(cd "$root" && find etc usr/sbin usr/lib/os-release -xdev -type f | LC_ALL=C sort | xargs cat | sha256sum)
printf 'OCIFS-VM-BOOTED %s\n' "${sum%% *}" > marker

tar --sort=name --numeric-owner -C "$root" -cf root.tar .
mkfs.ext4 -q -d "$root" system.raw 1G
qemu-img convert -f raw -O qcow2 system.raw system.qcow2
rm -rf "$root" unpacked initramfs system.raw
