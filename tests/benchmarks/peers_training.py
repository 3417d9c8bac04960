"""A torchtune run as the other tools train it, in a process that has a card's worth of memory and no more.

The recipe's own class sets up the model, the optimizer, the loss and the packed dataset from finetune.yaml, and
computes the loss. accelerate and halving are given its `train()`, Lightning a LightningModule around its parts.

The capacity is a limit on the process's data (RLIMIT_DATA, setrlimit(2)), above which torch's CPU allocator raises
its out-of-memory error. Libraries of the tools themselves don't count: on a card they wouldn't be there.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.peers_worker import STEPS, Log, find, import_tools


def search_run(order: dict[str, Any]) -> dict[str, Any]:
    """Let `order["tool"]` look for a batch_size of `order["run"]` within `order["capacity_bytes"]`."""
    os.chdir(order["run"])
    module = _load_recipe(order["recipe"])
    held = _resident_bytes()
    import_tools()
    _limit_data(order["capacity_bytes"] - held)
    with tempfile.TemporaryDirectory() as output:
        log = Log()
        return find(order["tool"], RecipeTraining(module, output, log), log)


def train_once(run: str, recipe: str, capacity_bytes: int, batch_size: int, output: str) -> None:
    """`tune run` at one batch_size within the capacity; for jobs that fail."""
    os.chdir(run)
    _load_recipe(recipe)
    _limit_data(capacity_bytes - _resident_bytes())
    sys.argv = [recipe, "--config", "finetune.yaml", *_overrides(output), f"batch_size={batch_size}"]
    runpy.run_path(recipe, run_name="__main__")


class RecipeTraining:
    """The training of a single-device LoRA run.

    Args:
        module: the recipe file as a module.
        output: directory for logs and checkpoints.
        log: hears of the steps.
    """

    def __init__(self, module: Any, output: str, log: Log) -> None:
        self._module = module
        self._output = output
        self._log = log

    @property
    def rows(self) -> Any:
        return self._set_up(1)._dataloader.dataset

    def run(self, batch_size: int) -> None:
        self._log.begin(batch_size)
        with self._noting():
            recipe = self._set_up(batch_size)
            loss_step = recipe._loss_step

            def counted(batch: Any) -> Any:
                self._log.step()
                return loss_step(batch)

            recipe._loss_step = counted
            recipe.train()
            recipe.cleanup()

    def module(self, batch_size: int) -> Any:
        import torch
        from lightning.pytorch import LightningModule  # type: ignore[import-not-found]

        recipe, log, noting = self._set_up(batch_size), self._log, self._noting
        loader = recipe._dataloader

        class OfRecipe(LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.batch_size = batch_size
                self.model = recipe._model

            def training_step(self, batch: Any, index: int) -> Any:
                size = len(batch["labels"])
                if index == 0:
                    log.begin(size)
                log.step()
                # The recipe makes it for the batch_size of its config.
                recipe.ignore_labels_cache = torch.full((size, 1), recipe._loss_fn.ignore_index)
                with noting():
                    return recipe._loss_step(batch)

            def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
                with noting():
                    super().backward(loss, *args, **kwargs)

            def configure_optimizers(self) -> Any:
                return recipe._optimizer

            def train_dataloader(self) -> Any:
                return torch.utils.data.DataLoader(
                    loader.dataset,
                    self.batch_size,
                    shuffle=True,
                    collate_fn=loader.collate_fn,
                    drop_last=True,
                )

        return OfRecipe()

    def _set_up(self, batch_size: int) -> Any:
        from omegaconf import OmegaConf

        config: Any = OmegaConf.merge(
            OmegaConf.load("finetune.yaml"),
            OmegaConf.from_dotlist([*_overrides(self._output), f"batch_size={batch_size}"]),
        )
        recipe = self._module.LoRAFinetuneRecipeSingleDevice(cfg=config)
        recipe.setup(cfg=config)
        return recipe

    def _noting(self) -> Any:
        return _Noting(self._log)


class _Noting:
    """Notes an out-of-memory error that passes through."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            self._log.out_of_memory()


def _overrides(output: str) -> list[str]:
    return [f"output_dir={output}", "epochs=1", f"max_steps_per_epoch={STEPS}", "log_every_n_steps=1"]


def _load_recipe(path: str) -> Any:
    """The recipe file as a module; what a plain training has in memory before its model is there."""
    import torch
    import torchtune._cli.tune  # noqa: F401

    spec = importlib.util.spec_from_file_location("recipe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Its threads, whose stacks count as data.
    weight = torch.ones(256, 256, requires_grad=True)
    torch.autograd.backward((weight @ weight).sum())
    return module


def _resident_bytes() -> int:
    return _status("VmRSS")


def _limit_data(more_bytes: int) -> None:
    """Let this process have so much more than it has now."""
    limit = _status("VmData") + more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


if __name__ == "__main__":
    train_once(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
