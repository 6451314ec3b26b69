"""Compile the CPU kernels into the folder of the installed runtime.

``python -m sdstream.engine.kernels.build [FOLDER]`` writes the libraries to FOLDER, by default the
folder of the runtime's library. It needs a C++ compiler and the headers that the runtime's wheel
installs. README.md in this folder describes the sources. Every x86-64 machine builds one library
for each instruction set, and the worker chooses one of them when it starts.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent

#: Instruction set -> flags of the compiler.
FLAGS: Final = {
    "avx512": (
        *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        *("-mavx512bf16", "-mavx512vnni"),
        # GCC warns about its own header, where _mm512_undefined_ps is uninitialised on purpose.
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ),
    "avx2": ("-mavx2", "-mfma", "-mf16c", "-mavxvnni"),
}
#: GGML_MAX_NAME must be the value that the runtime was built with; its headers do not define it.
_COMMON: Final = (
    *("-std=gnu++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    "-DGGML_MAX_NAME=128",
)
_SANITIZE: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")


class BuildError(Exception):
    """The kernels cannot be compiled on this machine; the message contains the reason."""


def library_name(isa: str) -> str:
    """Return the file name of the library for an instruction set."""
    return f"libsdstream-kernels-{isa}.so"


def supported() -> bool:
    """Return True if kernels exist for this operating system and processor architecture."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def runtime_folder() -> Path:
    """Return the folder of the runtime's library, without loading it.

    Raises:
        BuildError: The runtime is not installed.
    """
    spec = importlib.util.find_spec("stable_diffusion_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("stable-diffusion-cpp-python is not installed.")
    return Path(spec.submodule_search_locations[0]) / "lib"


def identity() -> str:
    """Return the identity of a library: the runtime's release and a hash of these sources."""
    release = importlib.metadata.version("stable-diffusion-cpp-python")
    sources = sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    return f"{release}-{digest.hexdigest()[:12]}"


def build(folder: Path, *, sanitize: bool = False) -> list[Path]:
    """Compile one library for each instruction set into a folder.

    Args:
        folder: Folder for the libraries; existing ones are replaced after all have been compiled.
        sanitize: Compile with the address and undefined-behaviour sanitizers.

    Raises:
        BuildError: There is no compiler, no header or no runtime, or the compiler failed.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)  # noqa: TID251
    if compiler is None:
        raise BuildError("There is no C++ compiler (Debian: apt install g++).")
    runtime = runtime_folder()
    headers = runtime.parents[1] / "include"
    if not (headers / "ggml.h").exists():
        raise BuildError(f"The runtime's headers are not in {headers}.")
    folder.mkdir(parents=True, exist_ok=True)
    built = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # A single translation unit: the compiler reads its long vector headers only once.
        unit = Path(scratch, "kernels.cpp")
        sources = sorted(SOURCES.glob("*.cpp"))
        unit.write_text("".join(f'#include "{path}"\n' for path in sources))
        running = {}
        for isa, flags in FLAGS.items():
            command = [
                *(compiler, *_COMMON, *(_SANITIZE if sanitize else ()), *flags),
                *(f'-DSDK_IDENTITY="{identity()}"', f"-I{headers}", f"-I{SOURCES}"),
                *(str(unit), "-shared", "-o", str(Path(scratch, library_name(isa)))),
                # The runtime is already loaded, so the loader finds it by its name.
                *(f"-L{runtime}", "-l:libstable-diffusion.so", "-Wl,-rpath,$ORIGIN"),
            ]
            running[isa] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        errors = {isa: process.communicate()[1] for isa, process in running.items()}
        for isa, process in running.items():
            if process.returncode:
                raise BuildError(f"The compiler failed for {isa}:\n{errors[isa][-4000:]}")
            sys.stderr.write(errors[isa])
        for isa in FLAGS:
            target = folder / library_name(isa)
            Path(scratch, library_name(isa)).replace(target)
            built.append(target)
    return built


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="default: beside the runtime")
    parser.add_argument("--sanitize", action="store_true", help="with sanitizers, for tests")
    arguments = parser.parse_args()
    if not supported():
        sys.stdout.write("There are no kernels for this machine; the runtime's own are used.\n")
        return
    try:
        for path in build(arguments.folder or runtime_folder(), sanitize=arguments.sanitize):
            sys.stdout.write(f"{path}\n")
    except BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
