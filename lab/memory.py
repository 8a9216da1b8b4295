"""How much memory a program has needed, and whether it keeps what it has freed."""

import ctypes
import platform
import re
from pathlib import Path

import torch

HAS_GLIBC = platform.libc_ver()[0] == "glibc"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # names and numbers of malloc.h
LARGE = 5_000_000  # bytes: the logits of a chunk, and not the activations of a block


def peak_mib() -> float:
    """The most memory that this program has held, or, if that is more, its tensors on a GPU."""
    on_card = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else 0.0
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child begins with what its parent held, even behind exec
        held = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    else:
        try:
            import resource
        except ImportError:  # Windows has no such module
            return on_card
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return max(held, on_card)


def keep_what_is_freed() -> None:
    """From now on the C library keeps large pieces of memory that were freed, for the next use.

    Else it hands them back, and gets them again as pages of zeros, at every layer: a tenth of the
    time at 135M parameters. Does nothing where the library is not glibc.
    """
    if HAS_GLIBC:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def hand_back_at_once() -> None:
    """From now on the C library hands back what is LARGE when it is freed, whatever came before.

    Else it learns from the first pieces that are freed to keep such pieces, up to 32 MiB, and small
    ones that live longer come to lie in their places. Does nothing where the library is not glibc.
    """
    if HAS_GLIBC:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE)


def hand_back() -> None:
    """What the C library has kept goes back to the system."""
    if HAS_GLIBC:
        ctypes.CDLL(None).malloc_trim(0)
