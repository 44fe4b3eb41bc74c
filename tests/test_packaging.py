"""What is installed: the mapping of folders to packages, the version, the commands, the loop."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pubsub._version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIR: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def python(code: str, cwd: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_every_folder_with_modules_is_a_listed_package() -> None:
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for top in ("pubsub", "coordinator", "cli")
        for path in (ROOT / top).rglob("*.py")
    }
    assert folders == set(PACKAGE_DIR.values())
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == set(PACKAGE_DIR)


def test_the_version_has_one_source() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert importlib.metadata.version("pubsubd") == __version__


@pytest.mark.parametrize("package", ["pubsub.core", "pubsub.coordinator", "pubsub.cli"])
@pytest.mark.parametrize("where", ["repository", "elsewhere"])
def test_packages_import_under_their_installed_names(
    package: str, where: str, tmp_path: Path
) -> None:
    cwd = ROOT if where == "repository" else tmp_path
    file = python(f"import {package}; print({package}.__file__)", cwd)
    assert Path(file).name == "__init__.py"


def test_an_import_of_sources_that_are_not_installed_says_so(tmp_path: Path) -> None:
    (tmp_path / "pubsub").symlink_to(ROOT / "pubsub")
    code = """if 1:
        import sys
        sys.meta_path = [each for each in sys.meta_path if "editable" not in repr(each).lower()]
        try:
            import pubsub
        except ImportError as error:
            print(error)
    """
    assert "start Python in another folder" in python(code, tmp_path)


@pytest.mark.parametrize("name", ["coordinator", "cli"])
def test_no_package_of_a_general_name_is_installed(name: str, tmp_path: Path) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
    assert python(code, tmp_path) == "None"


def test_the_commands_exist() -> None:
    scripts = {
        entry.name: entry
        for entry in importlib.metadata.distribution("pubsubd").entry_points
        if entry.group == "console_scripts"
    }
    assert set(scripts) == {"pubsub", "pubsubd"}
    for entry in scripts.values():
        assert callable(entry.load())


def test_types_ship() -> None:
    assert (ROOT / "pubsub" / "py.typed").is_file()
    assert PROJECT["tool"]["setuptools"]["package-data"]["pubsub"] == ["py.typed"]


def test_importing_pubsub_needs_no_extra(tmp_path: Path) -> None:
    code = (
        "import pubsub, sys; print(sorted({'numpy', 'click', 'cryptography'} & set(sys.modules)))"
    )
    assert python(code, tmp_path) == "[]"


def test_pre_commit_and_make_lint_use_one_ruff() -> None:
    hooks = re.findall(r"ruff==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    dev = [r for r in PROJECT["project"]["optional-dependencies"]["dev"] if r.startswith("ruff")]
    assert set(hooks) == set(dev)


@pytest.mark.loop
async def test_async_tests_run_on_the_loop_that_was_asked_for(tmp_path: Path) -> None:
    default = "asyncio" if sys.platform == "win32" else "uvloop"
    asked = os.environ.get("PUBSUB_TEST_LOOP") or default
    module = type(asyncio.get_running_loop()).__module__.split(".")[0]
    assert module == asked
    code = "try:\n    import uvloop\nexcept ImportError:\n    print('hidden')"
    assert await asyncio.to_thread(python, code, tmp_path) == (
        "hidden" if asked == "asyncio" else ""
    )
