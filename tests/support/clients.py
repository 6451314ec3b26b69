"""Published clients, which are too many or too old for the project's environment.

They are installed from their registries into the user's cache, once for each list of versions,
and run in separate processes. Without the tool or the network, a test that needs them is skipped,
unless the variable CI is set; then it fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

NODE = Path(__file__).parents[1] / "e2e" / "node"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdstream" / "clients"


def extra(answer: object, name: str) -> Any:
    """A field of a response that the client's types do not have."""
    return getattr(answer, name)


def run_node(script: str, *arguments: str) -> Any:
    """Run a script of tests/e2e/node with its npm packages; return the JSON that it printed."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            _cannot(f"{tool} is not installed")
    packages = NODE / "package.json"
    folder = _kept("npm", packages.read_text(), lambda into: _npm_install(packages, into))
    # Node looks for packages from the script's own folder upwards.
    shutil.copy(NODE / script, folder / script)
    return json.loads(_output(["node", script, *arguments], folder))


def run_python(code: str, requirements: tuple[str, ...], *arguments: str) -> Any:
    """Run code with packages from PyPI; return the JSON that it printed."""
    folder = _kept("pip", "\n".join(requirements), lambda into: _pip_install(requirements, into))
    return json.loads(
        _output([sys.executable, "-W", "ignore", "-c", code, *arguments], folder, PYTHONPATH=folder)
    )


def _kept(kind: str, versions: str, install: Callable[[Path], None]) -> Path:
    name = hashlib.sha256(f"{sys.version_info[:2]} {versions}".encode()).hexdigest()[:16]
    folder = CACHE / f"{kind}-{name}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as parts:
            install(Path(parts) / "whole")
            # The folder gets its name only when the installation is complete, so two tests can
            # install the same packages at once.
            if not folder.exists():
                (Path(parts) / "whole").rename(folder)
    return folder


def _npm_install(packages: Path, into: Path) -> None:
    into.mkdir()
    shutil.copy(packages, into / "package.json")
    _install(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], into)


def _pip_install(requirements: tuple[str, ...], into: Path) -> None:
    into.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    _install([*pip, "--target", str(into), *requirements], into)


def _install(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=100, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        _cannot(f"{command[0]} could not install the client: {' '.join(last)}")


def _output(command: list[str], folder: Path, **environment: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode()


def _cannot(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
