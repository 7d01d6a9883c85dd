#!/bin/sh
# Shows ocifs on a real image without a registry: builds ocifs, makes a small OCI layout, mounts it, looks around, and
# leaves it mounted. Everything but cargo's target/ goes into one temporary directory.
#
#   packaging/demo.sh               build, mount, show
#   packaging/demo.sh --layout DIR  only make the layout in DIR (tags: demo, notes)
#
# OCIFS=PATH uses that program instead of building one. Without /dev/fuse or fusermount3 the same files are shown by
# `ocifs ls` and `ocifs cat`, which need neither. Root on a Debian machine gets the package fuse3 if it is missing.
set -eu
umask 022
export LC_ALL=C

# ---- the layout: two tags, made from nothing, the same bytes every time --------------------------------------------

# blob FILE: moves FILE into the layout under its digest and prints "sha256:HEX","size":N for a descriptor.
blob() {
    hex=$(sha256sum "$1" | cut -d' ' -f1)
    size=$(wc -c <"$1" | tr -d ' ')
    mv "$1" "$layout/blobs/sha256/$hex"
    printf '"digest":"sha256:%s","size":%s' "$hex" "$size"
}

# archive TREE TAR: packs TREE with nothing in it that depends on who packs it or when.
archive() {
    tar --create --file="$2" --directory="$1" --sort=name --mtime=@1700000000 --owner=0 --group=0 --numeric-owner \
        --mode=u=rwX,go=rX --format=ustar .
}

make_layout() {
    layout=$1
    work=$(mktemp -d)
    mkdir -p "$layout/blobs/sha256" "$work/base/etc" "$work/base/bin" "$work/base/srv" "$work/top/etc" "$work/top/srv"

    # The lower layer has a file that the upper one replaces, and one that it deletes.
    echo 'This text is replaced by the layer above.' >"$work/base/etc/motd"
    echo 'This file is deleted by the layer above.' >"$work/base/srv/old"
    printf '#!/bin/sh\necho "hello from a lazily mounted image"\n' >"$work/base/bin/hello"
    chmod 755 "$work/base/bin/hello"
    ln -s hello "$work/base/bin/hi"
    # The upper layer replaces etc/motd, and its whiteout deletes srv/old.
    echo 'Two layers, one tree: this file comes from the upper layer.' >"$work/top/etc/motd"
    : >"$work/top/srv/.wh.old"
    echo 'This file is only in the upper layer.' >"$work/top/srv/new"

    archive "$work/base" "$work/base.tar"
    archive "$work/top" "$work/top.tar"
    base_diff=$(sha256sum "$work/base.tar" | cut -d' ' -f1)
    top_diff=$(sha256sum "$work/top.tar" | cut -d' ' -f1)
    gzip -9 -n "$work/base.tar" "$work/top.tar"
    case $(uname -m) in
        aarch64) architecture=arm64 ;;
        *) architecture=amd64 ;;
    esac
    created='"created":"2023-11-14T22:13:20Z"'
    cat >"$work/config" <<JSON
{$created,"architecture":"$architecture","os":"linux","config":{"Cmd":["/bin/hello"]},"rootfs":{"type":"layers","diff_ids":["sha256:$base_diff","sha256:$top_diff"]},"history":[{$created,"created_by":"base"},{$created,"created_by":"top"}]}
JSON
    kind=application/vnd.oci.image
    cat >"$work/image" <<JSON
{"schemaVersion":2,"mediaType":"$kind.manifest.v1+json","config":{"mediaType":"$kind.config.v1+json",$(blob "$work/config")},"layers":[{"mediaType":"$kind.layer.v1.tar+gzip",$(blob "$work/base.tar.gz")},{"mediaType":"$kind.layer.v1.tar+gzip",$(blob "$work/top.tar.gz")}]}
JSON
    # An artifact: a file with a title, as `oras push` makes it.
    echo 'An artifact is files with titles; each one appears under files/.' >"$work/greeting"
    printf '{}' >"$work/empty"
    cat >"$work/artifact" <<JSON
{"schemaVersion":2,"mediaType":"$kind.manifest.v1+json","artifactType":"application/vnd.example.notes","config":{"mediaType":"application/vnd.oci.empty.v1+json",$(blob "$work/empty")},"layers":[{"mediaType":"text/plain",$(blob "$work/greeting"),"annotations":{"org.opencontainers.image.title":"greeting.txt"}}]}
JSON
    name='"annotations":{"org.opencontainers.image.ref.name":'
    cat >"$layout/index.json" <<JSON
{"schemaVersion":2,"mediaType":"$kind.index.v1+json","manifests":[{"mediaType":"$kind.manifest.v1+json",$(blob "$work/image"),$name"demo"}},{"mediaType":"$kind.manifest.v1+json","artifactType":"application/vnd.example.notes",$(blob "$work/artifact"),$name"notes"}}]}
JSON
    printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    rm -r "$work"
}

if [ "${1-}" = --layout ]; then
    make_layout "${2:?usage: packaging/demo.sh --layout DIR}"
    exit
fi

# ---- the demonstration ---------------------------------------------------------------------------------------------

# show COMMAND...: prints the command, then runs it.
show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# can_mount: whether this machine lets us mount; says why not.
can_mount() {
    if [ ! -e /dev/fuse ]; then
        echo "no /dev/fuse here, so nothing is mounted: the same files by ocifs ls and ocifs cat" >&2
        return 1
    fi
    if ! command -v fusermount3 >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing fuse3" >&2
        { apt-get install -y -qq fuse3 || { apt-get update -qq && apt-get install -y -qq fuse3; }; } >&2 || true
    fi
    if ! command -v fusermount3 >/dev/null; then
        echo "no fusermount3 here (Debian: apt-get install fuse3), so nothing is mounted" >&2
        return 1
    fi
}

if [ -z "${OCIFS-}" ]; then
    root=$(cd "$(dirname "$0")/.." && pwd)
    cargo build --release --locked --manifest-path "$root/Cargo.toml"
    OCIFS=${CARGO_TARGET_DIR:-$root/target}/release/ocifs
fi
# The commands that are shown are the ones that a user types.
directory=$(dirname "$OCIFS")
PATH=$(cd "$directory" && pwd):$PATH

demo=$(mktemp -d "${TMPDIR:-/tmp}/ocifs-demo.XXXXXX")
export OCIFS_CACHE_DIR="$demo/cache"
# A demonstration that fails leaves nothing behind.
trap 'code=$?; [ $code = 0 ] || { ocifs umount "$demo/mnt" 2>/dev/null || true; rm -rf "$demo"; }; exit $code' EXIT
trap 'exit 130' INT TERM
make_layout "$demo/layout"
mkdir "$demo/mnt"

if can_mount; then
    show ocifs mount "oci:$demo/layout:demo" "$demo/mnt"
    show ls "$demo/mnt"
    show ls -lR "$demo/mnt/merged"
    show cat "$demo/mnt/merged/etc/motd"
    show cat "$demo/mnt/.ocifs/status.json"
    show ocifs cat "oci:$demo/layout:notes" files/greeting.txt
    cat <<END

It stays mounted at $demo/mnt: look around. When you are done:
  PATH=$directory:\$PATH ocifs umount $demo/mnt && rm -r $demo
END
else
    show ocifs ls "oci:$demo/layout:demo"
    show ocifs ls "oci:$demo/layout:demo" merged/srv
    show ocifs cat "oci:$demo/layout:demo" merged/etc/motd
    show ocifs cat "oci:$demo/layout:notes" files/greeting.txt
    rm -r "$demo"
fi
