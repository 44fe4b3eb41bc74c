"""The examples of docs/from-dask.md, run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="needs the extra pubsubd[dask]")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

SAYS = {
    "dask_feed": r"\nresults: \[0, 210, 420, 630\]\n$",
    "dask_control": r"^3 environments, 50 steps each, off by \[[^,]+e-1\d(, [^,]+e-1\d){2}\]\n$",
    "dask_results": (
        r"^rank 0 is done\nrank 1 is done\n(rank [01]/metrics\.jsonl: 93 bytes\n"
        r"rank [01]/weights\.pickle: 8,\d+ bytes\n){2}lost: 0\n$"
    ),
    "dask_logs": (
        r"^(INFO    job \d (begins|is done)\n|WARNING job [25] is odd\n){14}6 jobs, lost: 0\n$"
    ),
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("dask_*.py")} == set(SAYS)


def run(program: Path, cwd: Path) -> str:
    ran = subprocess.run(
        [sys.executable, str(program)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", SAYS)
def test_the_example_does_what_it_says(name: str, tmp_path: Path) -> None:
    said = run(EXAMPLES / f"{name}.py", tmp_path)
    assert re.search(SAYS[name], said), said


def test_the_whole_program_of_the_page_prints_what_it_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "from-dask.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```py\n(from distributed .*?)^```$", page, re.M | re.S)
    (says,) = re.findall(r"# prints (.*)", program)
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    assert run(file, tmp_path) == f"{says}\n"
