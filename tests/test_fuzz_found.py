"""Texts that `tests.benchmarks.fuzz` found something with, each judged by the check that found it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import pytest

from autobatch.edits.plan_markdown import set_plan_row
from autobatch.edits.status_yaml import set_run
from autobatch.errors import EditError
from autobatch.metrics.accounting import job_accounts
from autobatch.metrics.logs import read_logs
from tests.benchmarks import fuzz_logs, fuzz_markdown, fuzz_yaml
from tests.benchmarks.fuzz_log_texts import CONFIG
from tests.benchmarks.fuzz_yaml_texts import LOADERS, Values

RECIPE = {"recipe": "LoRAFinetuneRecipeSingleDevice", "packed": "True", "resume": "False"}
FINETUNE = """\
batch_size: 4
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: logs
  filename: {}
"""


def config(**values: object) -> bytes:
    """A resolved config, as a recipe prints it."""
    return CONFIG.format(**{**RECIPE, "batch_size": 4, "max_seq_len": 2048, **values}).encode()


def test_a_line_that_only_looks_blank_stays_out_of_the_table() -> None:
    assert fuzz_markdown.check_row(("## Packing Analysis\n\x1f", "run1", {"Batch Size": "24"})) == "edited"

    after = set_plan_row("## Packing Analysis\n\u00a0\n", "run1", {})

    assert after.startswith("## Packing Analysis\n\u00a0\n\n| Run ")


def test_a_line_that_only_looks_blank_stays_out_of_the_bullets() -> None:
    assert fuzz_markdown.check_bullets("## Configuration\n\x85") == "edited"
    assert fuzz_markdown.check_bullets("## Configuration\n- Dataset packing: False\n\x0b") == "edited"


def test_an_indented_heading_is_no_part_of_the_bullets_above_it() -> None:
    text = "## Configuration\n  # Plan\n\n    ## Packing Analysis\n\n"

    assert fuzz_markdown.check_bullets(text) == "refused"


def test_a_second_byte_order_mark_is_refused() -> None:
    assert (
        fuzz_yaml.check_status(("\ufeff\ufeffruns: # \n", "run1", {"status": "planned"}, False)) == "refused"
    )
    values: Values = {("batch_size",): 24}
    for loader in LOADERS:
        assert fuzz_yaml.check_set(("\ufeff\ufeffbatch_size: 4\n", values, loader)) == "refused"


def test_a_byte_order_mark_before_a_later_line_is_refused_with_its_line() -> None:
    text = "# c|+\n\ufeffruns:\n"

    assert fuzz_yaml.check_status((text, "run1", {"status": "planned"}, False)) == "refused"
    with pytest.raises(EditError, match=r"runs_status\.yaml:2: the line begins with a byte order mark"):
        set_run(text, "run1", {"status": "planned"}, name="runs_status.yaml")


@pytest.mark.parametrize(
    "text", ["{a: 4, batch_size: , dataset: {packed: 4}}", "{a: 4, batch_size: }\n", '{"batch_size":}']
)
def test_an_entry_behind_an_empty_value_in_brackets_is_one_to_every_parser(text: str) -> None:
    for loader in LOADERS:
        assert fuzz_yaml.check_set((text, {("gradient_accumulation_steps",): 1}, loader)) == "edited"


@pytest.mark.parametrize(
    "log",
    [
        pytest.param(b"wandb: global_step inf\n", id="an infinite number of steps"),
        pytest.param(b"wandb: global_step nan\n", id="steps that are no number"),
        pytest.param(config(max_seq_len="1" + "0" * 330), id="a length of 331 digits"),
        pytest.param(
            config(batch_size="1" + "0" * 330) + b"Loaded 8000 examples\n1|1|Loss: 1: 1%|x| 1/1 [00:01<",
            id="a batch_size of 331 digits",
        ),
        pytest.param(
            b"\r1|1|Loss: 1.0:   0%|x| 1/1 [" + b"1:" * 200 + b"00<00:00, 1it/s]", id="a time of 200 parts"
        ),
    ],
)
def test_numbers_that_no_log_should_have(log: bytes) -> None:
    assert fuzz_logs.check_read((b"", log)).endswith("steps")


def test_a_config_whose_merge_keys_would_take_forever() -> None:
    merges = "".join(f"m{i + 1}: &m{i + 1}\n  <<: [{', '.join([f'*m{i}'] * 10)}]\n" for i in range(20))
    log = b"Running X with resolved config:\n\nm0: &m0 {k: v}\n" + merges.encode() + b"\n"

    assert fuzz_logs.check_read((b"", log)) == "no steps"


@pytest.mark.parametrize(
    ("log", "cut"),
    [
        pytest.param(config(), 76, id="within a config"),
        pytest.param(
            b"\r\r1|0|Loss: \r\r1|0|Loss: 0.0:   0%|x   | 0/0 [00:19<\r\r01:44,  2.00it/s]"
            b"Step 0 | loss:0.0 lr:3e-06 \n",
            0,
            id="torn progress bar",
        ),
    ],
)
def test_a_log_says_the_same_wherever_it_is_cut(log: bytes, cut: int) -> None:
    assert fuzz_logs.check_ways((log, cut)).endswith("steps")


def test_all_of_a_config_that_two_blocks_share_is_read() -> None:
    path = fuzz_logs.FOLDER / "two-blocks.log"
    path.write_bytes(b"x" * 99 + b"\n" + b"y" * (2**20 - 180) + b"\n" + config() + b"\n")

    assert read_logs([path]).config["tokenizer"] == {"max_seq_len": 2048}


SACCT = "28|{state}|2026-01-31T12:00:00|{end}|{elapsed}|{tres}|n1\n"


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"elapsed": "²"}, id="superscript digit"),
        pytest.param({"elapsed": "9" * 5000}, id="5000 digits"),
        pytest.param({"tres": "gres/gpu=²,gres/gpu:a100=²"}, id="GPUs in superscript"),
        pytest.param({"state": " "}, id="blank state"),
    ],
)
def test_accounting_that_no_slurm_prints(values: Mapping[str, str]) -> None:
    listed = SACCT.format(**{"state": "FAILED", "end": "Unknown", "elapsed": "1", "tres": "cpu=1", **values})

    assert fuzz_logs.check_accounts((listed, None)).endswith("jobs")


def test_a_time_with_a_zone_can_be_compared_with_others() -> None:
    listed = SACCT.format(state="FAILED", end="2026-01-31T12:30:00+01:00", elapsed="1", tres="cpu=1")

    account = job_accounts(["28"], ask=lambda *command: listed if command[0] == "sacct" else None)["28"]

    assert account.end == datetime(2026, 1, 31, 12, 30)


def test_an_output_file_whose_path_is_too_long() -> None:
    assert (
        fuzz_logs.check_accounts((None, f"JobId=28 JobState=FAILED\n   StdOut=/{'x' * 5000}\n")) == "2 jobs"
    )


@pytest.mark.parametrize(
    ("name", "written"),
    [
        pytest.param("''", b"", id="empty"),
        pytest.param("/absolute.txt", b"", id="absolute"),
        pytest.param("null", b"optimizer:\nWriting logs to " + b"x" * 300 + b"\n", id="too long, in a log"),
    ],
)
def test_a_name_of_a_log_that_no_file_can_have(name: str, written: bytes) -> None:
    files = {"finetune.yaml": FINETUNE.format(name).encode(), "logs/log_1.txt": b"Step 1 | loss:2.5 \n"}

    assert fuzz_logs.check_files({**files, **({"slurm-28.out": written} if written else {})}).endswith(
        "files"
    )


def test_a_script_with_a_nul_byte_in_a_path() -> None:
    script = (
        b"#!/bin/bash\n#SBATCH --chdir=\0\n#SBATCH --output=\0%j.out\ntune run x --config finetune.yaml\n"
    )

    assert fuzz_logs.check_files({"finetune.slurm": script}) == "0 files"


def test_gpu_samples_below_a_header_that_names_a_column_twice() -> None:
    header = b"timestamp, utilization.gpu [%], timestamp, utilization.gpu [%], memory.used [MiB]\n"
    too_short = b"x, 5 %, 2026/01/31 12:00:00.000\n"
    whole = b"x, 5 %, 2026/01/31 12:00:00.000, 37 %, 5123 MiB\n"

    assert fuzz_logs.check_samples(header + too_short) == "no samples"
    assert fuzz_logs.check_samples(header + whole) == "some samples"
