"""The default filter of system calls: what is not named here fails, as if it were not allowed.

Left out on purpose: mounts and namespaces, modules, kexec, bpf, perf, keyrings, other processes' memory
(ptrace, process_vm_*, pidfd_getfd, kcmp), io_uring (its operations pass no filter), userfaultfd, clocks and
host names, swap, quotas, file handles, raw input and output, and whatever comes with later kernels.
"""

from __future__ import annotations

from typing import Any

EPERM, ENOSYS = 1, 38
NAMESPACE_FLAGS = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_DGRAM, SOCK_TYPES = 1, 2, 0xF
NETLINK_ROUTE = 0
PERSONALITIES = (0x0, 0x20000, 0xFFFF_FFFF)
"""Linux, Linux that tells version 2.6, and the question which one it is."""

FILES = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock
fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr
llistxattr lremovexattr lseek lsetxattr lstat memfd_create memfd_secret mkdir mkdirat mknod mknodat newfstatat
open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
removexattr rename renameat renameat2 rmdir sendfile setxattr splice stat statfs statx symlink symlinkat sync
sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev
"""
MEMORY = """
brk cachestat get_mempolicy madvise map_shadow_stack mbind membarrier mincore mlock mlock2 mlockall mmap
mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise
process_mrelease remap_file_pages set_mempolicy set_mempolicy_home_node
"""
PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getegid
geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage
getsid gettid getuid ioprio_get ioprio_set kill pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall
rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setpgid
setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid sysinfo tgkill time times tkill
uname vfork wait4 waitid
"""
SIGNALS_AND_TIME = """
alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep pause rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
setitimer sigaltstack signalfd signalfd4 timer_create timer_delete timer_getoverrun timer_gettime
timer_settime timerfd_create timerfd_gettime timerfd_settime
"""
WAITING_AND_TALKING = """
accept accept4 bind connect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
epoll_wait epoll_wait_old eventfd eventfd2 futex futex_requeue futex_wait futex_waitv futex_wake getpeername
getrandom getsockname getsockopt io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl
landlock_add_rule landlock_create_ruleset landlock_restrict_self listen mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 poll ppoll pselect6 recvfrom
recvmmsg recvmsg select semctl semget semop semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt
shmget shutdown socketpair
"""
OF_MACHINE: dict[str, tuple[str, tuple[str, ...]]] = {
    "x86_64": ("SCMP_ARCH_X86_64", ()),
    "aarch64": ("SCMP_ARCH_AARCH64", ()),
    "riscv64": ("SCMP_ARCH_RISCV64", ("riscv_flush_icache", "riscv_hwprobe")),
    "ppc64le": ("SCMP_ARCH_PPC64LE", ("swapcontext", "sync_file_range2")),
}
"""``uname -m`` to libseccomp's name, and calls that only it has. Programs of the machine's 32-bit sister are
killed: there, one call makes all sockets, and no filter sees which."""


def profile(machine: str) -> dict[str, Any] | None:
    """``linux.seccomp`` for a kind of machine (``uname -m``); None for one that this list does not know."""
    known = OF_MACHINE.get(machine)
    if known is None:
        return None
    architecture, own = known
    groups = (FILES, MEMORY, PROCESSES, SIGNALS_AND_TIME, WAITING_AND_TALKING)
    names = {*own, *(name for group in groups for name in group.split())}
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": [architecture],
        "syscalls": [
            _allow(sorted(names)),
            _allow(["clone"], _masked(0, NAMESPACE_FLAGS, 0)),
            # Its flags are in memory, where no filter looks: who is told that it is missing uses clone.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
            _allow(["socket"], _equal(0, AF_UNIX)),
            *(
                _allow(["socket"], _equal(0, family), _masked(1, SOCK_TYPES, kind))
                for family in (AF_INET, AF_INET6)
                for kind in (SOCK_STREAM, SOCK_DGRAM)
            ),
            # Libraries read addresses of interfaces by it; changing any takes a capability.
            _allow(["socket"], _equal(0, AF_NETLINK), _equal(2, NETLINK_ROUTE)),
            *(_allow(["personality"], _equal(0, value)) for value in PERSONALITIES),
        ],
    }


def _allow(names: list[str], *arguments: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ALLOW"}
    return rule | {"args": list(arguments)} if arguments else rule


def _equal(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
