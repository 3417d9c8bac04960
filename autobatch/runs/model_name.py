"""The name of a model in plans and tables, from its component."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def model_component(component: Any) -> str | None:
    """``llama3_2_3b`` of its component, with adapters or without: a size alone is that of several families."""
    if component is None:
        return None
    return str(component).rpartition(".")[2].removeprefix("qlora_").removeprefix("lora_") or None


def model_label(model: Any) -> str:
    """``1B`` of a component such as ``lora_llama3_2_1b``, ``0.5B`` of ``qwen2_5_0_5b``; else its name."""
    component = str(model.get("_component_", "")) if isinstance(model, Mapping) else ""
    name = component.rpartition(".")[2]
    # In llama3_2_1b the 2 is the version's, in qwen2_1_5b the 1 is the size's.
    without_version = re.sub(r"llama3_[123]_|qwen2_5_", "", name)
    size = re.search(r"(?:^|_)(\d+(?:_\d+)?)b(?:_|$)", without_version)
    return name if size is None else size.group(1).replace("_", ".") + "B"
