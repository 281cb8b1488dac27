"""The system calls that a container is refused, beside those that its missing capabilities refuse
anyway.

Docker's default profile lists what is allowed, some 350 names that grow with every kernel.  This
one lists what docker denies to a container with default capabilities and the kernel would allow:
ways into parts of the kernel that are not namespaced, have a long history of holes, or make new
user namespaces.  seccomp(2); OCI runtime specification 1.0, "Seccomp".
"""

from __future__ import annotations

from typing import Any, Final

ENOSYS: Final = 38
EPERM: Final = 1
CLONE_NEWUSER: Final = 0x10000000

DENIED_CALLS: Final = (
    "_sysctl",
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "fanotify_init",
    "finit_module",
    "get_kernel_syms",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "migrate_pages",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "perf_event_open",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
)


def seccomp_profile() -> dict[str, Any]:
    """Return the ``linux.seccomp`` object of a runtime configuration."""
    user_namespace = {
        "index": 0,
        "value": CLONE_NEWUSER,
        "valueTwo": CLONE_NEWUSER,
        "op": "SCMP_CMP_MASKED_EQ",
    }
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            _denied(list(DENIED_CALLS), EPERM),
            {**_denied(["clone", "unshare"], EPERM), "args": [user_namespace]},
            # Its flags are in memory, where no filter looks; with ENOSYS libc falls back to clone.
            _denied(["clone3"], ENOSYS),
        ],
    }


def _denied(names: list[str], errno: int) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}
