"""Simulated GPUs where none can be simulated: names, refusals, the cache of kernels. The rest: tests/cuda."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from autobatch.cli.main import main
from autobatch.errors import UsageError
from autobatch.simulated_gpu.environment import is_simulated
from autobatch.simulated_gpu.gpus import GPUS, gpu_named, gpu_of_capacity, gpu_of_product
from autobatch.simulated_gpu.kernels import forget_timings, kernel_cache
from autobatch.simulated_gpu.library import NoSimulation, Torch, find_torch, library_dir

GIB = 2**30


def test_every_gpu_has_all_that_the_sources_ask_for() -> None:
    wanted = set(GPUS["h100-80gb"].settings())

    for gpu in GPUS.values():
        settings = gpu.settings()
        assert set(settings) == wanted
        assert all(value for name, value in settings.items() if name != "minor")
        # The settings are one string, and a name ends at a semicolon.
        assert ";" not in gpu.product
        assert gpu_of_product(gpu.product) == gpu


@pytest.mark.parametrize(
    ("name", "product", "gib", "multiprocessors"),
    [
        pytest.param("h100-80gb:1g.10gb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", 79.11 / 8, 18, id="an eighth"),
        pytest.param(
            "h100-80gb:1g.20gb", "NVIDIA H100 80GB HBM3 MIG 1g.20gb", 79.11 / 4, 18, id="1g, more memory"
        ),
        pytest.param("a100-40gb:3g.20gb", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", 39.39 / 2, 46, id="a half"),
        pytest.param("a100-80gb:7g.80gb", "NVIDIA A100-SXM4-80GB MIG 7g.80gb", 79.14, 108, id="all of it"),
    ],
)
def test_slices(name: str, product: str, gib: float, multiprocessors: int) -> None:
    gpu = gpu_named(name)

    assert (gpu.product, gpu.multiprocessors) == (product, multiprocessors)
    assert gpu.total_bytes == pytest.approx(gib * GIB, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("h100", "no such GPU; there are t4-16gb, l4-24gb", id="no such GPU"),
        pytest.param(
            "h100-80gb:5g.50gb", "no such MIG slice; there are 1g.10gb, 1g.20gb, 2g.20gb", id="no slice"
        ),
        pytest.param("l40s-48gb:1g.6gb", "l40s-48gb has no MIG slices", id="not sliced"),
    ],
)
def test_wrong_names_list_the_right_ones(name: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        gpu_named(name)

    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("product", "name"),
    [
        pytest.param("NVIDIA H100 PCIe", "h100-80gb", id="another H100"),
        pytest.param("NVIDIA A100-PCIE-40GB", "a100-40gb", id="another A100"),
        pytest.param("NVIDIA GeForce GTX 1080", None, id="unknown"),
    ],
)
def test_a_gpu_like_the_one_that_the_driver_names(product: str, name: str | None) -> None:
    gpu = gpu_of_product(product)

    assert (gpu.name if gpu else None) == name


def test_a_gpu_with_another_memory() -> None:
    gpu = gpu_of_capacity(gpu_named("h200-141gb"), 64 * GIB)

    assert (gpu.total_bytes, gpu.capability, gpu.name) == (64 * GIB, (9, 0), "h200-141gb with 64.00 GiB")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param([], 2, "nothing to run: write the command behind --", id="no command"),
        pytest.param(["--gpu", "h1", "--", "true"], 2, "no such GPU", id="wrong GPU"),
        pytest.param(["--gpus", "0", "--", "true"], 2, "a machine has 1 to 64", id="no GPUs"),
        pytest.param(["--capacity", "much", "--", "true"], 2, "not a size", id="no size"),
        pytest.param(
            ["--taken", "2", "--", "no-such-command"],
            2,
            "no-such-command: no such command",
            id="no such command",
        ),
        pytest.param(
            ["--", "true"], 1, "use the environment that trains on a GPU", id="no CUDA build of torch"
        ),
    ],
)
def test_simulate_refuses(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    ended = main(["simulate", *words])

    shown = capsys.readouterr()
    assert (ended, shown.out) == (code, "")
    assert said in shown.err
    assert "Traceback" not in shown.err


def test_this_process_sees_no_simulated_gpu() -> None:
    assert not is_simulated()
    with pytest.raises(NoSimulation, match=r"torch 2\.\S+ in this environment is none"):
        find_torch()


@pytest.fixture
def cuda_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Torch:
    """What is looked at of a CUDA build of PyTorch before anything is compiled."""
    package = tmp_path / "site" / "torch"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "version.py").write_text("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return find_torch()


def test_a_cuda_build_is_found_without_importing_it(cuda_build: Torch) -> None:
    assert cuda_build.cuda == (13, 0)
    assert "torch" not in sys.modules


@pytest.mark.usefixtures("cuda_build")
def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-cc")

    with pytest.raises(NoSimulation, match="no-such-cc isn't there: install gcc, or set CC"):
        library_dir(tmp_path)


@pytest.mark.usefixtures("cuda_build")
def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken-cc"
    compiler.write_text("#!/bin/sh\necho 'device.c: no headers' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))

    with pytest.raises(NoSimulation, match="can't be compiled here") as refused:
        library_dir(tmp_path / "cache")

    assert "device.c: no headers" in str(refused.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("cuda_build")
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(NoSimulation, match="set XDG_CACHE_HOME to a directory that can be written"):
        library_dir(tmp_path / "file" / "cache")


def test_a_full_cache_of_kernels_begins_anew(tmp_path: Path) -> None:
    kept = tmp_path / "inductor" / "ab" / "kernel.cubin"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x" * 100)

    places = kernel_cache(tmp_path)

    assert places == {
        "TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/inductor",
        "TRITON_CACHE_DIR": f"{tmp_path}/triton",
    }
    assert kept.exists()
    kernel_cache(tmp_path, limit_bytes=99)
    assert not tmp_path.exists()


def test_only_timings_are_forgotten(tmp_path: Path) -> None:
    for name in ("a.best_config", "a.cubin", "deep/b.best_config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    forget_timings(tmp_path)

    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.cubin"]
