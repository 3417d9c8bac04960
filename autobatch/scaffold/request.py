"""What is asked of `autobatch init`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class InitRequest:
    """The run to make. Paths are as the user typed them, relative to where the user is.

    Attributes:
        run_dir: the run directory; it need not exist.
        config: name of a config, or path of one.
        overrides: ``key=value`` and ``~key``, as `tune run` takes them.
        model_dir: directory of the downloaded model.
        data: file, directory, or name of a dataset on the hub.
        output_dir: where checkpoints and logs go.
        recipe: name in torchtune's registry, or a recipe file in the run directory.
        max_seq_len: tokens of a packed row.
        header: `#SBATCH` options by their long name.
    """

    run_dir: str
    config: str
    overrides: tuple[str, ...] = ()
    model_dir: str | None = None
    data: str | None = None
    output_dir: str | None = None
    recipe: str | None = None
    max_seq_len: int | None = None
    header: Mapping[str, str] = field(default_factory=dict)
