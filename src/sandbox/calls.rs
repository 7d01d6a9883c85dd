//! System calls that are refused, by seccomp.
//!
//! A list of what is refused and not of what is allowed: the C library and the async runtime choose their calls by the kernel
//! they find and by their version, and a mount that dies in its third month because a library learnt a new call is worth less
//! than the difference. What is refused is what a file server never does and what an intruder in one needs first: other
//! programs, other processes, mounts, namespaces, kernel code, and the parts of the kernel with the most holes.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use super::Applied;

/// Calls that fail with EPERM whatever their arguments.
const REFUSED: &[c_long] = &[
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
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
    libc::SYS_unshare,
    libc::SYS_setns,
    // Files by number instead of by name, past every directory.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Code for the kernel, and the machine as a whole.
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
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    // Where exploits of the kernel begin.
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

/// What `clone` does not make: a thread in namespaces of its own.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// The kinds of sockets that are made: for registries, for what names mean, and for this machine.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Has the kernel refuse them.
pub(super) fn refuse() -> Applied {
    let applied = programs().and_then(|programs| {
        programs
            .iter()
            .try_for_each(|program| seccompiler::apply_filter(program).map_err(|error| error.to_string()))
    });
    match applied {
        Ok(()) => Applied::Whole,
        Err(error) => Applied::No(error),
    }
}

fn programs() -> Result<[BpfProgram; 3], String> {
    let namespace = |flag: &libc::c_int| {
        let flag = u64::from(flag.unsigned_abs());
        let asked = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
        SeccompRule::new(vec![asked])
    };
    let namespaces: Result<Vec<_>, _> = NAMESPACES.iter().map(namespace).collect();
    let mut refused: BTreeMap<c_long, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    refused.insert(libc::SYS_socket, vec![foreign_family().map_err(|error| error.to_string())?]);
    refused.insert(libc::SYS_clone, namespaces.map_err(|error| error.to_string())?);
    // The flags of clone3 lie in memory, where a filter cannot look. Told that there is no such call, the C library uses
    // clone.
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([program(refused, libc::EPERM)?, program(absent, libc::ENOSYS)?, other_numbers()])
}

/// Refuses all calls by their numbers of x32, a second way to call the same kernel, which no list of numbers covers. No call of
/// another kind has numbers as high.
fn other_numbers() -> BpfProgram {
    /// What tells them apart (`__X32_SYSCALL_BIT` of the kernel's asm/unistd.h).
    const X32: u32 = 0x4000_0000;
    let step = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    vec![
        // The number is the first field of what a filter looks at (seccomp(2)).
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// A socket of any other kind: of raw packets, of drivers, of machines beside this one.
fn foreign_family() -> Result<SeccompRule, seccompiler::BackendError> {
    let other = |family: &libc::c_int| {
        let family = u64::from(family.unsigned_abs());
        // The kernel takes an int here, whatever the upper half of the register holds.
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    };
    SeccompRule::new(FAMILIES.iter().map(other).collect::<Result<_, _>>()?)
}

fn program(calls: BTreeMap<c_long, Vec<SeccompRule>>, errno: libc::c_int) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let answer = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, answer, arch);
    filter.and_then(BpfProgram::try_from).map_err(|error| error.to_string())
}
