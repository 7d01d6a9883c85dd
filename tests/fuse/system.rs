//! Mounts as the system makes them: a line in fstab, mount(8), umount(8) and findmnt(8).
//!
//! Never changes the machine: the helper of mount(8) and the table are those of a mount namespace of the test's own.

use std::fs;
use std::process::Command;

use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run};
use crate::site::{Site, binary, daemons};
use crate::tarball::Tarball;

/// Runs a script in a mount namespace where `/sbin/mount.ocifs` and `/sbin/mount.fuse.ocifs` are the binary under test. `$1` is the
/// table, `$2` the mount point.
pub(crate) fn script(site: &Site, table: &str, text: &str) -> Command {
    let helpers = site.scratch().subdir("sbin");
    for name in ["mount.ocifs", "mount.fuse.ocifs"] {
        std::os::unix::fs::symlink(binary(), helpers.join(name)).unwrap();
    }
    let table = site.scratch().file("fstab", table);
    let prepare = "mount -t overlay -o lowerdir=$0:/usr/sbin none /usr/sbin";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-euc", &format!("{prepare}\n{text}")]);
    command.arg(&helpers).arg(table).arg(site.mount_point("mnt"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", site.scratch().join("home")).env("OCIFS_CACHE_DIR", site.cache());
    command
}

#[test]
fn a_line_in_fstab_mounts_and_umount_takes_it_away() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("unshare"), Need::Tool("findmnt")]) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&Tarball::new().file("f", b"data").bytes(), Encoding::Gzip)]);
    let (reference, dir) = (layout.reference("v1"), site.scratch().join("mnt"));
    // Everything that stands in real tables and is not meant for us.
    let ignored = "defaults,noauto,nofail,_netdev,user,noatime,x-systemd.automount,x-systemd.device-timeout=5s,\
                   X-mount.mkdir,comment=tools";
    let table = |kind: &str| {
        format!("{reference} {} {kind} ro,view=merged,allow_other,{ignored} 0 0\n", dir.display())
    };
    for kind in ["ocifs", "fuse.ocifs"] {
        let site = Site::new();
        let shown = format!(
            "mount -T $1 {0} > /dev/null; cat {0}/f; findmnt -n -t fuse.ocifs -o TARGET,FSTYPE,OPTIONS {0}; umount {0}
             ! findmnt -n -t fuse.ocifs {0}",
            dir.display()
        );
        fs::create_dir_all(&dir).unwrap();
        let output = run(&mut script(&site, &table(kind), &shown)).ok().text();
        let line = output.strip_prefix("data").unwrap_or_else(|| panic!("{output}"));
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..2], [dir.to_str().unwrap(), "fuse.ocifs"], "{output}");
        for option in ["ro", "nosuid", "nodev", "noexec", "allow_other"] {
            assert!(words[2].split(',').any(|is| is == option), "{option}: {output}");
        }
        assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()), "a process is left");
    }
}

#[test]
fn mount_helper_exits_with_the_codes_of_mount() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("unshare")]) {
        return;
    }
    let site = Site::new();
    let reference = Layout::create(site.scratch().join("layout")).reference("no-such-tag");
    let code = |line: &str, text: &str| {
        let site = Site::new();
        let table = line.replace("DIR", site.scratch().join("mnt").to_str().unwrap());
        run(&mut script(&site, &table, text)).code
    };
    // There is no such image; the command line is wrong; nothing is done when mount(8) only pretends.
    assert_eq!(code(&format!("{reference} DIR ocifs ro 0 0\n"), "exec mount -T $1 $2"), Some(32));
    assert_eq!(
        code(&format!("{reference} DIR ocifs ro,no_such_option 0 0\n"), "exec mount -T $1 $2"),
        Some(1)
    );
    assert_eq!(code(&format!("{reference} DIR ocifs ro 0 0\n"), "exec mount -f -T $1 $2"), Some(0));
}
