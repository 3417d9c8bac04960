"""Values of a config that contradict one another, so that training fails at once, or trains nothing.

What each recipe refuses was read in torchtune 0.6.1's recipes.
"""

from __future__ import annotations

from collections.abc import Mapping

from autobatch.records import Density
from autobatch.runs import checks, torchtune_source
from autobatch.runs.findings import Findings
from autobatch.validation.findings import Collector
from autobatch.validation.subject import Subject


def check_offloading(subject: Subject, c: Collector) -> None:
    """Recipes refuse activation offloading without checkpointing, or away from CUDA."""
    key = "enable_activation_offloading"
    config = subject.config
    if config.get(key) is not True:
        return
    if config.get("enable_activation_checkpointing") is not True:
        c.error(
            "activation-offloading",
            f"{key} is True without enable_activation_checkpointing; the recipe refuses that",
            config.where(key),
            f"set enable_activation_checkpointing: True, or {key}: False",
        )
    if config.get("device") == "cpu":
        c.error(
            "activation-offloading",
            f"{key} is True with device: cpu; it moves activations from a CUDA card to memory",
            config.where(key),
            f"set {key}: False",
        )


def check_optimizer_in_backward(subject: Subject, c: Collector) -> None:
    """Full fine-tuning with the optimizer in backward takes neither accumulation nor clipping."""
    key = "optimizer_in_bwd"
    config = subject.config
    full = subject.recipe is not None and subject.recipe.name.startswith("full_")
    if config.get(key) is not True or not full:
        return
    steps = subject.integer("gradient_accumulation_steps", 1)
    if steps is not None and steps > 1:
        c.error(
            "optimizer-in-bwd",
            f"{key} is True with gradient_accumulation_steps {steps}; the recipe refuses that",
            config.where("gradient_accumulation_steps"),
            f"set gradient_accumulation_steps: 1, or {key}: False",
        )
    if config.get("clip_grad_norm") is not None:
        c.error(
            "optimizer-in-bwd",
            f"{key} is True with clip_grad_norm {config.get('clip_grad_norm')}; the recipe refuses that",
            config.where("clip_grad_norm"),
            f"set clip_grad_norm: null, or {key}: False",
        )


def check_lora(subject: Subject, c: Collector) -> None:
    """lora_alpha / lora_rank scales the adapters' output: 2 by convention, and 0 trains nothing."""
    config = subject.config
    values = {}
    for key in ("model.lora_rank", "model.lora_alpha"):
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            c.error(
                "lora",
                f"{key} is {value!r}, not a number above 0",
                config.where(key),
                "write one, such as 16",
            )
        else:
            values[key] = value
    if len(values) == 2:
        rank, alpha = values.values()
        if alpha != 2 * rank:
            c.info(
                "lora",
                f"lora_alpha {alpha:g} is {alpha / rank:g} x lora_rank {rank:g}, not the usual 2 x",
                config.where("model.lora_alpha"),
                f"if that isn't meant: lora_alpha: {2 * rank:g}",
            )


def check_recipe_fits_model(subject: Subject, c: Collector) -> None:
    """A LoRA recipe needs a model with adapters, and a full one a model without."""
    recipe, model = subject.recipe, subject.config.get("model")
    # A model of one's own may have adapters under any name.
    component = str(model.get("_component_")) if isinstance(model, Mapping) else ""
    if recipe is None or recipe.source != "finetune.slurm" or not component.startswith("torchtune."):
        return
    assert isinstance(model, Mapping)
    adapted = "lora" in component.rpartition(".")[2] or "lora_rank" in model
    wants = "lora" in recipe.name.split("_")
    if wants and not adapted:
        what, remedy = f"{component} has no LoRA adapters", "name a lora_ model, or a full_finetune recipe"
    elif adapted and recipe.name.startswith("full_"):
        what, remedy = (
            f"{component} has LoRA adapters",
            "name a lora_finetune recipe, or the model without lora_",
        )
    else:
        return
    c.error(
        "recipe", f"{what}, and {recipe.note}, trains it", subject.config.where("model._component_"), remedy
    )


def check_unpacked(subject: Subject, c: Collector) -> None:
    """A small unpacked batch pads most of what it computes, where examples are short."""
    size = subject.integer("batch_size")
    component = str(subject.config.get("dataset._component_") or "")
    if subject.packed or size is None or size > 4 or torchtune_source.can_pack(component) is not True:
        return
    model = str(subject.config.get("model._component_") or "")
    pairs = subject.recipe is not None and "dpo" in subject.recipe.name.split("_")
    if pairs or model.startswith("torchtune.models.gemma2."):
        return
    c.info(
        "small-unpacked-batch",
        f"batch_size {size} with packed: False: packing would fill the rows that short examples leave to padding",
        subject.config.where("batch_size"),
        "set dataset.packed: True and tokenizer.max_seq_len, then measure batch_size with autobatch probe",
    )


def check_steps(subject: Subject, density: Density | None, c: Collector) -> None:
    """Training takes at least one optimizer step, and more than the warm-up.

    An epoch has ``rows // batch_size // gradient_accumulation_steps`` steps, with several devices fewer: the
    recipes' dataloaders drop the last batch, and an epoch's last accumulation if it isn't full.
    """
    config = subject.config
    findings = Findings()
    epochs = checks.positive_integer(config, "epochs", findings)
    c.take("steps", findings, config.where("epochs"))
    most = config.get("max_steps_per_epoch")
    if most is not None and subject.integer("max_steps_per_epoch") is None:
        c.error(
            "steps",
            f"max_steps_per_epoch is {most!r}, not a whole number of at least 1",
            config.where("max_steps_per_epoch"),
            "write max_steps_per_epoch: null for whole epochs",
        )
        most = None
    size, accumulation = subject.integer("batch_size"), subject.integer("gradient_accumulation_steps", 1)
    steps: int | None = most
    if density is not None and size is not None and accumulation is not None:
        rows = "packs" if density.packed else "examples"
        about = "" if density.sampled_examples is None else "about "
        steps = density.packs // size // accumulation
        if steps == 0:
            c.error(
                "steps",
                f"zero optimizer steps: batch_size {size} x gradient_accumulation_steps {accumulation} is more "
                f"than the {about}{density.packs} {rows} of the dataset; torchtune would exit 0 and save an "
                "untrained model",
                config.where("batch_size"),
                f"lower one of them until their product is at most {density.packs}",
            )
            return
        steps = min(steps, most or steps)
    if steps is not None and not findings.problems:
        _check_warm_up(subject, steps, epochs, c)


def _check_warm_up(subject: Subject, steps: int, epochs: int, c: Collector) -> None:
    """The learning rate rises for num_warmup_steps steps, so that it never gets there in fewer."""
    key = "lr_scheduler.num_warmup_steps"
    warm_up = subject.config.get(key)
    if not isinstance(warm_up, int) or isinstance(warm_up, bool):
        return
    where, total = subject.config.where(key), steps * epochs
    written = f"{steps} steps" if epochs == 1 else f"{total} steps ({steps} x {epochs} epochs)"
    if total <= warm_up:
        c.warning(
            "warm-up",
            f"num_warmup_steps {warm_up}, and training has at most {written}: the learning rate never reaches lr",
            where,
            f"set num_warmup_steps below {total}, such as {total // 10}",
        )
    elif steps < warm_up:
        c.info(
            "warm-up",
            f"the warm-up of {warm_up} steps is longer than an epoch of at most {steps} steps",
            where,
        )
