"""The Linux calls the sandbox is made of, by ctypes: nothing to compile, no setuid helper.

Each raises OSError, naming the call, where the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 0x1, 0x2, 0x4

HUGE_PAGE = 2 * 2**20
_MADV_COLLAPSE = 25
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECCOMP_MODE_FILTER = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_CAPABILITY_VERSION_3 = 0x20080522

# Landlock's rights (linux/landlock.h); what a release adds is handled from that ABI on.
FS_EXECUTE, FS_WRITE, FS_READ, FS_LIST = 1, 2, 4, 8
_FS_MAKE_CHAR, _FS_MAKE_BLOCK = 1 << 6, 1 << 11
_FS_ALL, _FS_REFER, _FS_TRUNCATE, _FS_IOCTL = (1 << 13) - 1, 1 << 13, 1 << 14, 1 << 15
_NET_BIND_CONNECT = 3
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_fork = ctypes.PyDLL(None, use_errno=True).fork  # holding the interpreter's lock, which the child then holds too


def _done(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: int | bytes | None) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _done(_libc.syscall(ctypes.c_long(number), *wide), what)


def fork() -> int:
    """`os.fork` for a process of one thread: without the interpreter's own work afterwards, most of it for threads, which
    writes to more pages than all that a small request needs."""
    return _done(_fork(), "fork")


def unshare(flags: int) -> None:
    _done(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    _done(_libc.setns(fd, kind), "setns")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    result = _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _done(result, f"mount on {target}")


def unmount(target: str) -> None:
    _done(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def restrict_mount(path: str, attributes: int) -> None:
    """Set `ATTR_*` on a mount and all below it (Linux 5.12)."""
    arguments = struct.pack("QQQQ", attributes, 0, 0, 0)
    _syscall("mount_setattr", _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), _AT_RECURSIVE, arguments, len(arguments))


def enter_root(new_root: str) -> None:
    """Make `new_root`, a mount, the root of this mount namespace and let the old one go."""
    os.chdir(new_root)
    # Both at one place: the old root ends up on top of the new one, and is taken off from there.
    _syscall("pivot_root", _PIVOT_ROOT[os.uname().machine], b".", b".")
    unmount(".")
    os.chdir("/")


def collapse(start: int, end: int) -> None:
    """Put whole huge pages of anonymous memory between two addresses in huge pages, as far as the kernel likes (6.1)."""
    for address in range(-(-start // HUGE_PAGE) * HUGE_PAGE, end - HUGE_PAGE + 1, HUGE_PAGE):
        _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(HUGE_PAGE), _MADV_COLLAPSE)


def die_with_parent(signal: int) -> None:
    _done(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def adopt_orphans() -> None:
    _done(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def no_new_privileges() -> None:
    _done(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def drop_bounding_set() -> None:
    """No program this process or its children start can have a capability; those held now stay."""
    number = 0
    while _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1


def drop_capabilities() -> None:
    header, nothing = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    _done(_libc.capset(header, nothing), "capset")


def seccomp(program: bytes) -> Callable[[], None]:
    """What installs a filter for the process that calls it and all it starts; needs `no_new_privileges`."""
    code = ctypes.create_string_buffer(program, len(program))

    def install() -> None:
        descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
        _done(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, descriptor, 0, 0), "prctl(PR_SET_SECCOMP)")

    return install


def landlock_abi() -> int:
    """Landlock's version here, 0 without."""
    try:
        return _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def landlock_rights(abi: int) -> int:
    """Every file right that this version handles: what no rule grants is then refused."""
    extra = (_FS_REFER if abi >= 2 else 0) | (_FS_TRUNCATE if abi >= 3 else 0) | (_FS_IOCTL if abi >= 5 else 0)
    return _FS_ALL | extra


def landlock(abi: int, rules: list[tuple[int, int]], writable: int | None) -> None:
    """Restrict this process and all it starts.

    Args:
        abi: of `landlock_abi`, at least 1.
        rules: (O_PATH descriptor, `FS_*` rights) of what may be reached.
        writable: descriptor of the directory where all is allowed but making devices, if there is one.
    """
    everything = landlock_rights(abi)
    # struct landlock_ruleset_attr grew: files; TCP by ABI 4; signals and abstract sockets by ABI 6.
    attributes = struct.pack("QQQ", everything, _NET_BIND_CONNECT, _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, attributes, size, 0)
    try:
        granted = [*rules]
        if writable is not None:
            granted.append((writable, everything & ~(_FS_MAKE_CHAR | _FS_MAKE_BLOCK)))
        for fd, rights in granted:
            _syscall("landlock_add_rule", _LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
        _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
