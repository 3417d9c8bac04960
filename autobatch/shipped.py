"""The files that ship with autobatch beside its modules: `configs/` and `slurm/finetune.slurm`.

A checkout has them beside the package, an installed wheel inside of it.
"""

from __future__ import annotations

from pathlib import Path

from autobatch.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent


def configs_dir(package: Path = _PACKAGE) -> Path:
    """The directory that `configs/README.md` describes.

    Args:
        package: directory of the autobatch package.

    Raises:
        UsageError: it is missing.
    """
    # site-packages may hold somebody else's "configs"; only ours has demo/ in it.
    return _find("configs", "demo", package)


def training_script(package: Path = _PACKAGE) -> Path:
    """The training job's template, `slurm/finetune.slurm`.

    Args:
        package: directory of the autobatch package.

    Raises:
        UsageError: it is missing.
    """
    return _find("slurm", "finetune.slurm", package) / "finetune.slurm"


def _find(name: str, holds: str, package: Path) -> Path:
    places = (package / f"_{name}", package.parent / name)
    for place in places:
        if (place / holds).exists():
            return place
    raise UsageError(
        f"autobatch's {name} are missing: looked for {places[0]} and {places[1]}\n"
        "    install autobatch again, or run it from a complete checkout"
    )
