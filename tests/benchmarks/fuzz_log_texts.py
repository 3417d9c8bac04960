"""Logs to fuzz with: lines as torchtune, tqdm, Slurm, wandb and the shell write them, in any order and state."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from tests.benchmarks.fuzz_texts import mutated

#: Text that says nothing.
PADDING = (b"x" * 98 + b"\n") * 11_000

CONFIG = """Running {recipe} with resolved config:

batch_size: {batch_size}
dataset:
  _component_: torchtune.datasets.instruct_dataset
  packed: {packed}
gradient_accumulation_steps: 1
max_steps_per_epoch: null
optimizer:
  lr: 2.0e-05
resume_from_checkpoint: {resume}
tokenizer:
  max_seq_len: {max_seq_len}

"""
PIECES = (
    *(
        "\r",
        "\n",
        "\r\n",
        "\x00",
        "\x1b[A",
        "\x1b[0m",
        "\x1b",
        "\x1b[",
        "\udcff",
        "\udce2\udc96",
        "█",
        "\x85",
        "\u2028",
        "\x0c",
    ),
    *(
        "Step ",
        "Step 7 | ",
        "|Loss: ",
        "1|40|Loss: 2.5: ",
        "loss:",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "1_0",
        "٣",
        "²",
        "%|",
        "| 1/2 [",
    ),
    *(
        "[00:19<",
        "Packing dataset:",
        "acked",
        "oaded",
        "acking ",
        " peak memory ",
        "eak GPU memory",
        "wandb: ",
        "Training ",
    ),
    *(
        "Traceback (most recent call last):\n",
        "ValueError: x\n",
        "CANCELLED AT",
        ": line ",
        "oom",
        "out of memory",
        "0",
        "9" * 30,
    ),
    *(
        "9" * 400,
        "1:" * 200,
        "&a ",
        "*a",
        "<<: *a",
        "!!python/object/apply:os.system [x]",
        "optimizer:",
        "- ",
        ": ",
        "{",
        "[" * 60,
    ),
    *(
        "timestamp",
        ", ",
        '"',
        " MiB",
        "[N/A]",
        "2026/01/31 12:00:00.000",
        "JobState=",
        "gres/gpu=",
        "|",
        "=",
        ",",
        " ",
    ),
)
LINES = st.one_of(
    st.sampled_from(
        [
            "Packing dataset: 100%|██████████| 2000/2000 [00:00<00:00, 9642.14it/s]\n",
            "\rPacking dataset:   0%|          | 0/2000 [00:00<?, ?it/s]",
            "Packed 8000 examples into 2857 sequences\n", "packing density: 2.80\n",
            "Packing efficiency: 87%\n",
            "Loaded 8000 examples\n", "Dataset packed: 2857 total sequences\n",
            "Dataset loaded: 8,000 examples\n",
            "examples per pack: 300 examples in about 57 packs of 128 tokens, 99.2 % of them not padding\n",
            "\tGPU peak memory reserved: 7.90 GiB\n", "Peak GPU memory: 7.2 GiB\n",
            "Memory stats after model init:\n",
            "wandb:        peak_memory_active 18.77768\n", "wandb: global_step 7\n", "wandb: loss nan\n",
            "wandb: global_step inf\n",
            "Training started at 2026-01-31 12:00:00\n", "Training completed at 2026-01-31 13:00:00\n",
            "Traceback (most recent call last):\n", '  File "x.py", line 1, in f\n',
            "torch.OutOfMemoryError: CUDA out of memory.\n",
            "slurmstepd: error: *** JOB 28 ON n1 CANCELLED AT 2026-01-31T12:00:00 DUE TO TIME LIMIT ***\n",
            "slurm_script: line 31: 4711 Killed  tune run x\n", "[rank0]: ValueError: x\n",
            "Writing logs to logs/log_1.txt\n",
            "Running EleutherEvalRecipe with resolved config:\n\nbatch_size: 8\ntasks:\n- x\n\n", "\n",
            "\x1b[A", "noise\n",
            "Step 3 | loss:2.31 lr:3e-06 \n",
            "Step 4 | loss:2.3 lr:3e-06 tokens_per_second_per_gpu:1234.5 peak_memory_reserved:7.9 \n",
        ]
    ),
    st.builds("Step {} | loss:{} lr:3e-06 tokens_per_second_per_gpu:{} "
              "peak_memory_active:7.25 peak_memory_alloc:7.2 peak_memory_reserved:{} \n".format,
              st.integers(0, 60), st.floats(), st.floats(), st.floats()),
    st.builds("\r{}|{}|Loss: {}: {:3d}%|█▌   | {}/{} [{}<01:44,  2.00it/s]".format, st.integers(1, 3),
    st.integers(0, 60),
              st.floats(), st.integers(0, 100), st.integers(0, 60), st.integers(0, 60),
              st.sampled_from(["00:19", "1:02:03", "?", "99:99", "1:" * 170 + "00"])),
    st.builds(CONFIG.format, recipe=st.sampled_from(["LoRAFinetuneRecipeSingleDevice", "X"]),
              batch_size=st.one_of(st.integers(), st.sampled_from(["null", "x", "1" + "0" * 330, "&a 4"])),
              packed=st.sampled_from(["True", "False", "*a", "[]"]), resume=st.booleans(),
              max_seq_len=st.one_of(st.integers(), st.just("1" + "0" * 330), st.just("null"))),
)  # fmt: skip
TEXTS = st.lists(LINES, max_size=14).map("".join)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


LOGS = st.one_of(
    TEXTS.map(_bytes),
    mutated(TEXTS, PIECES).map(_bytes),
    st.builds(
        lambda log, junk, at: log[: at % (len(log) + 1)] + junk,
        mutated(TEXTS, PIECES).map(_bytes),
        st.binary(max_size=20),
        st.integers(0, 3000),
    ),
    st.lists(st.sampled_from(PIECES), max_size=20).map("".join).map(_bytes),
)


@dataclass(frozen=True)
class Training:
    """A log, and what a person would read in it."""

    log: bytes
    steps: int
    recipe: str
    batch_size: int
    examples: int
    loss: float
    reserved: float | None


#: Lines that have nothing to do with a training, and what a terminal makes of others.
NOISE = st.one_of(
    st.binary(max_size=30).map(
        lambda data: bytes(byte for byte in data if byte not in b"\r\n|:[\x1b") + b"\n"
    ),
    st.sampled_from(
        [
            b"\n",
            b"\x1b[0m\x1b[K\n",
            b"UserWarning: x\n",
            b"\x00\x00\x00\n",
            b"INFO - Stepping\n",
            b"a | b | c\n",
        ]
    ),
)


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    """One training from its header to its last step, by a progress bar, a logger or both."""
    recipe = draw(st.sampled_from(["LoRAFinetuneRecipeSingleDevice", "FullFinetuneRecipeDistributed"]))
    batch_size, examples, steps = (
        draw(st.integers(1, 64)),
        draw(st.integers(1, 10**6)),
        draw(st.integers(1, 12)),
    )
    has_bar = draw(st.booleans())
    has_values = draw(st.booleans()) or not has_bar
    config = CONFIG.format(
        recipe=recipe, batch_size=batch_size, packed="True", resume="False", max_seq_len=2048
    )
    parts = [
        config.encode(),
        f"\rPacking dataset: 100%|█| {examples}/{examples} [00:01<00:00, 9.1it/s]\n".encode(),
    ]
    reserved = None
    for step in range(1, steps + 1):
        loss = draw(st.floats(0, 100, allow_nan=False))
        if draw(st.booleans()):
            parts.append(draw(NOISE))
        if has_bar:
            parts.append(
                f"\r1|{step}|Loss: {loss}: {100 * step // steps:3d}%|█▌  | {step}/{steps} "
                f"[00:{step:02d}<00:01, 2.0it/s]".encode()
            )
        if has_values:
            peak = draw(st.floats(0.5, 80))
            reserved = max(peak, reserved or 0.0)
            parts.append(
                b"\n" * has_bar
                + f"Step {step} | loss:{loss} lr:3e-06 peak_memory_reserved:{peak} \n".encode()
            )
    parts.append(b"\n")
    return Training(b"".join(parts), steps, recipe, batch_size, examples, loss, reserved)


TRAININGS = trainings()

_SAMPLES_HEAD = (
    "timestamp, utilization.gpu [%], utilization.memory [%], memory.used [MiB], "
    "memory.total [MiB], power.draw [W], temperature.gpu\n"
)
_SAMPLE_ROWS = st.builds(
    "2026/01/31 12:{:02d}:{:02d}.{:03d}, {}, 5 %, {}, 81920 MiB, 70.1 W, 40\n".format, st.integers(0, 61),
    st.integers(0, 61), st.integers(0, 999),
    st.sampled_from(["37 %", "[N/A]", "100", "٣ %", "", "9" * 400]), st.sampled_from(["5123 MiB", "5 GiB",
    "[N/A]", "1.2.3 MiB", "9" * 400, "5"]),
)  # fmt: skip
_SAMPLE_FILES = st.builds(lambda *parts: "".join(parts), st.just(_SAMPLES_HEAD), st.lists(_SAMPLE_ROWS,
  max_size=6).map("".join),
                          st.sampled_from(["", _SAMPLES_HEAD]), st.lists(_SAMPLE_ROWS,
                          max_size=3).map("".join))  # fmt: skip
SAMPLES = st.one_of(mutated(_SAMPLE_FILES, PIECES).map(_bytes), st.binary(max_size=200))

_STATES = st.sampled_from(["COMPLETED", "CANCELLED by 0", "RUNNING", "PENDING", "", " ", "FAILED"])
_TIMES = st.sampled_from(
    ["2026-01-31T12:00:00", "Unknown", "None", "", "2026-01-31T12:00:00+01:00", "20260131", "2026-W01", "N/A"]
)
_COUNTS = st.sampled_from(["37", "", "²", "٣", "-1", "9" * 5000, "1-3"])
_TRES = st.builds("billing=8,cpu=8,gres/gpu={},gres/gpu:a100={},mem=64G".format, _COUNTS, _COUNTS)
_ACCOUNT_ROWS = st.builds("{}|{}|{}|{}|{}|{}|{}\n".format, st.sampled_from(["28", "28_0", "29",
  "28.batch"]), _STATES, _TIMES, _TIMES, _COUNTS, _TRES,
                          st.sampled_from(["n1", "None assigned", ""]))  # fmt: skip
ACCOUNTS = st.one_of(
    st.none(), mutated(st.lists(_ACCOUNT_ROWS, max_size=3).map("".join), PIECES), st.text(max_size=60)
)
_SHOWN = st.builds(
    "JobId=28 JobState={} StartTime={} EndTime={} RunTime={} NumNodes={} TresPerNode={} "
    "AllocTRES={} NodeList=n1\n   StdOut={}\n".format,
    _STATES, _TIMES, _TIMES, st.sampled_from(["00:01:02", "1-00:00:00", "٣:01:02", "9" * 5000 + ":00:00"]),
    _COUNTS,
    st.builds("gres:gpu:a100:{}".format, _COUNTS), _TRES, st.sampled_from(["/x.out", "x" * 5000, "\x00",
    "/" + "y" * 300]),
)  # fmt: skip
SCONTROL = st.one_of(st.none(), mutated(_SHOWN, PIECES), st.text(max_size=60))

_SCRIPTS = st.builds(
    "#!/bin/bash\n#SBATCH --output={}\n#SBATCH --error={}\n#SBATCH --job-name={}\n#SBATCH --chdir={}\n"
    "tune run x --config finetune.yaml\n".format,
    *[st.sampled_from(["logs/%x-%j.out", "%A_%a.out", "%%j", "%", "", "/", "//%j", "**/%j.out", "[%j",
    "a/../%N.out", "x" * 300, "~/%j", "\x00%j", "%j%j"])] * 2,
    st.sampled_from(["run1", "", "a b", "%j", "[", "x" * 300]), st.sampled_from([".", "..", "", "/",
    "nowhere", "x" * 300, "\x00"]),
)  # fmt: skip
_CONFIGS = st.builds(
    "batch_size: 4\nmetric_logger:\n  _component_: torchtune.training.metric_logging.DiskLogger\n"
    "  log_dir: {}\n  filename: {}\n".format,
    st.sampled_from(["logs", ".", "''", "/", "'a\\0b'", '"\\0"', "x" * 300, "[a]", "${x}", "'**'"]),
    st.sampled_from(["null", "log.txt", "''", "/abs.txt", "'**'", '"\\0"', "../x", "x" * 300, "a/b"]),
)
_NAMED = st.builds(lambda name, log: log + b"Writing logs to " + name.encode() + b"\n1|3|Loss: 2.31: \n",
                   st.sampled_from(["logs/log_1.txt", "x" * 300, "a\0b", "/", "", "é"]), LOGS)  # fmt: skip
RUNS = st.fixed_dictionaries(
    {"finetune.slurm": mutated(_SCRIPTS, PIECES, most=2).map(_bytes), "finetune.yaml": mutated(_CONFIGS,
    PIECES, most=2).map(_bytes)},
    optional={"slurm-28.out": _NAMED, "slurm-29_1.out": LOGS, "logs/run1-30.out": _NAMED,
    "logs/log_1.txt": LOGS, "slurm-٣.out": LOGS},
)  # fmt: skip
