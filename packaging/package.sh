#!/bin/bash
# Makes packages of ocifs: packaging/package.sh [deb|rpm|tarball ...], all that can be made by default. They land in target/packages.
#
# cargo-deb and cargo-generate-rpm are built into target/tools when they are missing. OCIFS_BINARY names a program that is built
# already, and then nothing is compiled. What goes where is in Cargo.toml, for the tarball below.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'package.sh: %s\n' "$*" >&2; exit 1; }
say() { printf '== %s\n' "$*"; }

tools=$PWD/target/tools
stage=$PWD/target/package
out=$PWD/target/packages
machine=$(uname -m)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# tool NAME VERSION: a cargo subcommand, from the path or from target/tools.
tool() {
  command -v "$1" > /dev/null || [ -x "$tools/bin/$1" ] || {
    say "building $1 $2 into target/tools"
    cargo install --locked --quiet --root "$tools" --version "$2" "$1"
  }
  PATH=$tools/bin:$PATH
}

# binary [TARGET]: builds the program and lays it, with its pages and completions, where Cargo.toml expects it.
binary() {
  local built=${OCIFS_BINARY:-}
  if [ -z "$built" ]; then
    say "building ocifs ${1:-}"
    cargo build --release --locked --bin ocifs ${1:+--target "$1"}
    built=target/${1:+$1/}release/ocifs
  fi
  rm -rf "$stage"
  mkdir -p "$stage"/{man,completions,links} "$out"
  cp "$built" "$stage/ocifs"
  strip "$stage/ocifs"
  "$stage/ocifs" man --all "$stage/man"
  gzip -9n "$stage"/man/*.[18]
  for shell in bash zsh fish; do
    "$stage/ocifs" completion "$shell" > "$stage/completions/$shell"
  done
  ln -s ../bin/ocifs "$stage/links/mount.ocifs"
  ln -s ../bin/ocifs "$stage/links/mount.fuse.ocifs"
}

deb() {
  tool cargo-deb 3.8.0
  binary
  cargo deb --no-build --no-strip --output "$out/"
}

rpm() {
  tool cargo-generate-rpm 0.21.1
  binary
  cargo generate-rpm --output "$out/"
}

tarball() {
  local target=$machine-unknown-linux-musl root=ocifs-$version-$machine
  if [ -z "${OCIFS_BINARY:-}" ] && ! rustup target list --installed 2> /dev/null | grep -qx "$target"; then
    die "the static tarball needs the target $target, which this toolchain lacks: rustup target add $target (and apt-get install musl-tools)"
  fi
  binary "$target"
  local at=$stage/$root
  install -D -m 755 "$stage/ocifs" "$at/bin/ocifs"
  install -D -m 644 -t "$at/share/man/man1" "$stage"/man/*.1.gz
  install -D -m 644 -t "$at/share/man/man8" "$stage"/man/*.8.gz
  install -D -m 644 "$stage/completions/bash" "$at/share/bash-completion/completions/ocifs"
  install -D -m 644 "$stage/completions/zsh" "$at/share/zsh/site-functions/_ocifs"
  install -D -m 644 "$stage/completions/fish" "$at/share/fish/vendor_completions.d/ocifs.fish"
  install -D -m 644 -t "$at/lib/systemd/system" packaging/ocifs@.service
  install -D -m 644 -t "$at/share/doc/ocifs" README.md LICENSE CHANGELOG.md SECURITY.md
  install -D -m 644 -t "$at/share/doc/ocifs/docs" docs/*.md
  install -D -m 644 -t "$at/share/doc/ocifs/docs/tutorials" docs/tutorials/*.md
  install -D -m 644 -t "$at/share/doc/ocifs/docs/formats" docs/formats/*.md
  install -D -m 644 -t "$at/share/doc/ocifs/packaging/ci" packaging/ci/*.yml
  mkdir -p "$at/sbin"
  cp -d "$stage"/links/* "$at/sbin/"
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$stage" -czf "$out/$root.tar.gz" "$root"
}

if [ $# = 0 ]; then
  set -- deb rpm
  if rustup target list --installed 2> /dev/null | grep -qx "$machine-unknown-linux-musl"; then
    set -- "$@" tarball
  else
    say "no tarball: the toolchain lacks the target $machine-unknown-linux-musl (rustup target add $machine-unknown-linux-musl)"
  fi
fi
for kind; do
  case $kind in
    deb | rpm | tarball) "$kind" ;;
    *) die "there is no package of the kind $kind; there are deb, rpm and tarball" ;;
  esac
done
say "made:"
ls -l "$out"
