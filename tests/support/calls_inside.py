"""Makes system calls inside another process, by ptrace, and prints what the kernel answered: `calls_inside.py PID < CALLS`.

A line of CALLS is a name, the number of the call, and its arguments: numbers, `s:` and a string that ends with a zero byte, `x:` and
bytes in hexadecimal, or `=` for the answer to the line before. Only for x86-64. The process is as it was afterwards.
"""
import ctypes
import errno
import os
import sys

ATTACH, SEIZE_WALL, GETREGS, SETREGS, STEP, DETACH = 16, 0x40000000, 12, 13, 9, 17
NAMES = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs".split()
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in NAMES]


def trace(request, address=None):
    if libc.ptrace(request, pid, None, address) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request}")


pid = int(sys.argv[1])
trace(ATTACH)
os.waitpid(pid, SEIZE_WALL)
saved = Registers()
trace(GETREGS, ctypes.addressof(saved))
memory = open(f"/proc/{pid}/mem", "r+b", 0)
at_call = saved.rip - 2
memory.seek(at_call)
try:
    if memory.read(2) != b"\x0f\x05":
        sys.exit(77)
    answer = 0
    for line in sys.stdin:
        name, number, *words = line.split()
        free = (saved.rsp - 65536) & ~15
        values = []
        for word in words:
            kind, _, rest = word.partition(":")
            if kind in "sx" and _:
                data = rest.encode() + b"\0" if kind == "s" else bytes.fromhex(rest)
                memory.seek(free)
                memory.write(data)
                values.append(free)
                free += (len(data) + 15) & ~15
            else:
                values.append((answer if word == "=" else int(word, 0)) & (2**64 - 1))
        values += [0] * (6 - len(values))
        registers = Registers.from_buffer_copy(saved)
        registers.rip, registers.rax, registers.orig_rax = at_call, int(number, 0), 2**64 - 1
        registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9 = values
        trace(SETREGS, ctypes.addressof(registers))
        trace(STEP)
        os.waitpid(pid, SEIZE_WALL)
        trace(GETREGS, ctypes.addressof(registers))
        answer = ctypes.c_longlong(registers.rax).value
        said = errno.errorcode.get(-answer, answer) if -4096 < answer < 0 else answer
        print(name, said, flush=True)
finally:
    trace(SETREGS, ctypes.addressof(saved))
    trace(DETACH)
