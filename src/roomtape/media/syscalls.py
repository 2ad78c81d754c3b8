"""The seccomp filter's program: which system calls a decoder may never make, as BPF for the two processors we run on.

A list of what is refused, not of what is allowed: libc, numpy and ffmpeg differ between builds in the harmless calls they make,
and what a decoder could do harm with is a short list that does not. Calls newer than the list answer ENOSYS, so that no later kernel opens a door.
"""

import struct
from dataclasses import dataclass

# name = number on x86_64 / number on aarch64 (asm/unistd_64.h, asm-generic/unistd.h); "-" where the processor has none.
_REFUSED = """
socket=41/198 socketpair=53/199 connect=42/203 bind=49/200 listen=50/201 accept=43/202 accept4=288/242 sendto=44/206 sendmsg=46/211 sendmmsg=307/269
recvfrom=45/207 recvmsg=47/212 recvmmsg=299/243
ptrace=101/117 process_vm_readv=310/270 process_vm_writev=311/271 kcmp=312/272 pidfd_open=434/434 pidfd_getfd=438/438 pidfd_send_signal=424/424
process_madvise=440/440 process_mrelease=448/448 kill=62/129 tkill=200/130 rt_sigqueueinfo=129/138 rt_tgsigqueueinfo=297/240
fork=57/- vfork=58/- execveat=322/281 setsid=112/157 setpgid=109/154
mount=165/40 umount2=166/39 pivot_root=155/41 chroot=161/51 unshare=272/97 setns=308/268 move_mount=429/429 open_tree=428/428 fsopen=430/430
fsconfig=431/431 fsmount=432/432 fspick=433/433 mount_setattr=442/442
open_by_handle_at=304/265 name_to_handle_at=303/264 truncate=76/45 creat=85/- link=86/- linkat=265/37 symlink=88/- symlinkat=266/36 mknod=133/-
mknodat=259/33 chmod=90/- fchmod=91/52 fchmodat=268/53 chown=92/- fchown=93/55 lchown=94/- fchownat=260/54 setxattr=188/5 lsetxattr=189/6
fsetxattr=190/7 removexattr=197/14 lremovexattr=198/15 fremovexattr=199/16 utime=132/- utimes=235/- utimensat=280/88 futimesat=261/-
setuid=105/146 setgid=106/144 setreuid=113/145 setregid=114/143 setresuid=117/147 setresgid=119/149 setgroups=116/159 setfsuid=122/151
setfsgid=123/152 capset=126/91 personality=135/92
keyctl=250/219 add_key=248/217 request_key=249/218 bpf=321/280 perf_event_open=298/241 userfaultfd=323/282 io_uring_setup=425/425
io_uring_enter=426/426 io_uring_register=427/427 fanotify_init=300/262
init_module=175/105 finit_module=313/273 delete_module=176/106 kexec_load=246/104 kexec_file_load=320/294 reboot=169/142 swapon=167/224
swapoff=168/225 acct=163/89 quotactl=179/60 quotactl_fd=443/443 syslog=103/116 vhangup=153/58 iopl=172/- ioperm=173/-
settimeofday=164/170 clock_settime=227/112 clock_adjtime=305/266 adjtimex=159/171 sethostname=170/161 setdomainname=171/162
shmget=29/194 shmat=30/196 shmctl=31/195 msgget=68/186 msgsnd=69/189 msgrcv=70/188 msgctl=71/187 semget=64/190 semop=65/193 semctl=66/191
semtimedop=220/192 mq_open=240/180 mq_unlink=241/181
setpriority=141/140 ioprio_set=251/30 sched_setscheduler=144/119 sched_setattr=314/274 sched_setparam=142/118 migrate_pages=256/238 move_pages=279/239
"""
_NEWEST = 450  # the first call beyond the list: fchmodat2, mseal, later listmounts … answer ENOSYS; x32 calls (bit 30) too


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor as seccomp sees it: its audit name, its column above, and the numbers of the calls that are judged by their arguments."""

    audit: int
    column: int
    clone: int
    clone3: int
    execve: int
    prlimit: int
    tgkill: int
    openat: int
    openat2: int
    open: int | None


MACHINES = {
    "x86_64": Machine(0xC000003E, 0, 56, 435, 59, 302, 234, 257, 437, 2),
    "aarch64": Machine(0xC00000B7, 1, 220, 435, 221, 261, 131, 56, 437, None),
}

# struct seccomp_data { int nr; u32 arch; u64 ip; u64 args[6]; }, little-endian on both
_NR, _ARCH = 0, 4
_LOAD, _EQ, _GE, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_CLONE_THREAD, _O_ACCMODE, _O_TRUNC = 0x00010000, 0o3, 0o1000

Op = tuple[int, int, int, int]


def _arg(n: int, *, high: bool = False) -> Op:
    return (_LOAD, 0, 0, 16 + 8 * n + (4 if high else 0))


def _unless(value: int, answer: int) -> list[Op]:
    """Answers when the accumulator is not `value`."""
    return [(_EQ, 1, 0, value), (_RETURN, 0, 0, answer)]


def _call(number: int, rules: list[Op]) -> list[Op]:
    """The rules of one call; they end in a verdict, other calls jump over them."""
    body = [*rules, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQ, 0, len(body), number), *body]


def program(machine: Machine, *, pid: int, exec_at: int = 0) -> bytes:
    """The filter for the process `pid`. `exec_at`: the address of the one path that may be executed (0: none)."""
    ops: list[Op] = [(_LOAD, 0, 0, _ARCH), *_unless(machine.audit, _KILL), (_LOAD, 0, 0, _NR)]
    ops += [(_GE, 0, 1, _NEWEST), (_RETURN, 0, 0, _ENOSYS)]
    for entry in _REFUSED.split():
        number = entry.partition("=")[2].split("/")[machine.column]
        if number != "-":
            ops += [(_EQ, 0, 1, int(number)), (_RETURN, 0, 0, _EPERM)]
    for unreadable in (machine.clone3, machine.openat2):  # their flags lie in memory, out of the filter's sight: libc then takes the older call
        ops += [(_EQ, 0, 1, unreadable), (_RETURN, 0, 0, _ENOSYS)]
    ops += _call(machine.clone, [_arg(0), (_AND, 0, 0, _CLONE_THREAD), *_unless(_CLONE_THREAD, _EPERM)])
    ops += _call(machine.prlimit, [_arg(0), *_unless(0, _EPERM)])  # another process of the same user is out of reach
    ops += _call(machine.tgkill, [_arg(0), *_unless(pid, _EPERM)])  # abort() signals itself
    ops += _call(machine.openat, _no_truncating_reader(2))
    if machine.open is not None:
        ops += _call(machine.open, _no_truncating_reader(1))
    if exec_at:
        ops += _call(machine.execve, [_arg(0), *_unless(exec_at & 0xFFFFFFFF, _EPERM), _arg(0, high=True), *_unless(exec_at >> 32, _EPERM)])
    else:
        ops += [(_EQ, 0, 1, machine.execve), (_RETURN, 0, 0, _EPERM)]
    ops.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *op) for op in ops)


def _no_truncating_reader(flags: int) -> list[Op]:
    """O_RDONLY | O_TRUNC empties a file that Landlock before ABI 3 thinks is only read; our inputs are hard links of stored objects."""
    return [_arg(flags), (_AND, 0, 0, _O_ACCMODE | _O_TRUNC), (_EQ, 0, 1, _O_TRUNC), (_RETURN, 0, 0, _EPERM)]
