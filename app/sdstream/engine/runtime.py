"""Build and install the native runtime with the project's flags, patches and CPU kernels.

``sdstream setup`` and scripts/install run this module. A plain ``pip install`` compiles the
unmodified release of the runtime instead, without flags, patches and kernels. The module imports
only the standard library, because scripts/install runs it as a file before anything is installed.
It needs a C++ compiler, and adds pip to an environment that lacks it.

The build takes several minutes. The wheel and the kernels are kept in the user's cache folder,
under a hash of all inputs of the build.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent
PACKAGE: Final = "stable-diffusion-cpp-python"
#: File with the release and hash of the source distribution; an installed package contains it, a
#: checkout has it in scripts/locks.
_INSIDE: Final = _HERE / "runtime.txt"
_LOCK: Final = _INSIDE if _INSIDE.exists() else _HERE.parents[2] / "scripts/locks/native.txt"
_APPLY: Final = _HERE / "patches" / "apply.py"
_KERNELS: Final = _HERE / "kernels"

#: Builds ggml's matrix kernels, without which it is 1.8 to 2.2 times slower on the CPU.
_FLAGS: Final = "-DGGML_LLAMAFILE=ON"

#: Number of output lines to show when a step fails.
_TAIL: Final = 40

Report = Callable[[str], None]


class SetupError(Exception):
    """The runtime cannot be built or installed; the message contains the reason."""


def install(report: Report, more_flags: str = "") -> Path:
    """Install the runtime and its kernels for this Python; return the folder of its library.

    Args:
        report: Called with a message for each step.
        more_flags: Additional CMake options, for example -DSD_CUDA=ON.

    Raises:
        SetupError: A step failed.
    """
    flags = f"{_FLAGS} {more_flags}"
    add_pip(report)
    kept = _cache() / "wheels" / _key(flags)
    if not [*kept.glob("*.whl")]:
        _build_wheel(kept, flags, report)
    (wheel,) = kept.glob("*.whl")
    report(f"installing {wheel.name}")
    _pip("install", "--no-deps", "--force-reinstall", str(wheel))
    folder = _runtime_folder()
    _install_kernels(kept, folder, report)
    return folder


def add_pip(report: Report) -> None:
    """Install pip if this Python lacks it, as in environments that uv and pipx create.

    Raises:
        SetupError: Python's own installer of pip is missing or failed.
    """
    if importlib.util.find_spec("pip") is None:
        report("installing pip into this environment")
        _run([sys.executable, "-m", "ensurepip"], "pip is missing and cannot be installed")


def release() -> str:
    """Return the release of the runtime that this package requires."""
    found = re.search(rf"^{PACKAGE}==(\S+)", _LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def _key(flags: str) -> str:
    """Return a hash of what a wheel is built for: release, Python, processor, flags and patches."""
    tag = str(sys.implementation.cache_tag)
    parts = (release(), tag, platform.machine(), _processor(), flags, _patches())
    return hashlib.sha256("".join(f"{part}\n" for part in parts).encode()).hexdigest()[:16]


def _patches() -> str:
    return _run([sys.executable, str(_APPLY), "--identity"], "the patches cannot be read").strip()


def _processor() -> str:
    """Return the processor's feature flags, as the operating system spells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        command = ["sysctl", "-n", "machdep.cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()
    found = re.search(r"^(?:flags|Features).*$", text, re.MULTILINE)
    return found[0] if found else ""


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")  # noqa: TID251
    return (Path(root) if root else Path.home() / ".cache") / "sdstream"


def _build_wheel(kept: Path, flags: str, report: Report) -> None:
    compiler = os.environ.get("CXX")  # noqa: TID251
    if not any(map(shutil.which, filter(None, (compiler, "c++", "g++", "clang++")))):
        raise SetupError(f"{PACKAGE} needs a C++ compiler (Debian: apt install g++).")
    report(f"building {PACKAGE} {release()} with {flags.strip()}")
    report("this takes 2 to 4 minutes on two cores and is done once")
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder, "sources")
        locked = ("--require-hashes", "--requirement", str(_LOCK))
        _pip("download", "--no-deps", "--no-binary", PACKAGE, *locked, "--dest", folder)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            # Python 3.11.3 and older have no filters. pip has already verified the archive's hash.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
            tar.extractall(sources)  # noqa: S202
        (root,) = sources.iterdir()
        _run([sys.executable, str(_APPLY), str(root)], "the patches do not fit")
        part = Path(folder, "wheel")
        # pip would reuse a cached wheel even if it was built with other CMAKE_ARGS.
        _pip(
            "wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", str(part), str(root), flags=flags
        )
        for wheel in part.glob("*.whl"):
            unfinished = kept / f"{wheel.name}.part"
            shutil.copyfile(wheel, unfinished)
            unfinished.replace(kept / wheel.name)


def _runtime_folder() -> Path:
    code = (
        "import importlib.util as u; "
        "print(u.find_spec('stable_diffusion_cpp').submodule_search_locations[0])"
    )
    return Path(_run([sys.executable, "-c", code], "the runtime is not installed").strip(), "lib")


def _install_kernels(kept: Path, runtime: Path, report: Report) -> None:
    """Build the kernels and copy them next to the runtime's library.

    A failed build is only reported, because the runtime works without the kernels, more slowly.
    """
    sources = [*sorted(_KERNELS.glob("*.cpp")), *sorted(_KERNELS.glob("*.h"))]
    sources.append(_KERNELS / "build.py")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    built = kept / f"kernels-{digest}"
    if not built.is_dir():
        report("building the CPU kernels")
        part = Path(tempfile.mkdtemp(prefix="kernels.", dir=kept))
        try:
            _run([sys.executable, str(_KERNELS / "build.py"), str(part)], "the build failed")
            if not built.is_dir():
                part.rename(built)
        except SetupError as error:
            report(f"warning: no CPU kernels, generation is several times slower: {error}")
        finally:
            shutil.rmtree(part, ignore_errors=True)
    for old in runtime.glob("libsdstream-kernels-*.so"):
        old.unlink()
    for library in built.glob("*.so"):
        shutil.copy(library, runtime)


def _pip(*arguments: str, flags: str | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    _run(command, f"pip {arguments[0]} failed", flags)


def _run(command: list[str], failure: str, flags: str | None = None) -> str:
    """Return the output of a command; raise SetupError with its last lines if it fails."""
    environment = dict(os.environ)  # noqa: TID251
    if flags is not None:
        environment["CMAKE_ARGS"] = flags
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = f"{done.stdout}\n{done.stderr}".strip().splitlines()
        raise SetupError("\n".join([f"{failure}:", *lines[-_TAIL:]]))
    return done.stdout


def main() -> None:
    """Install the runtime with the CMake options of the environment variable CMAKE_ARGS."""
    try:
        install(_report, os.environ.get("CMAKE_ARGS", ""))  # noqa: TID251
    except SetupError as error:
        sys.exit(f"[install] error: {error}")


def _report(sentence: str) -> None:
    sys.stdout.write(f"[install] {sentence}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
