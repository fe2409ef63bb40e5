"""Which processor this is, and how many of its cores are ours to use."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
QUOTA = Path("/sys/fs/cgroup/cpu.max")


@cache
def processor() -> str:
    """A name that changes when the processor does: its model and a digest of what it can compute.

    Two machines of one name run the same code at much the same speed; "AMD EPYC 9b1f03c2".
    """
    name, flags = os.environ.get("PROCESSOR_IDENTIFIER", platform.machine()), ""
    if CPUINFO.exists():
        facts: dict[str, str] = {}
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
        name = facts.get("model name") or facts.get("Hardware") or name
        kept = ("vendor_id", "cpu family", "model", "CPU part", "flags", "Features")
        flags = "|".join(facts.get(key, "") for key in kept)
    elif sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string") or name
    digest = hashlib.sha256(f"{platform.machine()}|{name}|{flags}".encode()).hexdigest()
    return f"{name} {digest[:8]}"


@cache
def cores() -> int:
    """Physical cores that this process may use: those it is bound to, within its container's quota.

    Two threads of one core share its multipliers, so that a second one brings nothing here.
    """
    mine = set(range(os.cpu_count() or 1))
    if hasattr(os, "sched_getaffinity"):
        mine = os.sched_getaffinity(0)
    seen = set()
    for cpu in mine:
        try:
            seen.add(Path(SIBLINGS.format(cpu)).read_text(encoding="ascii").strip())
        except OSError:
            seen.add(str(cpu))
    count = len(seen)
    if sys.platform == "darwin":
        # the efficiency cores would be waited for
        count = int(_sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or count)
    try:
        quota, period = QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no such container
    return max(1, count)


def busy() -> bool:
    """Whether so much else ran in the last minute that times measured now mean little."""
    try:
        return os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)
    except (AttributeError, OSError):  # Windows has no such average
        return False


def _sysctl(name: str) -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
