"""The umask, which all threads of a process share: it is read here, and never changed.

A thread that changes it for a moment changes what all others make meanwhile, and two that do so at once may
leave the wrong one behind for good.
"""

from __future__ import annotations

from pathlib import Path


def umask() -> int:
    """Return the umask of this process, as proc_pid_status(5) has it (Linux 4.7). Raises `OSError`."""
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
