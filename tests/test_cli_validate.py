"""`autobatch validate`, and the question of commands that validate first, as a user meets them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autobatch.cli.validating import report_lines
from autobatch.validation.findings import Report
from tests.validated import changed, write_run

#: What a command that validates first does, here one that would do nothing else.
ASKING = """\
import sys
from pathlib import Path
from autobatch.cli.validating import validate_first
went_on = validate_first([Path(sys.argv[1])], skip="--skip-validation" in sys.argv, build=False)
print("went on" if went_on else "stopped")
"""

Ended = subprocess.CompletedProcess[str]


def call(*words: object, cwd: Path | None = None) -> Ended:
    """`autobatch validate`, without a terminal."""
    command = [sys.executable, "-m", "autobatch.cli.main", "validate", *map(str, words)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=cwd
    )


@pytest.mark.parametrize(
    ("words", "was_run"), [([], True), (["--no-build"], False)], ids=["build", "no build"]
)
def test_only_with_a_build_is_code_of_the_config_run(words: list[str], was_run: bool, tmp_path: Path) -> None:
    run = write_run(
        tmp_path, config=changed(dataset___component_="mine.rows", model___component_="mine.model")
    )
    for directory in (run, tmp_path):
        (directory / "mine.py").write_text("open('was run', 'w').close()\n")

    call(run, *words, cwd=tmp_path)

    assert ((run / "was run").exists() or (tmp_path / "was run").exists()) is was_run


def test_migrating_to_packed_is_caught_and_the_way_out_passes(tmp_path: Path) -> None:
    """The planning document's test case 3: an unpacked plan of 16, packed, then 8, then 4."""
    run = write_run(tmp_path, config=changed(dataset__packed=False, batch_size=16))
    (tmp_path / "runs_plan.md").write_text("# Plan\n\n## Configuration\n- **Batch sizes**: 16\n")
    unpacked = call(tmp_path, "--no-build")
    config = run / "finetune.yaml"
    config.write_text(config.read_text().replace("packed: false", "packed: true"))
    packed = call(tmp_path, "--no-build")
    (tmp_path / "runs_plan.md").write_text("# Plan\n\n## Configuration\n- **Dataset packing**: True\n")
    codes = {}
    for size in (8, 4):
        config.write_text(re.sub("batch_size: [0-9]+", f"batch_size: {size}", config.read_text()))
        codes[size] = [call(tmp_path, "--no-build", *more).returncode for more in ([], ["--strict"])]

    assert (unpacked.returncode, unpacked.stdout.splitlines()[-1]) == (0, "2 passed, 0 failed")
    assert (packed.returncode, packed.stdout.splitlines()[-1]) == (1, "0 passed, 2 failed")
    assert "batch_size 16 is above 8, the rule of thumb for 1B, packed" in packed.stdout
    assert "until then batch_size: 8" in packed.stdout
    assert "the plan doesn't mention packing, and run1 packs" in packed.stdout
    assert codes == {8: [0, 1], 4: [0, 0]}


def test_the_whole_output(tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(batch_size=16, model__lora_alpha=8))
    write_run(tmp_path, "run2", changed(batch_size=2))
    lines = (run / "finetune.yaml").read_text().splitlines()

    ended = call(".", "--no-build", cwd=tmp_path)

    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "run1/finetune.yaml: 1B by its name, batch_size 16, packed (2048 tokens), "
        "effective batch size 16 sequences",
        f"  error  batch-size-limit  finetune.yaml:{1 + lines.index('batch_size: 16')}",
        "      batch_size 16 is above 8, the rule of thumb for 1B, packed, on one 80 GB card",
        "      measure it: autobatch probe RUN; until then batch_size: 8, or packed: False, with which the rule "
        "allows 20",
        f"  info  lora  finetune.yaml:{1 + lines.index('  lora_alpha: 8')}",
        "      lora_alpha 8 is 1 x lora_rank 8, not the usual 2 x",
        "      if that isn't meant: lora_alpha: 16",
        "run2/finetune.yaml: 1B by its name, batch_size 2, packed (2048 tokens), effective batch size 2 sequences",
        "FAIL  run1",
        "PASS  run2",
        "1 passed, 1 failed",
    ]


def test_json_is_a_list_of_files(tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(batch_size=16))

    ended = call(run, "--no-build", "--json")

    (report,) = json.loads(ended.stdout)
    assert ended.returncode == 1
    assert (report["name"], report["readable"], report["passed"]) == ("run1", True, False)
    assert report["facts"]["effective_batch_size"] == 16
    assert [(f["severity"], f["check"]) for f in report["findings"]] == [("error", "batch-size-limit")]


@pytest.mark.parametrize(
    ("path", "content", "code"),
    [
        pytest.param("nothing", None, 2, id="not there"),
        pytest.param("empty/", None, 2, id="no run in it"),
        pytest.param("a.yaml", b"a: [1", 2, id="not YAML"),
        pytest.param("a.yaml", b"\xff\x00", 2, id="not text"),
        pytest.param("a.yaml", b"", 2, id="nothing in it"),
        pytest.param("a.yaml", b"- 1\n", 2, id="a list"),
        pytest.param("a.yaml", b"a: &x [*x]\n", 2, id="an alias in itself"),
        pytest.param("runs_plan.md", b"\xff\x00", 2, id="a plan that isn't text"),
        pytest.param("a.yaml", b"model: 3\ndataset: {}\nbatch_size: {a: 1}\nepochs: []\n", 1, id="all wrong"),
        pytest.param("a.yaml", b"1: 2\nnull: 3\n? [a]\n: 4\n", 2, id="odd keys"),
        pytest.param(
            "a.yaml", b"optimizer: 1\nmodel: {_component_: 7}\ndataset: [1, null]\n", 1, id="odd values"
        ),
        pytest.param(
            "a.yaml",
            b"optimizer: {_component_: torch.optim.SGD, 1: 2, a: {2: 3, b: 4}}\n"
            b"model: {_component_: '${nowhere}', 1: 2, a: {2: 3, b: 2020-01-01}}\n",
            1,
            id="odd keys in sections",
        ),
        pytest.param("a.yaml", b"dataset: {source: json, data_files: 3, split: 4}\n", 1, id="odd data"),
    ],
)
def test_bad_input(path: str, content: bytes | None, code: int, tmp_path: Path) -> None:
    file = tmp_path / path
    if content is not None:
        file.write_bytes(content)
    elif path.endswith("/"):
        file.mkdir()

    ended = call(file, "--no-build", "--json")

    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert str(file).rstrip("/") in ended.stdout + ended.stderr


def test_one_unreadable_file_hides_no_other(tmp_path: Path) -> None:
    write_run(tmp_path, "run1", changed(batch_size=16))
    (write_run(tmp_path, "run2") / "finetune.yaml").write_text("{")

    ended = call(tmp_path, "--no-build")

    assert ended.returncode == 2
    assert "batch_size 16 is above 8" in ended.stdout
    assert "run2" in ended.stderr


def test_torchtune_is_asked_with_nothing_else_on_stderr(tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(model__lora_rnk=8))

    ended = call(run)

    assert "lora_llama3_2_1b got an unexpected keyword argument 'lora_rnk'" in ended.stdout
    assert (ended.returncode, ended.stderr) == (1, "")


# -- commands that validate first


def ask(path: Path, *words: str) -> Ended:
    command = [sys.executable, "-c", ASKING, str(path), *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def ask_at_a_terminal(path: Path, *words: str, answer: bytes) -> str:
    """What the terminal shows, of the command and of the answer typed into it."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", ASKING, str(path), *words])
    shown = b""
    typed = False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if b"(y/n)" in shown and not typed:
            typed = True
            os.write(terminal, answer)
    os.waitpid(child, 0)
    os.close(terminal)
    return shown.decode()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(b"y\n", "went on", id="y"),
        pytest.param(b"Yes\n", "went on", id="yes"),
        pytest.param(b"n\n", "stopped", id="n"),
        pytest.param(b"\n", "stopped", id="nothing"),
        pytest.param(b"\x04", "stopped", id="end of input"),
    ],
)
def test_a_person_is_asked(answer: bytes, expected: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(batch_size=16))

    shown = ask_at_a_terminal(run, answer=answer)

    assert "batch_size 16 is above 8" in shown
    assert "1 error found. Continue anyway? (y/n): " in shown
    assert shown.split()[-len(expected.split()) :] == expected.split()


@pytest.mark.parametrize("size", [pytest.param(4, id="no finding"), pytest.param(8, id="a warning")])
def test_nobody_is_asked_without_an_error(size: int, tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(batch_size=size))

    shown = ask_at_a_terminal(run, answer=b"n\n")

    assert "(y/n)" not in shown
    assert shown.endswith("went on\r\n")
    assert ("batch-size-limit" in shown) == (size == 8)


def test_without_a_terminal_the_answer_is_no(tmp_path: Path) -> None:
    ended = ask(write_run(tmp_path, config=changed(batch_size=16)))

    assert ended.stdout == "stopped\n"
    assert "batch_size 16 is above 8" in ended.stderr
    assert ended.stderr.endswith("autobatch: 1 error found; correct them, or go on with --skip-validation\n")


def test_skip_validation_shows_and_goes_on(tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(batch_size=16))

    piped = ask(run, "--skip-validation")
    shown = ask_at_a_terminal(run, "--skip-validation", answer=b"n\n")

    assert piped.stdout == "went on\n"
    assert "1 error found; going on all the same (--skip-validation)" in piped.stderr
    assert "(y/n)" not in shown


def test_facts_of_a_small_model_and_of_packs() -> None:
    facts = {
        "parameters": 5_300_000,
        "size": None,
        "batch_size": 9,
        "packed": True,
        "max_seq_len": None,
        "effective_batch_size": 18,
        "effective_examples": 93.8,
    }

    (line,) = report_lines(Report("/nowhere/finetune.yaml", "nowhere", (), facts))

    assert line == (
        "/nowhere/finetune.yaml: 5.3M parameters, batch_size 9, packed, effective batch size 18 sequences "
        "(about 94 examples)"
    )
