"""What a finetune.yaml says about packing and batch sizes, above the keys concerned.

The configs under `configs/` carry the same lines; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping

from autobatch.edits.yaml_lines import comment_above

PACKED = (
    "Packing: examples are joined until a row holds tokenizer.max_seq_len tokens, so that hardly any is padding.",
    "A packed row always has max_seq_len tokens: its memory depends on batch_size x max_seq_len, not on how many",
    "examples share it. Unpacked, a batch is as long as its longest example.",
)

BATCH_SIZE = (
    "Rows of a micro-batch; with packed: True each row holds several examples. `autobatch probe` measures the",
    "largest one that fits and writes it here. Until then a rule of thumb, for rows of 2048 tokens on 80 GB:",
    "packed at most 8 (1B), 4 (3B), 2 (8B); unpacked at most 20, 12, 6.",
)

ACCUMULATION = (
    "Micro-batches of an optimizer step: effective batch = batch_size x this. Raising it costs no memory beyond",
    "that of the first two micro-batches, where a larger batch_size does.",
)


def explain(text: str, *, packed: bool, name: str) -> str:
    """`text` of a config with each of the explanations above that it doesn't have yet.

    Args:
        text: of the config.
        packed: whether its dataset packs; without it the lines on packing are left out.
        name: of the file, for messages.
    """
    explanations: Mapping[tuple[str, ...], tuple[str, ...]] = {
        **({("dataset", "packed"): PACKED} if packed else {}),
        ("batch_size",): BATCH_SIZE,
        ("gradient_accumulation_steps",): ACCUMULATION,
    }
    for path, lines in explanations.items():
        if lines[0] not in text:
            text = comment_above(text, path, lines, name=name)
    return text
