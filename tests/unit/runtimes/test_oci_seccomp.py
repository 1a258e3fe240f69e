"""The default filter of system calls, as a value."""

from __future__ import annotations

from typing import Any

import pytest
from headrace_runtimes.oci.seccomp import NAMESPACE_FLAGS, OF_MACHINE, profile

NEVER = """
acct add_key adjtimex bpf chroot clock_adjtime clock_settime clone3 delete_module fanotify_init finit_module
fsconfig fsmount fsopen fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp
kexec_file_load kexec_load keyctl lookup_dcookie migrate_pages mount mount_setattr move_mount move_pages
name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root
process_vm_readv process_vm_writev ptrace quotactl reboot request_key setdomainname sethostname setns
settimeofday socketcall swapoff swapon syslog umount umount2 unshare userfaultfd vhangup vm86
"""


def rules(name: str, machine: str = "x86_64") -> list[dict[str, Any]]:
    found = profile(machine)
    assert found is not None
    return [rule for rule in found["syscalls"] if name in rule["names"] and "ALLOW" in rule["action"]]


def allows(name: str, *arguments: int) -> bool:
    """What the kernel would say, by the rules."""

    def fits(check: dict[str, Any]) -> bool:
        value = arguments[check["index"]]
        if check["op"] == "SCMP_CMP_EQ":
            return bool(value == check["value"])
        assert check["op"] == "SCMP_CMP_MASKED_EQ"
        return bool(value & check["value"] == check["valueTwo"])

    return any(all(fits(check) for check in rule.get("args", ())) for rule in rules(name))


@pytest.mark.parametrize("machine", sorted(OF_MACHINE))
def test_nothing_that_reaches_others_is_allowed(machine: str) -> None:
    assert [name for name in NEVER.split() if rules(name, machine)] == []


def test_what_is_not_named_fails() -> None:
    found = profile("x86_64")
    assert found is not None
    assert (found["defaultAction"], found["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    assert found["architectures"] == ["SCMP_ARCH_X86_64"], "32-bit programs make sockets that no rule sees"


def test_an_unknown_machine_has_none() -> None:
    assert profile("vax") is None


def test_processes_but_no_namespaces() -> None:
    assert allows("clone", 0x3D0F00)
    assert allows("clone", 17)
    for bit in range(64):
        if NAMESPACE_FLAGS & 1 << bit:
            assert not allows("clone", 17 | 1 << bit)
    assert NAMESPACE_FLAGS.bit_count() == 7


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ((1, 1, 0), True), ((1, 5 | 0o2004000, 0), True), ((2, 1, 6), True), ((10, 2 | 0o2000000, 17), True),
        ((16, 3, 0), True), ((16, 3, 9), False), ((16, 3, 12), False), ((2, 3, 1), False),
        ((10, 3, 58), False),
        ((2, 3 | 0o2000000, 255), False), ((17, 3, 768), False), ((40, 1, 0), False), ((38, 5, 0), False),
        ((1 << 32 | 2, 3, 1), False), ((0, 1, 0), False), ((2, 5, 132), False),
    ],
)  # fmt: skip
def test_sockets_by_family_and_type(arguments: tuple[int, int, int], allowed: bool) -> None:
    assert allows("socket", *arguments) is allowed


def test_no_name_is_there_twice_without_a_condition() -> None:
    found = profile("x86_64")
    assert found is not None
    plain = [name for rule in found["syscalls"] if "args" not in rule for name in rule["names"]]
    assert len(plain) == len(set(plain))
