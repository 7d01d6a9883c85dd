//! The rows of the table of faults through a mount: one seed of each, as a program sees it.
//!
//! Never counts: `tests/fault_table.rs` does, in all combinations. The idea: the same rows, each with a mount of its own, several
//! side by side because each of them is mostly waiting.

use std::fs;
use std::sync::Mutex;
use std::thread;

use crate::fault_registry::FaultRegistry;
use crate::fault_rows::{Happens, Row, Then, rows};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true};
use crate::random::Random;
use crate::served::{Content, VIEWS};
use crate::site::{Mount, Site};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
/// Mounts side by side.
const AT_ONCE: usize = 6;
/// Patience enough for what passes; a reader of what does not pass waits for it twice, because the kernel asks again.
const OPTIONS: [&str; 2] = ["--timeout", "6"];

/// What a row of the table does to a file of this view.
fn happen(content: &Content, row: &Row, view: usize) -> Result<(), String> {
    let (site, registry) = (Site::new(), FaultRegistry::start());
    content.push(&registry);
    row.setup.apply(&registry);
    let file = content.file(view);
    let mut mount = site.mount(&content.reference(&registry), &OPTIONS);
    let read = |mount: &Mount| fs::read(mount.join(&file.path));
    match &row.happens {
        Happens::Times(fault, times) => registry.set_for(fault.clone(), *times),
        Happens::Always(fault) => registry.set(fault.clone()),
        Happens::After(requests, fault) => registry.set_after(*requests, fault.clone()),
        Happens::Nothing => {}
        Happens::Down => registry.go_down(),
        Happens::DownAndOpenedAgain => {
            registry.go_down();
            mount = site.mount_at("again", &content.pinned(&registry), &OPTIONS);
        }
        Happens::TagMoved => content.move_tag(&registry),
        Happens::BlobsDeleted => content.delete_blobs(&registry),
    }
    let first = read(&mount);
    match row.then {
        Then::Right if first.as_ref().is_ok_and(|bytes| *bytes == file.bytes) => {}
        Then::Error(_) => {
            let errno = first.as_ref().err().and_then(std::io::Error::raw_os_error);
            if errno != Some(libc::EIO) {
                return Err(format!("{:?} instead of EIO", first.map(|bytes| bytes.len())));
            }
            registry.clear();
            row.setup.apply(&registry);
            match row.happens {
                Happens::Down | Happens::DownAndOpenedAgain => registry.come_up(),
                Happens::BlobsDeleted => content.push(&registry),
                _ => {}
            }
            let back = || read(&mount).is_ok_and(|bytes| bytes == file.bytes);
            if !becomes_true(CONDITION_TIMEOUT, back) {
                return Err("does not come back".into());
            }
        }
        Then::NotTwice => {
            let again = read(&mount);
            if again.as_ref().err().and_then(std::io::Error::raw_os_error) != Some(libc::EIO) {
                return Err(format!("{:?} instead of EIO", again.map(|bytes| bytes.len())));
            }
        }
        Then::Right => return Err(format!("{:?}", first.map(|bytes| bytes == file.bytes))),
    }
    Ok(())
}

#[test]
fn every_network_fault_ends_for_a_program_as_in_the_table() {
    if !able(&NEEDS) {
        return;
    }
    let content = Content::new(1);
    let mut random = Random(1);
    let mut listed: Vec<(usize, Row)> = rows(|bound| random.below(bound)).into_iter().enumerate().collect();
    // In how many requests the kernel's read-ahead asks for a file is its own affair.
    listed.retain(|(_, row)| !matches!(row.happens, Happens::After(..)));
    let todo = Mutex::new(listed);
    let wrong: Mutex<Vec<String>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, row)) = { todo.lock().unwrap().pop() } {
                    let view = number % VIEWS.len();
                    if let Err(error) = happen(&content, &row, view) {
                        let line = format!("{} {} in {}: {error}", row.number, row.name, VIEWS[view]);
                        wrong.lock().unwrap().push(line);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
