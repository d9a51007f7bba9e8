"""Peak memory of one stage in this process: the accelerator's where there is one, else the host's."""

from __future__ import annotations

from pathlib import Path

import torch


def reset_peak_memory() -> None:
    """Start a new measurement; stages share a process, so the peak of an earlier one must not count."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:  # not Linux, or not permitted: the peak is then that of the whole process
            return


def peak_memory_bytes() -> int:
    """Largest memory in use since the last reset."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
