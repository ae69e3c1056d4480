"""Memory: the size of a chunk, whether the machine has that much, and what tells that it ended all the same."""

import os
from pathlib import Path

import jax

from engine.device_memory import free_memory
from toys.writer import AT_ONCE

__all__ = ["check", "free_bytes", "is_used_up", "toys_per_chunk"]

CHUNK_BYTES = 32 * 2**20
LARGEST_CHUNK = 8192
# a chunk that is thrown, its copy in the form of the cost, its results, temporaries, and those that are being written
COPIES = 4 + AT_ONCE
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
# of cgroups version 2 and 1: (limit, what is used, what of it can be taken back)
LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def toys_per_chunk(bytes_per_toy: int) -> int:
    """How many toys fill CHUNK_BYTES, from 1 to LARGEST_CHUNK."""
    return min(max(CHUNK_BYTES // max(bytes_per_toy, 1), 1), LARGEST_CHUNK)


def free_bytes() -> int | None:
    """Bytes that this process may still take, as far as the system and the limits of its container tell; else None."""
    free = [_meminfo(), *(_cgroup(*names) for names in LIMITS)]
    known = [n for n in free if n is not None]
    return max(0, min(known)) if known else None


def check(chunk: int, bytes_per_toy: int, platform: str) -> None:
    """Raise ValueError if a chunk does not fit into what is free, with the chunk that would.

    Parameters
    ----------
    chunk : int
        Toys in a chunk.
    bytes_per_toy : int
    platform : str
        Of the device that fits: on an accelerator, a toy must fit into its memory, too.
    """
    free = free_bytes()
    if free is not None and COPIES * chunk * bytes_per_toy > free:
        _refuse(chunk, COPIES * bytes_per_toy, free, "memory")
    device = free_memory(jax.devices(platform)) if platform != "cpu" else None
    if device is not None and bytes_per_toy > device:
        _refuse(1, bytes_per_toy, device, f"memory of the {platform}")


def _refuse(chunk: int, bytes_each: int, free: int, what: str) -> None:
    fits = 1
    while 2 * fits * bytes_each <= free and 2 * fits < chunk:
        fits *= 2
    needed = f"{chunk} toys at once need {_told(chunk * bytes_each)} of {what} and {_told(free)} are free"
    raise ValueError(f"{needed}: " + (f"pass --chunk {fits}" if bytes_each <= free else "not even one toy fits"))


def _told(n_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes / 1000:.3g} kB"


def _meminfo() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (KeyError, ValueError):
        return None


def _cgroup(limit: str, used: str, statistics: str, reclaimable: str) -> int | None:
    try:
        allowed = int((CGROUP / limit).read_text())
        cache = dict(line.split() for line in (CGROUP / statistics).read_text().splitlines())
        return allowed - int((CGROUP / used).read_text()) + int(cache.get(reclaimable, 0))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None


def is_used_up(error: BaseException) -> bool:
    """Whether an error says that there is no more memory, of this machine or of the device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )
