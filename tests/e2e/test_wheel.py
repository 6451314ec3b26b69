"""The built distributions, installed beside another distribution with a package named ``app``."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from sdstream.engine.kernels.build import supported
from sdstream.engine.runtime import release
from tests.support.servers import running_server

ROOT = Path(__file__).parents[2]

#: Another distribution with a package named ``app``, which fails on import.
FOREIGN_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "foreign-app"
version = "1.0"
[tool.hatch.build.targets.wheel]
packages = ["app"]
"""
FOREIGN_MODULE = 'raise ImportError("the package of another distribution was imported")\n'


def _build(project: Path, target: Path, *kinds: str) -> Path:
    """Build a project without a network; return the wheel."""
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(target)]
    subprocess.run([*command, str(project)], check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def foreign_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the foreign distribution."""
    project = tmp_path_factory.mktemp("foreign")
    _write_foreign_package(project)
    (project / "pyproject.toml").write_text(FOREIGN_PROJECT)
    return _build(project, project / "dist", "--wheel")


def _write_foreign_package(folder: Path) -> None:
    (folder / "app").mkdir()
    (folder / "app" / "__init__.py").write_text(FOREIGN_MODULE)


def _fresh_python(folder: Path, *wheels: Path) -> Path:
    """Create a virtual environment with these wheels; return its interpreter.

    Dependencies come from the environment that runs the tests. A line of a .pth file adds a folder
    without reading the .pth files in that folder, so that the editable checkout is not importable.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    subprocess.run([*command, "--no-index", *map(str, wheels)], check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.parametrize("kinds", [("--wheel",), ()], ids=["wheel", "wheel-from-sdist"])
def test_an_installed_wheel_generates_beside_a_foreign_app(
    kinds: tuple[str, ...], foreign_wheel: Path, tmp_path: Path
) -> None:
    """The wheel contains only ``sdstream``, generates an image and serves the page."""
    wheel = _build(ROOT, tmp_path / "dist", *kinds)
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sdstream"}

    python = _fresh_python(tmp_path / "venv", foreign_wheel, wheel)
    folder = tmp_path / "folder"
    folder.mkdir()
    _write_foreign_package(folder)
    where = subprocess.run(
        [python, "-c", "import sdstream; print(sdstream.__file__)"],
        cwd=folder, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with running_server(tmp_path, python=python, cwd=folder, environment=environment) as server:
        answer = server.post({"prompt": "a red circle", "size": "64x64", "steps": 2})
        file = base64.b64decode(answer.json()["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(file)).size == (64, 64)
        page = httpx2.get(f"{server.url}/", headers={"Accept": "text/html"})
        assert page.status_code == 200
        assert "<title>" in page.text
        assert httpx2.get(f"{server.url}/static/app.js").status_code == 200


def test_setup_gives_a_wheel_the_quick_runtime(tmp_path: Path) -> None:
    """setup installs the runtime and kernels that scripts/install has cached, and the server uses
    them."""
    wheel = _build(ROOT, tmp_path / "dist", "--wheel")
    python = _fresh_python(tmp_path / "venv", wheel)
    done = subprocess.run(
        [python, "-m", "sdstream", "setup"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"The runtime {release()} is installed in ")
    (library,) = (tmp_path / "venv").glob("lib/python*/site-packages/stable_diffusion_cpp/lib")
    if supported():
        assert [*library.glob("libsdstream-kernels-*.so")]
    used = {}
    for name, interpreter in (("wheel", python), ("checkout", Path(sys.executable))):
        folder = tmp_path / name
        folder.mkdir()
        with running_server(folder, python=interpreter, cwd=folder) as server:
            used[name] = httpx2.get(f"{server.url}/v1/models/embedded").json()["kernels"]
            assert "several times slower" not in server.log.read_text()
            assert "without its matrix kernels" not in server.log.read_text()
    assert used["wheel"] == used["checkout"]


def test_setup_reports_what_it_lacks(tmp_path: Path) -> None:
    """setup exits with 1 and an error if no runtime is cached and no compiler is installed."""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "sdstream", "setup"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "Error: stable-diffusion-cpp-python needs a C++ compiler (Debian: apt install g++).\n"
    )
