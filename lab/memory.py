"""How much memory a program has needed."""

import re
from pathlib import Path

import torch


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
