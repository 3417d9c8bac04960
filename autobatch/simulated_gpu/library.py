"""Compiles the simulation for an environment's build of PyTorch, once.

A process that is to see a simulated GPU loads one library before all others (`LD_PRELOAD`), so that its
functions are found before those of NVIDIA's libraries, and with it an empty library under the name of each of
those, for what asks the loader by name. Should NVIDIA's be loaded all the same, as PyTorch does where they are
installed, none of their functions is called.

What has an answer is in `sources/`. Which functions there must be besides is read from the installed libraries
(with `nm`), so that the next PyTorch has what it needs: each of them answers "success".
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autobatch.errors import Refused

_SOURCES = Path(__file__).parent / "sources"

#: The library that is loaded first.
PRELOADED = "libautobatch_simulated_gpu.so"

#: Libraries that PyTorch opens while it runs, without being linked to them.
_OPENED = ("libcuda.so.1", "libnvidia-ml.so.1")

_NVIDIA_LIBRARY = re.compile(r"lib(cu|nccl|nvrtc|nvshmem|nvToolsExt|nvtx|nvJitLink)\w*\.so[.\d]*")
_NVIDIA_FUNCTION = re.compile(
    r"(__)?(cu[A-Z]|cuda|cublas|cudnn|cufft|cufile|curand|cusolver|cusparse|cupti|nccl|nvrtc|nvml|nvshmem|nvJitLink"
    r"|nvtx)\w*"
)
#: Functions that answer with a text rather than a number.
_TEXT = re.compile(r"\w+(ErrorString|ErrorName|StatusName|StatusString|GetLastError|LastErrorString)")

#: Of a package that torch names without a version.
_CUDNN, _NCCL = (9, 10, 0), (2, 20, 0)


class NoSimulation(Refused):
    """This environment can't simulate a GPU; the message says why and what to do."""


@dataclass(frozen=True)
class Torch:
    """An installed CUDA build of PyTorch.

    Attributes:
        path: of the package.
        cuda: version of CUDA that it was built for.
    """

    path: Path
    cuda: tuple[int, int]

    @property
    def libraries(self) -> list[Path]:
        """Its own shared libraries."""
        return sorted((self.path / "lib").glob("*.so"))


def find_torch() -> Torch:
    """The CUDA build of PyTorch in this environment, which isn't imported.

    Raises:
        NoSimulation: there is none.
    """
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        raise NoSimulation("a simulated GPU needs PyTorch, and this environment has none")
    path = Path(found.submodule_search_locations[0])
    said = (path / "version.py").read_text(encoding="utf-8")
    cuda = re.search(r"^cuda\b[^=]*=\s*['\"](\d+)\.(\d+)", said, re.MULTILINE)
    if cuda is None:
        version = re.search(r"__version__ = '([^']+)'", said)
        raise NoSimulation(
            f"a simulated GPU needs a CUDA build of PyTorch, and torch {version[1] if version else ''} in this "
            "environment is none: use the environment that trains on a GPU"
        )
    if int(cuda[1]) not in (12, 13):
        raise NoSimulation(
            f"a simulated GPU needs a PyTorch built for CUDA 12 or 13, not {cuda[1]}.{cuda[2]}"
        )
    return Torch(path, (int(cuda[1]), int(cuda[2])))


def library_dir(cache: Path | None = None) -> Path:
    """The directory of the compiled libraries, which are compiled now if they aren't there: `PRELOADED` first.

    Args:
        cache: where compiled libraries are kept; None takes the user's cache directory.

    Raises:
        NoSimulation: there is no CUDA build of PyTorch, or no C compiler, or it fails.
    """
    torch = find_torch()
    compiler = _compiler()
    cache = _user_cache() if cache is None else cache
    place = cache / f"simulated-gpu-{_key(torch, compiler)}"
    if place.is_dir():
        return place
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
            _build(Path(scratch), torch, compiler)
            # Another process may have been quicker; its libraries are the same.
            if not place.is_dir():
                Path(scratch).rename(place)
                Path(scratch).mkdir()
    except OSError as error:
        raise NoSimulation(
            f"a simulated GPU is compiled into {cache}, which fails ({error.strerror or error}): set "
            "XDG_CACHE_HOME to a directory that can be written"
        ) from error
    return place


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "autobatch"


def _compiler() -> Path:
    asked = os.environ.get("CC")
    for name in [asked] if asked else ["cc", "gcc", "clang"]:
        found = shutil.which(name)
        if found:
            return Path(found).resolve()
    raise NoSimulation(
        f"a simulated GPU needs a C compiler, and {asked or 'cc'} isn't there: install gcc, or set CC"
    )


def _key(torch: Torch, compiler: Path) -> str:
    """Hash of everything that decides the binary, cheap enough to be made at each start."""
    parts = [(torch.path / "version.py").read_text(encoding="utf-8"), str(compiler)]
    parts += [source.read_text(encoding="utf-8") for source in sorted(_SOURCES.iterdir())]
    parts.append(Path(__file__).read_text(encoding="utf-8"))
    for file in [compiler, *torch.libraries, *_nvidia_libraries(torch)]:
        status = file.stat()
        parts.append(f"{file} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _nvidia_libraries(torch: Torch) -> list[Path]:
    """NVIDIA's libraries as pip installs them, beside torch."""
    return sorted((torch.path.parent / "nvidia").glob("*/lib/*.so.*"))


def _build(place: Path, torch: Torch, compiler: Path) -> None:
    major, minor = torch.cuda
    versions = {
        "CUDA_VERSION": 1000 * major + 10 * minor,
        "CUDNN_VERSION": _number(_required("nvidia-cudnn", _CUDNN)),
        "NCCL_VERSION": _number(_required("nvidia-nccl", _NCCL)),
    }
    objects = []
    for source in sorted(_SOURCES.glob("*.c")):
        made = place / f"{source.stem}.o"
        defined = [f"-D{name}={value}" for name, value in versions.items()]
        _run([str(compiler), "-std=gnu11", "-O2", "-fPIC", *defined, "-c", str(source), "-o", str(made)])
        objects.append(made)
    nm = _run([str(compiler), "-print-prog-name=nm"]).strip()
    wanted = _undefined(nm, torch.libraries) | _driver_functions(torch) | _looked_up(torch)
    # Where NVIDIA's libraries are installed, no call may reach them: extensions call more than torch does.
    wanted |= _defined(nm, _nvidia_libraries(torch))
    rest = place / "rest.c"
    rest.write_text(_answering_success(sorted(wanted - _defined(nm, objects))), encoding="utf-8")
    linked = [str(compiler), "-shared", "-fPIC", "-O1", "-w", str(rest), *map(str, objects)]
    _run([*linked, f"-Wl,-soname,{PRELOADED}", "-o", str(place / PRELOADED), "-lpthread", "-ldl"])
    empty = place / "empty.c"
    empty.write_text("", encoding="utf-8")
    readelf = _run([str(compiler), "-print-prog-name=readelf"]).strip()
    for name in sorted({*_OPENED, *_needed(readelf, torch.libraries)}):
        named = [str(compiler), "-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wl,--no-as-needed"]
        _run([*named, "-o", str(place / name), str(empty), str(place / PRELOADED), "-Wl,-rpath,$ORIGIN"])
    # Triton 3.2 links its helper to it by this name, later ones by that of the library itself.
    (place / "libcuda.so").symlink_to("libcuda.so.1")
    for made in (rest, empty, *objects):
        made.unlink()


def _undefined(nm: str, libraries: Iterable[Path]) -> set[str]:
    return {
        name
        for library in libraries
        for name in _symbols(nm, "--undefined-only", library)
        if _NVIDIA_FUNCTION.fullmatch(name)
    }


def _defined(nm: str, files: Iterable[Path]) -> set[str]:
    return {
        name
        for file in files
        for name in _symbols(nm, "--defined-only", file)
        if _NVIDIA_FUNCTION.fullmatch(name)
    }


def _symbols(nm: str, which: str, file: Path) -> list[str]:
    dynamic = ["--dynamic"] if ".so" in file.name else ["--extern-only"]
    lines = [line.split() for line in _run([nm, *dynamic, which, "--format=posix", str(file)]).splitlines()]
    # Functions, strong and weak, and what is undefined; variables keep what their library has in them.
    return [words[0].partition("@")[0] for words in lines if len(words) > 1 and words[1] in "TWiUw"]


def _needed(readelf: str, libraries: Iterable[Path]) -> set[str]:
    """Names of NVIDIA's libraries that these are linked to."""
    found: set[str] = set()
    for library in libraries:
        names = re.findall(r"\(NEEDED\).*\[(.+)\]", _run([readelf, "--dynamic", "--wide", str(library)]))
        found.update(name for name in names if _NVIDIA_LIBRARY.fullmatch(name))
    return found


def _driver_functions(torch: Torch) -> set[str]:
    """Functions that Triton's helper, compiled against the cuda.h that it ships, may be linked to."""
    header = torch.path.parent / "triton" / "backends" / "nvidia" / "include" / "cuda.h"
    if not header.is_file():
        return set()
    text = header.read_text(encoding="utf-8", errors="replace")
    declared = re.findall(r"CUDAAPI\s+(cu\w+)\s*\(", text)
    newer = re.findall(r"#define\s+cu\w+\s+(?:__CUDA_API_PT\w+\()?(cu\w+)", text)
    return {name for name in (*declared, *newer) if _NVIDIA_FUNCTION.fullmatch(name)}


def _looked_up(torch: Torch) -> set[str]:
    """Functions of the driver and of NVML that torch looks up by name while it runs."""
    files = (torch.path / "lib" / "libc10_cuda.so", torch.path / "cuda" / "__init__.py")
    return {
        name.decode() for file in files for name in re.findall(rb"\b(?:cu|nvml)[A-Z]\w+", file.read_bytes())
    }


def _answering_success(names: Sequence[str]) -> str:
    lines = ["void trace(const char *);"]
    for name in names:
        if _TEXT.fullmatch(name):
            lines.append(f'const char *{name}(void) {{ return "simulated"; }}')
        else:
            lines.append(f'long {name}(void) {{ static int told; if (!told++) trace("{name}"); return 0; }}')
    return "\n".join(lines) + "\n"


def _required(package: str, otherwise: tuple[int, int, int]) -> tuple[int, int, int]:
    """Version of one of NVIDIA's packages that torch was built with, as its metadata says."""
    try:
        required = importlib.metadata.requires("torch") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    for line in required:
        found = re.match(rf"{package}-cu\d+==(\d+)\.(\d+)\.(\d+)", line.replace(" ", ""))
        if found:
            return int(found[1]), int(found[2]), int(found[3])
    return otherwise


def _number(version: tuple[int, int, int]) -> int:
    """As cudnnGetVersion and ncclGetVersion give it."""
    major, minor, patch = version
    return 10000 * major + 100 * minor + patch


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        said = "\n    ".join(done.stderr.strip().splitlines()[-5:])
        raise NoSimulation(
            f"a simulated GPU can't be compiled here: {' '.join(command[:1])} says\n    {said}"
        )
    return done.stdout
