"""A small tokenizer in the form that `torchtune.models.llama3.llama3_tokenizer` loads.

Meta's vocabularies are not ours to ship, so the demo trains its own: byte-level BPE, written as
tiktoken's ``base64-of-the-token rank`` lines, with Llama 3's special tokens above the ranks.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

#: Ids that the tokenizer may use. The demo's smallest vocabulary has exactly as many.
TOKENIZER_VOCAB_SIZE = 2048

#: As in Llama 3, the top 256 ids of the vocabulary are kept for special tokens.
_BASE_VOCAB_SIZE = TOKENIZER_VOCAB_SIZE - 256

# torchtune.models.llama3's CL100K_PATTERN, by which tiktoken splits the text before it merges: merges
# across these borders would never be used.
_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Those that torchtune's Llama3Tokenizer looks up by name.
_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)


@dataclass(frozen=True)
class Tokenizer:
    """A trained tokenizer, as the two files that torchtune reads.

    Attributes:
        model: the tiktoken file's lines.
        special_tokens: the special tokens in the form of Hugging Face's tokenizer.json.
    """

    model: str
    special_tokens: str

    @property
    def file_name(self) -> str:
        """Name for the tiktoken file, different for different contents.

        tiktoken keeps what it reads in a cache under the hash of the path as written. Two runs that
        both say ``../model/tokenizer.model`` would share one tokenizer, whatever their files hold.
        """
        return f"tokenizer-{hashlib.sha256(self.model.encode()).hexdigest()[:8]}.model"


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE over `texts`; any text can be encoded, by its bytes where nothing better fits."""
    from tokenizers import Regex, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers.models import BPE

    bpe = HFTokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_BASE_VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)

    byte_of = _byte_of_character()
    ranked = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    lines = [
        f"{base64.b64encode(bytes(byte_of[c] for c in token)).decode()} {rank}\n" for token, rank in ranked
    ]
    added = [{"id": _BASE_VOCAB_SIZE + i, "content": token} for i, token in enumerate(_SPECIAL_TOKENS)]
    return Tokenizer(
        model="".join(lines), special_tokens=json.dumps({"added_tokens": added}, indent=2) + "\n"
    )


def _byte_of_character() -> dict[str, int]:
    """The byte for which each character stands in a byte-level vocabulary.

    Printable bytes of Latin-1 stand for themselves, the others for the characters from U+0100 on
    (`bytes_to_unicode` in GPT-2's encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
