"""What a figure was measured on: it stands beside every result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine(*packages: str) -> dict[str, object]:
    """Processor, cores, what it computes in, Python and the versions of the packages named."""
    cpuinfo = Path("/proc/cpuinfo")
    facts = dict[str, str]()
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = set(facts.get("flags", "").split())
    versions = {}
    for name in ("verydeep", "numpy", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": facts.get("model name", platform.processor()),
        "family, model": f"{facts.get('cpu family', '')}, {facts.get('model', '')}",
        "has": [flag for flag in wanted if flag in flags],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }
