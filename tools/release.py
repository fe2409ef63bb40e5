"""Build the wheel and the sdist twice, and keep them only where both times gave the same bytes.

    python tools/release.py --out dist [--version 1.2.3]

The second time everything is built from the first sdist, in another folder and later: so the sdist is
whole, and no path, clock or order of files of this machine is in what people install. Then `twine check`.
SOURCE_DATE_EPOCH is the time of the last commit where it is not set. --version refuses any other.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

__all__ = ["build", "differences", "versions"]

ROOT = Path(__file__).resolve().parent.parent
EPOCH = 1_577_836_800  # 2020-01-01, of a tree without git


def versions(root: Path = ROOT) -> dict[str, str]:
    """The version that each file says, by the file's name."""
    patterns = {
        "pyproject.toml": r'^version = "(.+)"$',
        "verydeep/__init__.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
    }
    found = {}
    for name, pattern in patterns.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else ""
    return found


def build(source: Path, out: Path) -> list[Path]:
    """The sdist and the wheel of that folder, by the build backend that is installed."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel"]
    subprocess.run(
        [*command, "--outdir", str(out), str(source)], check=True, stdout=subprocess.DEVNULL
    )
    return sorted(out.iterdir())


def differences(first: Path, second: Path) -> list[str]:
    """The names of files that are not the same in both folders, byte for byte."""
    names = {path.name for folder in (first, second) for path in folder.iterdir()}
    return [
        name
        for name in sorted(names)
        if not all((folder / name).is_file() for folder in (first, second))
        or (first / name).read_bytes() != (second / name).read_bytes()
    ]


def _epoch() -> str:
    """Seconds since 1970, of the last commit."""
    asked = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return str(EPOCH)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build a release twice, and compare.")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the two files")
    parser.add_argument("--version", help="what the version has to be")
    asked = parser.parse_args()
    said = versions()
    if len({*said.values(), asked.version or said["pyproject.toml"]}) != 1:
        print(f"versions differ: {said}, asked for {asked.version}", file=sys.stderr)
        return 1
    os.environ.setdefault("SOURCE_DATE_EPOCH", _epoch())
    with tempfile.TemporaryDirectory() as place:
        first, second, source = (Path(place, name) for name in ("first", "second", "source"))
        built = build(ROOT, first)
        sdist = next(path for path in built if path.name.endswith(".tar.gz"))
        with tarfile.open(sdist) as archive:
            archive.extractall(source, filter="data")
        build(next(source.iterdir()), second)
        if differ := differences(first, second):
            print(f"built twice, these differ: {', '.join(differ)}", file=sys.stderr)
            return 1
        subprocess.run(
            [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)], check=True
        )
        asked.out.mkdir(parents=True, exist_ok=True)
        for path in built:
            print(f"{path.stat().st_size:>12,}  {shutil.copy(path, asked.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
