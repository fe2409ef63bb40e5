"""Which processor this is: its cores that are ours to use, and what it does with 8-bit integers.

x86 processors with VNNI multiply four pairs of 8-bit numbers and add them to 32 bits in one instruction.
Those without it have one that adds two products in 16 bits, where 2 x 255 x 127 does not fit: engines that
use it are quick and wrong, those that widen the numbers first are right and no quicker than float32.
ARM has the same as VNNI under the name of dot product.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from ..errors import EngineError

CPUINFO = Path("/proc/cpuinfo")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
QUOTA = Path("/sys/fs/cgroup/cpu.max")

# as Linux names them: x86's VNNI for three widths and its matrix unit, ARM's dot product and matrices
FAST = frozenset("avx512_vnni avx_vnni avx_vnni_int8 amx_int8 asimddp i8mm".split())

# as macOS names them, by the sysctl that lists or has them
MACOS = {"machdep.cpu.leaf7_features": "AVX512VNNI", "hw.optional.arm.FEAT_DotProd": "1"}


@cache
def processor() -> str:
    """A name that changes when the processor does: its model and a digest of what it can compute.

    Two machines of one name run the same code at much the same speed; "AMD EPYC 9b1f03c2".
    """
    facts, name = _cpuinfo(), os.environ.get("PROCESSOR_IDENTIFIER", platform.machine())
    if sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string") or name
    name = facts.get("model name") or facts.get("Hardware") or name
    kept = ("vendor_id", "cpu family", "model", "CPU part", "flags", "Features")
    flags = "|".join(facts.get(key, "") for key in kept)
    digest = hashlib.sha256(f"{platform.machine()}|{name}|{flags}".encode()).hexdigest()
    return f"{name} {digest[:8]}"


def require_memory(shape: tuple[int, ...], maps: int, device: str = "cpu") -> None:
    """EngineError where images (count, height, width, ...) and their first layer's maps cannot be held.

    maps: how many each image has there, float32, and the next layer as many; 0 where nobody knows.
    """
    told = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ())  # Windows does not tell it
    if device not in ("auto", "cpu") or not told:
        return
    needed = 2 * 4 * maps * math.prod(shape[:3])
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        from ..files.wording import counted

        count, height, width = shape[:3]
        raise EngineError(
            f"{counted(count, 'image')} of {height}x{width} at once would take {needed / 1e9:.1f} GB of "
            f"memory, and this machine has {there / 1e9:.1f}; take a smaller size or batch"
        )


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
    with suppress(OSError, ValueError):  # no such container, or "max"
        quota, period = map(int, QUOTA.read_text(encoding="ascii").split())
        count = min(count, -(-quota // period))
    return max(1, count)


@cache
def multiplies_fast() -> bool | None:
    """Whether the processor has instructions for 8-bit products; None where the system does not tell.

    Without them int8 is no faster than float32.
    """
    if flags := _flags():
        return bool(flags & FAST)
    if sys.platform == "darwin":
        return any(word in _sysctl(name).split() for name, word in MACOS.items())
    return None


def computes_bf16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself; only Linux is asked."""
    return bool(_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def _flags() -> set[str]:
    """What the processor can compute, in Linux' words; none where that is not told."""
    facts = _cpuinfo()
    return {*facts.get("flags", "").split(), *facts.get("Features", "").split()}


def _cpuinfo() -> dict[str, str]:
    """What Linux says of its first processor; nothing elsewhere."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    return facts


def adds_up(engine: str) -> bool:
    """Whether that engine's sums are right on this processor; tried only where they might not be."""
    return multiplies_fast() is True or not overflows(engine)


@cache
def overflows(engine: str) -> bool:
    """Whether that engine loses what does not fit into 16 bits, found out by convolving large numbers.

    EngineError where the engine is unknown, not installed, or takes no int8 graph.
    """
    from ..graphs.int8 import large_sum
    from . import Engine

    graph, pixels, total = large_sum()
    sums = Engine(engine, graph, precision="int8", threads=1).run(pixels)["sum"]
    return bool(abs(float(sums[0, 0, 4, 4]) / total - 1) > 0.01)


def _sysctl(name: str) -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
