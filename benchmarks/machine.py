"""A result, and what it was measured on, which stands beside every figure."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ENGINES = ("onnxruntime", "openvino", "ncnn", "MNN", "torch")  # as pip calls what `auto` may choose


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


def report(benchmark: str, result: Mapping[str, object], out: Path | None, *packages: str) -> None:
    """Print a result as JSON, and write it to `out`; with its machine and these packages' versions."""
    whole = {"benchmark": benchmark, "machine": machine(*packages), **result}
    text = json.dumps(whole, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")
