//! Seccomp filter: a deny list of system calls.
//!
//! A list of denied calls, not of allowed ones: the C library and the async runtime choose their calls by the kernel
//! and by their own version. A mount that dies in its third month because a library started to use a new call costs
//! more than the difference in safety. Denied are calls that a file server does not use and that an intruder needs
//! first: other programs, other processes, local sockets, modes and owners of files, mounts, namespaces, kernel code,
//! and the parts of the kernel with the most vulnerabilities. A call that is newer than the list fails with ENOSYS,
//! so libraries fall back to an older one.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::AppliedPart;

/// Calls that fail with EPERM whatever their arguments.
const REFUSED: &[c_long] = &[
    // Start of other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Access to other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_mrelease,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_tkill,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    // Modes, owners, times and attributes of files, by name or by descriptor. Landlock has no rule for them, and the
    // cache creates its files with their final mode.
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    // Mounts, roots and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    // Files by handle instead of by name, which bypasses every directory.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Kernel code, and the machine as a whole.
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_quotactl,
    SYS_QUOTACTL_FD,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    // Common entry points of kernel exploits.
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

/// `quotactl_fd` and `fchmodat2`: missing in the C library's header on some targets; the same number on all.
const SYS_QUOTACTL_FD: c_long = 443;
const SYS_FCHMODAT2: c_long = 452;

/// The first denied number: `setxattrat` of Linux 6.13. Higher numbers are `removexattrat`, `open_tree_attr`,
/// `file_setattr`, and all later calls.
const FIRST_UNKNOWN: u32 = 463;

/// Calls with a process as first argument, allowed for this process alone, which is 0.
const OF_A_PROCESS: [c_long; 5] = [
    libc::SYS_prlimit64,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
];

/// Calls with a process as first argument, allowed for this process alone, by its id.
const SIGNALS: [c_long; 2] = [libc::SYS_kill, libc::SYS_tgkill];

/// Flags of `clone` that are denied: those for new namespaces.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Allowed socket families: those for registries and for name resolution. Sockets of this machine are excluded,
/// because container engines and service managers listen on them; the needed ones were created before.
const FAMILIES: [libc::c_int; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Denied kinds of socket pairs: each end of a datagram pair can be reconnected to any address. The kernel makes
/// datagrams of SOCK_RAW.
const DATAGRAMS: [libc::c_int; 2] = [libc::SOCK_DGRAM, libc::SOCK_RAW];

/// Installs the filters.
pub(super) fn refuse() -> AppliedPart {
    let applied = programs().and_then(|programs| {
        programs
            .iter()
            .try_for_each(|program| seccompiler::apply_filter(program).map_err(|error| error.to_string()))
    });
    match applied {
        Ok(()) => AppliedPart::Whole,
        Err(error) => AppliedPart::No(error),
    }
}

fn programs() -> Result<[BpfProgram; 3], String> {
    let refused = refused().map_err(|error| error.to_string())?;
    // The flags of clone3 are in memory, which a filter cannot read. Without that call the C library uses clone.
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([program(refused, libc::EPERM)?, program(absent, libc::ENOSYS)?, other_numbers()])
}

/// The denied calls, with the arguments that are denied; without rules, with all.
fn refused() -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
    let bit = |flag: &libc::c_int| {
        let flag = u64::from(flag.unsigned_abs());
        only(SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?)
    };
    let ourselves = u64::from(std::process::id());
    let mut refused: BTreeMap<c_long, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    refused.insert(libc::SYS_clone, NAMESPACES.iter().map(bit).collect::<Result<_, _>>()?);
    refused.insert(libc::SYS_socket, vec![none_of(&FAMILIES)?]);
    // A thread may give up the descriptors that it shares; namespaces need other flags.
    let files = u64::from(libc::CLONE_FILES.unsigned_abs());
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, files)?;
    refused.insert(libc::SYS_unshare, vec![only(other)?]);
    let mut pairs = vec![none_of(&[libc::AF_UNIX])?];
    for kind in DATAGRAMS {
        // The argument may contain flags besides the kind.
        let masked = SeccompCmpOp::MaskedEq(0xf);
        let kind = u64::from(kind.unsigned_abs());
        pairs.push(only(SeccompCondition::new(1, SeccompCmpArgLen::Dword, masked, kind)?)?);
    }
    refused.insert(libc::SYS_socketpair, pairs);
    for (calls, process) in [(&OF_A_PROCESS[..], 0), (&SIGNALS[..], ourselves)] {
        for call in calls {
            let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, process)?;
            refused.insert(*call, vec![only(other)?]);
        }
    }
    Ok(refused)
}

fn only(condition: SeccompCondition) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![condition])
}

/// Denies all calls that are newer than the list. It also denies numbers of x32, a second way to call the same
/// kernel, which are higher.
fn other_numbers() -> BpfProgram {
    let step = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    vec![
        // The number is the first field of the data of a filter (seccomp(2)).
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, FIRST_UNKNOWN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Matches if the first argument is none of these socket families.
fn none_of(families: &[libc::c_int]) -> Result<SeccompRule, BackendError> {
    let other = |family: &libc::c_int| {
        let family = u64::from(family.unsigned_abs());
        // The kernel takes an int here, whatever the upper half of the register holds.
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    };
    SeccompRule::new(families.iter().map(other).collect::<Result<_, _>>()?)
}

fn program(calls: BTreeMap<c_long, Vec<SeccompRule>>, errno: libc::c_int) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let answer = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, answer, arch);
    filter.and_then(BpfProgram::try_from).map_err(|error| error.to_string())
}
