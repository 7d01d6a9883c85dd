//! Files below `/proc`: fields of `status` and `stat` of processes and threads, proc(5).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One tick of the times in `stat`, proc_pid_stat(5).
const TICK: Duration = Duration::from_millis(10);

/// The directory of process `pid`.
pub(crate) fn proc_of(pid: u32) -> PathBuf {
    format!("/proc/{pid}").into()
}

/// Field `name` of `status` in the directory of a process or thread; `None` when the process is gone.
pub(crate) fn status_field(dir: &Path, name: &str) -> Option<String> {
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// Field `name` of `status`, which the kernel gives in kB, in bytes.
#[track_caller]
pub(crate) fn status_bytes(dir: &Path, name: &str) -> u64 {
    let field = status_field(dir, name).expect("the process runs");
    let kib = field.strip_suffix(" kB").and_then(|number| number.trim().parse::<u64>().ok());
    kib.unwrap_or_else(|| panic!("{name} is {field:?}")) * 1024
}

/// The letter of a process's state; `X` when the process is gone.
pub(crate) fn state_of(pid: u32) -> char {
    stat_fields(&proc_of(pid)).and_then(|fields| fields[0].chars().next()).unwrap_or('X')
}

/// Whether process `pid` holds no file any more. A process that ends has no command line a moment before it closes its
/// files, and its first thread may be over before the last one.
pub(crate) fn holds_nothing(pid: u32) -> bool {
    let tasks = fs::read_dir(proc_of(pid).join("task")).into_iter().flatten().flatten();
    tasks
        .map(|task| stat_fields(&task.path()))
        .all(|fields| fields.is_none_or(|fields| "ZX".contains(&fields[0])))
}

/// The processor time of a process or thread, which does not depend on the load of the machine.
#[track_caller]
pub(crate) fn processor_time(dir: &Path) -> Duration {
    let fields = stat_fields(dir).expect("the process runs");
    let ticks = |at: usize| fields[at].parse::<u32>().expect("a number of ticks");
    TICK * (ticks(11) + ticks(12))
}

/// The fields of `stat` from the state on; `None` when the process is gone. The name before them may hold anything.
fn stat_fields(dir: &Path) -> Option<Vec<String>> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}
