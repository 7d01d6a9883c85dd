//! Services, lines of fstab and automounts under a real systemd.
//!
//! Never starts anything of the machine, nor changes it. The idea: systemd as the first process of namespaces of its own, on a copy of
//! the machine's root that is thrown away, runs a script of the test as one more service.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, run_within};
use crate::site::{Site, binary};
use crate::tarball::Tarball;

const NEEDS: [Need<'_>; 4] = [Need::Root, Need::Fuse, Need::Tool("unshare"), Need::Tool("systemctl")];
/// A boot takes seconds; what is waited for inside is bounded there.
const PATIENCE: Duration = Duration::from_secs(900);

/// What every script begins with. `poll` waits until a command succeeds.
const PRELUDE: &str = r#"
exec 2>> /shared/trace
poll() { for _ in $(seq 1200); do if "$@" > /dev/null 2>&1; then return 0; fi; sleep 0.1; done; echo "in vain: $*"; return 1; }
say() { echo "$@"; }
unit() {
  mkdir -p /etc/ocifs "/srv/$1"
  printf 'REFERENCE=%s\nMOUNT_POINT=%s\nOPTIONS=%s\n' "$2" "/srv/$1" "${3-}" > "/etc/ocifs/$1.env"
}
cp /shared/packaging/ocifs@.service /etc/systemd/system/
systemctl daemon-reload
"#;

/// Boots, runs the script, and gives what it printed.
fn boots(site: &Site, script: &str) -> String {
    let shared = site.scratch().subdir("shared");
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packaging = site.scratch().subdir("shared/packaging");
    for name in ["ocifs@.service", "examples/srv-model.mount", "examples/srv-model.automount"] {
        let from = project.join("packaging").join(name);
        fs::copy(&from, packaging.join(from.file_name().unwrap())).unwrap();
    }
    site.scratch().file("shared/script", format!("{PRELUDE}\n{script}"));
    let mut command = Command::new("bash");
    command.arg(project.join("tests/support/systemd.sh")).arg(&shared).arg(binary());
    let booted = run_within(&mut command, PATIENCE);
    let read = |name: &str| fs::read_to_string(shared.join(name)).unwrap_or_default();
    let out = read("out");
    assert!(out.ends_with("all done\n"), "{}{}\n{out}\n{}", booted.text(), booted.stderr, read("trace"));
    out
}

/// A layout that the inside sees as `oci:/shared/layout`.
fn image(site: &Site) -> &'static str {
    site.scratch().subdir("shared");
    let mut layout = Layout::create(site.scratch().join("shared/layout"));
    let tar = Tarball::new().file("f", b"data").file("large", &vec![7; 3 << 20]);
    layout.image("v1", &[Layer::of(&tar.bytes(), Encoding::Gzip)]);
    "oci:/shared/layout:v1"
}

#[test]
fn automounts_of_fstab_and_of_units_are_made_at_the_first_look_and_go_when_idle() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    let script = r#"
    mkdir -p /srv/big /srv/model /srv/late
    echo "REFERENCE /srv/big ocifs ro,noauto,view=merged,x-systemd.automount,x-systemd.idle-timeout=2s,_netdev 0 0" >> /etc/fstab
    echo "127.0.0.1:1/a/b:1 /srv/late ocifs ro,noauto,view=merged,delay_connect,timeout=1,_netdev,nofail 0 0" >> /etc/fstab
    sed "s,What=.*,What=REFERENCE,; s,view=files,view=merged," /shared/packaging/srv-model.mount > /etc/systemd/system/srv-model.mount
    cp /shared/packaging/srv-model.automount /etc/systemd/system/
    systemctl daemon-reload
    systemctl start srv-big.automount srv-model.automount
    say "fstab: $(timeout 60 cat /srv/big/f)"
    # Held open, it is not idle however long the next mount takes.
    exec 6< /srv/big/f
    say "unit: $(timeout 60 cat /srv/model/f)"
    say "mounted: $(systemctl is-active srv-big.mount srv-model.mount | tr '\n' ' ')"
    exec 6<&-
    poll sh -c '! grep -q "/srv/big.*fuse.ocifs" /proc/self/mountinfo'
    say "idle: $(systemctl is-active srv-big.mount)"
    say "again: $(timeout 60 cat /srv/big/f)"
    systemctl stop srv-model.automount srv-model.mount
    say "stopped: $(grep -c /srv/model /proc/self/mountinfo)"
    systemctl start srv-late.mount
    say "late: $(systemctl is-active srv-late.mount) $(timeout 20 stat -c %F /srv/late)"
    umount /srv/late
    say "all done"
    "#;
    let out = boots(&site, &script.replace("REFERENCE", reference));
    for line in [
        "fstab: data",
        "unit: data",
        "mounted: active active ",
        "idle: inactive",
        "again: data",
        "stopped: 0",
        "late: active directory",
    ] {
        assert!(out.lines().any(|logged| logged == line), "{line}: {out}");
    }
}

#[test]
fn unit_keeps_its_sandbox_survives_crashes_and_logs_failures() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    let script = r#"
    unit a REFERENCE --view=merged
    systemctl start ocifs@a
    say "content: $(cat /srv/a/f)"
    pid() { systemctl show -P MainPID ocifs@a; }
    say "filter: $(grep -h '^Seccomp:' /proc/$(pid)/status | cut -f 2) $(grep -h '^CapEff' /proc/$(pid)/status | cut -f 2)"
    say "warnings: $(journalctl -u ocifs@a -p warning -o cat --no-pager | grep -c sandbox)"
    systemctl reload ocifs@a && say "reloaded"
    cat > /etc/systemd/system/wants.service <<'U'
[Unit]
Wants=ocifs@a.service
After=ocifs@a.service
[Service]
ExecStart=/bin/sleep infinity
U
    sed '/Wants/d; s/After=.*/RequiresMountsFor=\/srv\/a/' /etc/systemd/system/wants.service > /etc/systemd/system/requires.service
    systemctl daemon-reload
    systemctl start wants requires
    before=$(systemctl show -P MainPID wants requires | tr '\n' ' ')
    exec 5< /srv/a/large
    head -c 100 <&5 > /dev/null
    for round in 1 2 3 4 5 6 7; do
      killed=$(pid)
      kill -9 "$killed"
      poll sh -c "test \$(systemctl show -P MainPID ocifs@a) != $killed && systemctl is-active ocifs@a"
    done
    say "open file: $(cat <&5 | wc -c) $(systemctl is-active ocifs@a)"
    exec 5<&-
    say "consumers: $( [ "$before" = "$(systemctl show -P MainPID wants requires | tr '\n' ' ')" ] && echo unharmed)"
    systemctl stop wants requires ocifs@a
    say "stopped: $(grep -c /srv/a /proc/self/mountinfo)"
    unit gone oci:/shared/nothing:v1
    systemctl start ocifs@gone
    poll sh -c 'journalctl -u ocifs@gone -p err -o cat --no-pager | grep -q shared/nothing'
    say "error: $(journalctl -u ocifs@gone -p err -o cat --no-pager | grep -m 1 -o 'ocifs: .*nothing')"
    poll sh -c 'test "$(systemctl show -P NRestarts ocifs@gone)" -gt 5'
    poll sh -c 'test "$(systemctl show -P ActiveState ocifs@gone)" = activating' && say "tries: activating"
    systemctl stop ocifs@gone
    unit wrong REFERENCE --no-such-option
    systemctl start ocifs@wrong
    poll systemctl is-failed ocifs@wrong
    poll sh -c 'journalctl -u ocifs@wrong -p err -o cat --no-pager | grep -q no-such-option'
    say "wrong: $(systemctl show -P NRestarts ocifs@wrong) $(journalctl -u ocifs@wrong -p err -o cat --no-pager | grep -c no-such-option)"
    say "all done"
    "#;
    let out = boots(&site, &script.replace("REFERENCE", reference));
    for line in [
        "content: data",
        "filter: 2 0000000000000000",
        "warnings: 0",
        "reloaded",
        "open file: 3145628 active",
        "consumers: unharmed",
        "stopped: 0",
        "tries: activating",
        "wrong: 0 1",
    ] {
        assert!(out.lines().any(|logged| logged == line), "{line}: {out}");
    }
    assert!(out.lines().any(|line| line.starts_with("error: ocifs: ")), "{out}");
}

#[test]
fn package_registers_its_unit_and_leaves_no_instance() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    let scripts = site.scratch().subdir("shared/scripts");
    for name in ["postinst", "prerm", "postrm"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/scripts").join(name);
        fs::copy(from, scripts.join(name)).unwrap();
    }
    let script = r#"
    unit a REFERENCE --view=merged
    systemctl enable --now ocifs@a
    echo '# newer' >> /etc/systemd/system/ocifs@.service
    touch -d '+1 hour' /etc/systemd/system/ocifs@.service
    poll sh -c 'test "$(systemctl show -P NeedDaemonReload ocifs@a)" = yes'
    pid=$(systemctl show -P MainPID ocifs@a)
    sh /shared/scripts/postinst configure 0.0.1
    say "upgraded: $(systemctl show -P NeedDaemonReload ocifs@a) $( [ "$pid" = "$(systemctl show -P MainPID ocifs@a)" ] && echo same)"
    sh /shared/scripts/prerm upgrade 9
    say "upgrading: $(cat /srv/a/f)"
    sh /shared/scripts/prerm remove
    rm /etc/systemd/system/ocifs@.service
    sh /shared/scripts/postrm remove
    say "left: $(ls /etc/systemd/system/*/ocifs@* 2> /dev/null | wc -l) $(grep -c /srv/a /proc/self/mountinfo) $(systemctl show -P LoadState ocifs@a)"
    say "all done"
    "#;
    let out = boots(&site, &script.replace("REFERENCE", reference));
    for line in ["upgraded: no same", "upgrading: data", "left: 0 0 not-found"] {
        assert!(out.lines().any(|logged| logged == line), "{line}: {out}");
    }
}
