"""A real Slurm cluster for the session, brought up and down by itself.

It belongs to this process: it goes down with it, however it ends.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.devcluster import cluster as devcluster
from slurm.devcluster import packages
from slurm.devcluster.conf import Options
from slurm.devcluster.errors import NotPossible
from tests.slurm.client import Slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """One node with two GPUs, without accounting."""
    yield from _up(tmp_path_factory, Options())


@pytest.fixture(scope="session")
def cluster_with_accounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """One node with two GPUs, with slurmdbd and MariaDB."""
    yield from _up(tmp_path_factory, Options(accounting=True))


@pytest.fixture
def own_directory(tmp_path: Path) -> Iterator[Path]:
    """For a cluster of the test's own."""
    require(Options())
    directory = tmp_path / "own"
    yield directory
    devcluster.down(directory)


def _up(tmp_path_factory: pytest.TempPathFactory, options: Options) -> Iterator[Slurm]:
    require(options)
    directory = tmp_path_factory.mktemp("cluster")
    try:
        yield Slurm(devcluster.up(directory, options, owner_pid=os.getpid()))
    finally:
        devcluster.down(directory)


def require(options: Options) -> None:
    """Skip if no cluster can run here; install what is missing, where we may."""
    try:
        if os.geteuid() == 0 and shutil.which("apt-get"):
            packages.install(packages.missing(options.accounting))
        devcluster.check(options)
    except NotPossible as error:
        pytest.skip(f"NO SLURM CLUSTER HERE, its tests did not run: {error}")
