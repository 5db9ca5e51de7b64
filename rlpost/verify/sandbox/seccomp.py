"""The system calls a sandboxed program may not make, as a seccomp filter (classic BPF) for x86_64 and aarch64.

A deny-list with two closed ends: another architecture's call kills, and a call newer than the tables does not exist.
Numbers: the kernel's asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import errno
import functools
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LAST_KNOWN = 456

# name: (x86_64, aarch64); None where the architecture has no such call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # network: nothing to connect to, and no socket to try it with
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # namespaces and mounts: each is new attack surface in the kernel
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "mount_setattr": (442, 442),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "ioprio_set": (251, 30),
    # the parts of the kernel that exploits come through
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "lookup_dcookie": (212, 18),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    # the machine itself
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "syslog": (103, 116),
    # memory that outlives the program or that no limit counts
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semctl": (66, 191),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "get_mempolicy": (239, 236),
}
# Where the program may see the trainer's processes or files. A session or group of its own would let it outlive a worker
# that is killed by its group; Landlock knows no truncation before its third version.
_OUTSIDE: dict[str, tuple[int | None, int | None]] = {
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "truncate": (76, 45),
}
# Landlock does not cover these at all. They seem to succeed and do nothing: whoever copies a file sets its mode and times
# too, and seldom looks at them again.
_ATTRIBUTES: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
_FORKS = {"fork": (57, None), "vfork": (58, None)}
_EXECS = {"execve": (59, 221), "execveat": (322, 281)}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_SOCKETPAIR, _FCNTL, _IOCTL = (53, 199), (72, 25), (16, 29)
_KILLS = {"kill": (62, 129), "tgkill": (234, 131)}
_TKILL = (200, 130)
_PRLIMIT = (302, 261)

_CLONE_NEW = 0x7E020000  # every CLONE_NEW* namespace flag that clone takes
_CLONE_THREAD = 0x00010000
_SOCK_STREAM, _SOCK_TYPE_MASK = 1, 0xF
_SIGNAL_BY_DESCRIPTOR = (8, 10, 15)  # fcntl F_SETOWN, F_SETSIG, F_SETOWN_EX: have the kernel signal a process for us
_IOCTLS = (0x5412, 0x8901, 0x8902)  # TIOCSTI types into a terminal; FIOSETOWN, SIOCSPGRP as F_SETOWN

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; an argument's low half comes first


@functools.cache
def build(machine: str, *, processes: bool, execute: bool, only_pid: int | None, own_files: bool) -> bytes:
    """The filter, as an array of `struct sock_filter`.

    Args:
        machine: of `os.uname()`, a key of `ARCHITECTURES`.
        processes: fork is allowed (never with new namespaces).
        execute: `execve` is allowed.
        only_pid: the one process that signals and limits may be for; None where a pid namespace leaves no stranger.
        own_files: the program's user, or its root folder, is one where nothing of the trainer's could be changed.
    """
    column = list(ARCHITECTURES).index(machine)
    program: list[tuple[int, int, int, int]] = []

    def emit(code: int, k: int, true: int = 0, false: int = 0) -> None:
        program.append((code, true, false, k))

    def deny(number: int | None, error: int = errno.EPERM) -> None:
        if number is not None:
            emit(_JUMP_EQUAL, number, 0, 1)
            emit(_RETURN, _ERRNO | error)

    def inspect(number: int | None, argument: int, *tests: tuple[int, int, int, int]) -> None:
        """`tests`, on the low half of an argument, end in a return; reached only by call `number`."""
        if number is not None:
            emit(_JUMP_EQUAL, number, 0, len(tests) + 1)
            emit(_LOAD, _ARGUMENT + 8 * argument)
            program.extend(tests)

    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    emit(_LOAD, _ARCH)
    emit(_JUMP_EQUAL, ARCHITECTURES[machine], 1, 0)
    emit(_RETURN, _KILL)
    emit(_LOAD, _NUMBER)
    emit(_JUMP_GREATER, LAST_KNOWN, 0, 1)  # also every x32 call of x86_64, which has a high bit set
    emit(_RETURN, _ERRNO | errno.ENOSYS)
    for numbers in _DENIED.values():
        deny(numbers[column])
    deny(_CLONE3[column], errno.ENOSYS)  # its flags are behind a pointer; libc then falls back to clone
    if not processes:
        for numbers in _FORKS.values():
            deny(numbers[column])
    if not execute:
        for numbers in _EXECS.values():
            deny(numbers[column])
    if processes:
        inspect(_CLONE[column], 0, (_JUMP_SET, 0, 1, _CLONE_NEW), refuse, allow)
    else:
        inspect(
            _CLONE[column],
            0,
            (_JUMP_SET, 2, 0, _CLONE_NEW),
            (_JUMP_SET, 0, 1, _CLONE_THREAD),
            allow,
            refuse,
        )
    # A stream pair cannot be pointed elsewhere; a datagram one reaches the machine's abstract sockets with sendto.
    inspect(
        _SOCKETPAIR[column],
        1,
        (_AND, 0, 0, _SOCK_TYPE_MASK),
        (_JUMP_EQUAL, 0, 1, _SOCK_STREAM),
        allow,
        refuse,
    )
    inspect(_FCNTL[column], 1, *_any_of(_SIGNAL_BY_DESCRIPTOR), allow)
    inspect(_IOCTL[column], 1, *_any_of(_IOCTLS), allow)
    if only_pid is not None:
        for numbers in _KILLS.values():
            inspect(numbers[column], 0, (_JUMP_EQUAL, 0, 1, only_pid), allow, refuse)
        inspect(_PRLIMIT[column], 0, (_JUMP_EQUAL, 1, 0, 0), (_JUMP_EQUAL, 0, 1, only_pid), allow, refuse)
        for numbers in (_TKILL, *_OUTSIDE.values()):
            deny(numbers[column])
    if not own_files:
        for numbers in _ATTRIBUTES.values():
            deny(numbers[column], 0)
    emit(_RETURN, _ALLOW)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _any_of(values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    return [step for value in values for step in ((_JUMP_EQUAL, 0, 1, value), refuse)]
