# Builds a Debian root as an OCI image of three layers in the directory $1, as root:
#   image:base     a minbase root with devices, xattrs, hard links, setuid files, odd times and odd names
#   image:python   plus a Python interpreter, installed by apt inside the root
#   image:pruned   minus much of it: deleted files and directories, and changes of type
# The directory bundle/ is left for the caller, who may remove it.
set -euo pipefail
cd "$1"
mirror=${OCIFS_DEBIAN_MIRROR:-http://deb.debian.org/debian}
root=$PWD/bundle/rootfs

umoci init --layout image
umoci new --image image:base
umoci unpack --image image:base bundle
debootstrap --variant=minbase bookworm "$root" "$mirror"
rm -f "$root"/var/cache/apt/archives/*.deb

mkdir -p "$root/srv/odd"
cd "$root/srv/odd"
mknod block b 8 1
mknod char c 10 229
mkfifo pipe
printf 'one\n' > first
ln first second
ln first "$root/srv/third"
printf 'before the epoch\n' > old
touch -d '1955-11-05 06:15:00 UTC' old
printf 'setuid\n' > setuid
chmod 6755 setuid
chown 1234:5678 setuid
chmod 6755 setuid
mkdir sticky
chmod 1777 sticky
printf 'text\n' > attributed
setfattr -n user.origin -v 'a test' attributed
setfattr -n user.binary -v 0x00ff0a80 attributed
setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 attributed
printf 'latin\n' > "$(printf 'caf\351')"
printf 'lines\n' > "$(printf 'two\nlines')"
ln -s /etc/../../../proc/self/root/nowhere dangling
ln -s "$(printf 'x%.0s' $(seq 200))" long-target
: > empty
# The uppermost layer links to this one with the same metadata: appliers differ where a link's own metadata is another.
printf 'linked\n' > linked
chmod 640 linked
touch -d @1600000000 linked
truncate -s 3M holes
printf 'end' >> holes
mkdir "$(printf 'deep%.0s' $(seq 40))"
cd "$1"
umoci repack --refresh-bundle --image image:base bundle

printf 'APT::Install-Recommends "false";\n' > "$root/etc/apt/apt.conf.d/90lean"
cp /etc/resolv.conf "$root/etc/resolv.conf"
chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  sh -euc 'apt-get -q update; apt-get -q install -y python3-minimal; apt-get clean; rm -rf /var/lib/apt/lists/*'
umoci repack --refresh-bundle --image image:python bundle

rm -rf "$root/usr/share/doc" "$root/usr/share/man" "$root/srv/odd/second" "$root/srv/odd/empty"
rm -rf "$root/usr/share/common-licenses" "$root/srv/odd/sticky" "$root/srv/odd/dangling" "$root/srv/odd/pipe"
ln -s ../doc "$root/usr/share/common-licenses"
printf 'a directory became a file\n' > "$root/srv/odd/sticky"
mkdir "$root/srv/odd/dangling"
printf 'a link became a directory\n' > "$root/srv/odd/dangling/inside"
chmod 0700 "$root/var/log"
printf 'more\n' >> "$root/etc/issue"
umoci repack --refresh-bundle --image image:pruned bundle
