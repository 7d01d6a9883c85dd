#!/bin/bash
# Boots systemd as the first process of namespaces of its own: systemd.sh SHARED OCIFS. Ends with it.
#
# Its root is an overlay over the machine's, so that the systemd of this machine runs, and nothing is changed. SHARED is seen as
# /shared, the program as /usr/bin/ocifs and /sbin/mount.ocifs. The script SHARED/script runs as a service; what it prints goes to
# SHARED/out, and systemd ends with it.
set -euo pipefail
shared=$1 ocifs=$2
if [ "${3-}" != inside ]; then
  # A control group of its own, or systemd takes that of the machine for its.
  groups=$shared/groups
  mkdir -p "$groups"
  mount -t cgroup2 cgroup2 "$groups"
  group=$groups$(awk -F: '$1 == 0 { print $3 }' /proc/self/cgroup)/ocifs-systemd-$$
  mkdir -p "$group"
  (
    echo "$BASHPID" > "$group/cgroup.procs"
    # Ends with this script, also when that is killed.
    exec setpriv --pdeathsig KILL unshare --mount --pid --fork --net --uts --ipc --cgroup --propagation private --kill-child \
      bash "$0" "$shared" "$ocifs" inside
  ) || code=$?
  # Processes of the inside end with its first one; their groups are empty then.
  find "$group" -depth -type d -exec rmdir {} + 2> /dev/null || true
  umount "$groups"
  rmdir "$groups"
  exit "${code:-0}"
fi
room=$shared/room root=$shared/room/root
mkdir -p "$room"
mount -t tmpfs tmpfs "$room"
mkdir "$room"/{upper,work,root}
mount -t overlay -o "lowerdir=/,upperdir=$room/upper,workdir=$room/work" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty fuse; do
  touch "$root/dev/$node"
  mount --bind "/dev/$node" "$root/dev/$node"
done
[ ! -e /dev/autofs ] || { touch "$root/dev/autofs"; mount --bind /dev/autofs "$root/dev/autofs"; }
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/shared"
mount --bind "$shared" "$root/shared"
rm -f "$root/usr/bin/ocifs" "$root/usr/sbin/mount.ocifs"
touch "$root/usr/bin/ocifs"
mount --bind "$ocifs" "$root/usr/bin/ocifs"
ln -s ../bin/ocifs "$root/usr/sbin/mount.ocifs"
# Nothing of the machine is started.
rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/systemd/system/*.d
: > "$root/etc/fstab"
: > "$root/etc/machine-id"
cat > "$root/etc/systemd/system/shared.service" <<'U'
[Unit]
Description=The script of a test
[Service]
Type=oneshot
ExecStart=/bin/bash -x /shared/script
StandardOutput=append:/shared/out
StandardError=append:/shared/trace
ExecStopPost=/bin/systemctl --no-block exit
TimeoutStartSec=infinity
U
ip link set lo up
cd "$root"
mkdir old
pivot_root . old
umount -l /old
exec env -i container=ocifs PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=shared.service \
  --log-target=console --log-level=err --show-status=no
