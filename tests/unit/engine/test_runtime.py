"""The installation of the runtime."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

from sdstream.engine import runtime


def test_an_environment_without_pip_gets_it(tmp_path: Path) -> None:
    """uv and pipx create environments without pip, which setup installs into them."""
    venv.create(tmp_path, with_pip=False)
    folder = str(Path(runtime.__file__).parent)
    code = f"import sys; sys.path.append({folder!r}); import runtime; runtime.add_pip(print)"
    python = tmp_path / "bin" / "python"
    for printed in ("installing pip into this environment\n", ""):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)
    subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=True)
