"""mypy --strict over the package under its installed names, over the tests and the benchmarks.

A checker pointed at ``pubsub`` sees neither ``coordinator/`` nor ``cli/``, and passes; pointed
at the folders, it takes them for top-level packages. So this builds, of links, the tree that an
installation has (``build/types/pubsub/coordinator`` and so on), checks it by package name, and
reports the paths of the real files. It fails if mypy checked fewer files than there are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "types"
FOLDERS = {
    "pubsub": "pubsub",
    "pubsub.coordinator": "coordinator",
    "pubsub.cli": "cli",
    "tests": "tests",
    "benchmarks": "benchmarks",
}


def modules() -> list[str]:
    """Every source file, as the name of the module that it is once installed."""
    found = []
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found.append(".".join((package, *parts)).removesuffix(".__init__"))
    return found


def build_tree() -> None:
    """Link the sources as they are installed."""
    shutil.rmtree(TREE, ignore_errors=True)
    package = TREE / "pubsub"
    package.mkdir(parents=True)
    for entry in (ROOT / "pubsub").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / "coordinator").symlink_to(ROOT / "coordinator", target_is_directory=True)
    (package / "cli").symlink_to(ROOT / "cli", target_is_directory=True)
    for folder in ("tests", "benchmarks"):
        (TREE / folder).symlink_to(ROOT / folder, target_is_directory=True)


def main() -> int:
    build_tree()
    expected = modules()
    mypy = subprocess.Popen(
        [
            *(sys.executable, "-m", "mypy"),
            *("--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(ROOT / ".mypy_cache")),
            *sys.argv[1:],
            *(f"--module={name}" for name in expected),
        ],
        cwd=TREE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert mypy.stdout is not None
    checked = None
    for line in mypy.stdout:
        print(re.sub(r"^pubsub/(coordinator|cli)/", r"\1/", line), end="", flush=True)
        if count := re.search(r"(?:in|checked) (\d+) source files?\)?$", line):
            checked = int(count[1])
    status = mypy.wait()
    if status == 0 and checked != len(expected):
        print(f"mypy checked {checked} of {len(expected)} files", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
