"""The demo run: complete, the same each time, and real enough for torchtune to train on."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autobatch.demo import SmallRun, lay_out
from autobatch.demo.examples import Example, as_json, make_examples
from autobatch.demo.parts import fill
from autobatch.demo.tokenizer import TOKENIZER_VOCAB_SIZE, train_tokenizer
from autobatch.demo.words import number_in_words
from autobatch.errors import UsageError
from autobatch.probing.job import run_probe
from autobatch.records import ProbeRequest
from autobatch.runs.slurm_script import read_script
from autobatch.shipped import configs_dir, training_script

TINY = SmallRun(
    num_layers=1, embed_dim=128, num_heads=2, num_kv_heads=2, intermediate_dim=256, examples=200, batch_size=1
)


def variant(**choices: Any) -> SmallRun:
    """TINY with other choices."""
    return dataclasses.replace(TINY, **choices)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the demo as users get it."""
    return lay_out(tmp_path_factory.mktemp("demo") / "demo-run")


@pytest.fixture
def in_demo(demo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo as working directory, as its relative paths want it, and no cache of tiktoken's."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.chdir(demo)
    return demo


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def load(run_dir: Path) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.load(run_dir / "finetune.yaml")


class TestLayout:
    def test_holds_everything_the_config_names(self, demo: Path) -> None:
        (tokenizer,) = (demo.parent / "model").glob("tokenizer-*.model")
        assert sorted(contents(demo.parent)) == [
            "data/train.json",
            "model/model.pt",
            "model/special_tokens.json",
            f"model/{tokenizer.name}",
            "run1/finetune.slurm",
            "run1/finetune.yaml",
            "runs_plan.md",
        ]

    def test_two_layouts_differ_in_no_byte(self, demo: Path, tmp_path: Path) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": "1"}
        code = "import sys, pathlib, autobatch.demo as demo; demo.lay_out(pathlib.Path(sys.argv[1]))"
        again = tmp_path / "elsewhere"
        subprocess.run(
            [sys.executable, "-c", code, again], check=True, env=environment, cwd=Path(__file__).parents[1]
        )
        assert contents(again) == contents(demo.parent)

    def test_refuses_a_directory_with_files_and_leaves_it(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match=r"holds files already.*\n.*--force"):
            lay_out(tmp_path, TINY)
        assert contents(tmp_path) == {"notes.txt": b"mine"}

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match="is a file"):
            lay_out(tmp_path / "notes.txt", TINY)

    def test_force_writes_beside_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "runs_plan.md").write_text("old")
        lay_out(tmp_path, TINY, force=True)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert "## Packing Analysis" in (tmp_path / "runs_plan.md").read_text()

    def test_the_plan_has_the_sections_that_a_probe_fills_in(self, demo: Path) -> None:
        plan = (demo.parent / "runs_plan.md").read_text(encoding="utf-8")
        assert "\n## Configuration\n" in plan
        assert "\n- **Batch sizes**: run1: 4 (a guess)\n" in plan
        assert "\n| run1 | 4.5M | 4 | True | not measured | not measured | - | starting point |\n" in plan
        assert "{{" not in plan

    @pytest.mark.parametrize(
        "choices",
        [
            pytest.param({}, id="lora"),
            pytest.param({"method": "qlora"}, id="qlora"),
            pytest.param({"method": "dora", "dtype": "bf16"}, id="dora"),
            pytest.param({"method": "full", "gradient_accumulation_steps": 4}, id="full"),
            pytest.param({"max_seq_len": 128, "max_steps_per_epoch": 2, "packed": False}, id="unpacked"),
            pytest.param({"enable_activation_checkpointing": True, "vocab_size": 128_256}, id="large vocab"),
        ],
    )
    def test_config_resolves_to_what_was_asked(self, tmp_path: Path, choices: dict[str, Any]) -> None:
        from omegaconf import OmegaConf

        run = variant(**choices)
        run_dir = lay_out(tmp_path, run)
        config: Any = OmegaConf.to_container(load(run_dir), resolve=True)
        read = {
            **{name: config[name] for name in ("batch_size", "dtype", "gradient_accumulation_steps")},
            **{name: config[name] for name in ("enable_activation_checkpointing", "max_steps_per_epoch")},
            **{name: config["model"][name] for name in ("vocab_size", "num_layers", "max_seq_len")},
            "packed": config["dataset"]["packed"],
        }
        assert read == {name: getattr(run, name) for name in read}
        assert config["model"].get("use_dora", False) == (run.method == "dora")
        assert config["model"].get("quantize_base", False) == (run.method == "qlora")
        for path in (
            config["tokenizer"]["path"],
            config["tokenizer"]["special_tokens_path"],
            config["dataset"]["data_files"],
            config["checkpointer"]["checkpoint_dir"],
        ):
            assert (run_dir / path).exists(), path

    def test_comments_of_the_template_stay(self, demo: Path) -> None:
        text = (demo / "finetune.yaml").read_text()
        assert "batch_size: 4  # sequences, not examples\n" in text
        assert "{{" not in text

    @pytest.mark.parametrize(
        ("choices", "message"),
        [
            pytest.param({"vocab_size": 1000}, "vocab_size 1000 is below", id="vocabulary"),
            pytest.param({"num_heads": 3}, "embed_dim 128 over num_heads 3", id="heads"),
            pytest.param({"num_kv_heads": 3}, "num_heads 2 must be a multiple", id="kv heads"),
            pytest.param({"method": "qlora", "intermediate_dim": 250}, "multiple of 16384", id="nf4"),
            pytest.param({"name": "model"}, "name 'model' must be", id="name taken"),
            pytest.param({"name": "my run"}, "name 'my run' must be", id="name with a space"),
        ],
    )
    def test_impossible_choices_are_refused(self, choices: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            variant(**choices)


class TestSlurmScript:
    @pytest.mark.parametrize(
        ("submitted_from", "script"),
        [
            pytest.param("run1", "finetune.slurm", id="in the run"),
            pytest.param("..", "experiment/run1/finetune.slurm", id="two levels above"),
            pytest.param("run2", "../run1/finetune.slurm", id="in another run"),
            pytest.param(None, "run1/finetune.slurm", id="without Slurm"),
        ],
    )
    def test_trains_in_the_run_and_keeps_the_exit_code(
        self, demo: Path, tmp_path: Path, submitted_from: str | None, script: str
    ) -> None:
        tune = tmp_path / "tune"
        tune.write_text('#!/bin/bash\necho "$PWD: tune $*"\nexit 7\n')
        autobatch = tmp_path / "autobatch"
        # What it records of the training fails, and nobody minds.
        autobatch.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\n[[ "$*" = "verify ." ]]\n')
        (tmp_path / "run2").mkdir()
        (tmp_path / "run2" / "finetune.yaml").touch()
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(f'#!/bin/bash\necho "   Command={demo.resolve()}/finetune.slurm"\n')
        for program in (tune, autobatch, scontrol):
            program.chmod(0o755)
        experiment = demo.parent
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        path = experiment / script
        if submitted_from is not None:
            called_in = tmp_path / "run2" if submitted_from == "run2" else experiment / submitted_from
            environment |= {"SLURM_SUBMIT_DIR": str(called_in), "SLURM_JOB_ID": "12"}
            path = tmp_path / "slurm_script"
            path.write_bytes((demo / "finetune.slurm").read_bytes())
        done = subprocess.run(["bash", path], env=environment, cwd="/", capture_output=True, text=True)
        expected = f"{demo.resolve()}: tune run lora_finetune_single_device --config finetune.yaml\n"
        assert (done.returncode, done.stdout, done.stderr) == (7, expected, "")
        job = "" if submitted_from is None else " --job 12"
        assert (tmp_path / "calls").read_text() == f"verify .\nmetrics . --exit-code 7{job}\n"

    def test_autobatch_reads_the_recipe_and_no_other_directory(self, demo: Path) -> None:
        script = read_script(demo / "finetune.slurm")
        assert script.tune_run is not None
        assert (script.tune_run.recipe, script.tune_run.config) == (SmallRun().recipe_name, "finetune.yaml")
        assert script.directory is None

    def test_header(self, tmp_path: Path) -> None:
        run_dir = lay_out(tmp_path, variant(name="long", sbatch_options=("--partition=gpu", "--gres=gpu:1")))
        lines = (run_dir / "finetune.slurm").read_text().splitlines()
        assert [line for line in lines if line.startswith("#SBATCH")] == [
            "#SBATCH --job-name=long",
            "#SBATCH --output=slurm-%j.out",
            "#SBATCH --nodes=1",
            "#SBATCH --ntasks=1",
            "#SBATCH --cpus-per-task=2",
            "#SBATCH --mem=4G",
            "#SBATCH --time=00:30:00",
            "#SBATCH --partition=gpu",
            "#SBATCH --gres=gpu:1",
        ]


class TestExamples:
    def test_the_first_ones(self) -> None:
        assert make_examples(3) == [
            Example(
                "Group these errands by person:\nOn Thursday Anouk takes the magnet to the laboratory.",
                "Anouk: magnet to the laboratory",
            ),
            Example(
                "What is two hundred and twenty-four plus five hundred and seventeen?",
                "Two hundred and twenty-four plus five hundred and seventeen is seven hundred and forty-one.",
            ),
            Example("Sort these words from A to Z, one a line: letter, wagon, door.", "door\nletter\nwagon"),
        ]

    def test_a_longer_list_begins_with_the_shorter(self) -> None:
        assert make_examples(50)[:20] == make_examples(20)

    def test_another_seed_makes_others(self) -> None:
        assert make_examples(5, seed=1) != make_examples(5)

    def test_json_has_the_columns_of_instruct_dataset(self) -> None:
        assert json.loads(as_json([Example("a", "b")])) == [{"input": "a", "output": "b"}]

    @pytest.mark.parametrize(
        ("number", "words"),
        [
            (0, "zero"),
            (13, "thirteen"),
            (80, "eighty"),
            (99, "ninety-nine"),
            (419, "four hundred and nineteen"),
            (1000, "one thousand"),
            (2005, "two thousand and five"),
            (71_630, "seventy-one thousand six hundred and thirty"),
        ],
    )
    def test_number_in_words(self, number: int, words: str) -> None:
        assert number_in_words(number) == words


class TestTokenizer:
    @pytest.mark.parametrize(
        "text",
        [
            pytest.param("Sort these words from A to Z: kettle, bridge", id="of the corpus"),
            pytest.param("  12,345 crates -- it's \n\n  late\t", id="spaces and digits"),
            pytest.param("Grüße, 世界 🙂", id="bytes it never saw"),
        ],
    )
    def test_round_trip(self, in_demo: Path, text: str) -> None:
        from torchtune import config

        tokenizer = config.instantiate(load(in_demo).tokenizer)
        assert tokenizer.decode(tokenizer.encode(text, add_bos=True, add_eos=True)) == text

    def test_ids_lie_in_the_smallest_vocabulary(self, in_demo: Path) -> None:
        from torchtune import config

        tokenizer = config.instantiate(load(in_demo).tokenizer)
        ids = tokenizer.special_tokens.values()
        assert tokenizer.base_vocab_size == min(ids)
        assert max(ids) < TOKENIZER_VOCAB_SIZE

    def test_other_contents_get_another_name(self) -> None:
        one, other = train_tokenizer(["one text"]), train_tokenizer(["another text"])
        assert one.file_name != other.file_name


@pytest.mark.parametrize(
    ("max_seq_len", "least", "most"),
    [pytest.param(128, 1.0, 2.0, id="128"), pytest.param(512, 3.0, 10.0, id="512")],
)
def test_dataset_packs(in_demo: Path, tmp_path: Path, max_seq_len: int, least: float, most: float) -> None:
    from torchtune import config

    cfg = load(in_demo)
    cfg.tokenizer.max_seq_len = max_seq_len
    packs = config.instantiate(cfg.dataset, config.instantiate(cfg.tokenizer), cache_dir=str(tmp_path))
    assert least < 2000 / len(packs) < most
    assert {len(pack["tokens"]) for pack in packs.packs} == {max_seq_len}


class TestParts:
    def test_files_of_the_checkout(self) -> None:
        assert configs_dir() == Path(__file__).parents[1] / "configs"
        assert training_script() == Path(__file__).parents[1] / "slurm/finetune.slurm"

    def test_packaged_files_come_first(self, tmp_path: Path) -> None:
        for place in ("autobatch/_configs/demo", "configs/demo", "autobatch/_slurm", "slurm"):
            (tmp_path / place).mkdir(parents=True)
            (tmp_path / place / "finetune.slurm").touch()
        assert configs_dir(tmp_path / "autobatch") == tmp_path / "autobatch/_configs"
        assert training_script(tmp_path / "autobatch") == tmp_path / "autobatch/_slurm/finetune.slurm"

    def test_somebody_elses_configs_are_not_ours(self, tmp_path: Path) -> None:
        (tmp_path / "configs").mkdir()
        with pytest.raises(UsageError, match="configs are missing"):
            configs_dir(tmp_path / "autobatch")

    def test_fill_leaves_interpolations_and_comments(self) -> None:
        assert fill("a: ${b}  # {{c}} {x} {{c}}", {"c": 1}) == "a: ${b}  # 1 {x} 1"

    def test_fill_names_the_missing_value(self) -> None:
        with pytest.raises(KeyError, match="c"):
            fill("{{c}}", {})

    def test_no_torch_at_import(self) -> None:
        heavy = {"torch", "torchtune", "tokenizers"}
        code = f"import sys, autobatch.demo; print({heavy} & set(sys.modules))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "set()\n"


@pytest.mark.recipe
def test_the_script_trains_once_it_is_probed(tmp_path: Path) -> None:
    run_dir = lay_out(tmp_path / "experiment", variant(max_steps_per_epoch=2, max_seq_len=128))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(run_dir),
        "HF_HOME": str(tmp_path / "huggingface"),
        "TIKTOKEN_CACHE_DIR": "",
    }
    command = ["bash", str(run_dir / "finetune.slurm")]

    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    probed = run_probe(ProbeRequest(str(run_dir), max_batch_size=2))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)

    assert refused.returncode == 1
    assert "wasn't probed yet" in refused.stderr
    assert probed.batch_size == 2
    assert done.returncode == 0, done.stderr
    assert "batch_size: 2\n" in done.stderr
    status = (run_dir.parent / "runs_status.yaml").read_text()
    assert "    status: completed\n" in status
    assert "      packing_source: probe\n" in status
    (log,) = (run_dir / "output" / "logs").glob("*.txt")
    assert [line.split(" |")[0] for line in log.read_text().splitlines()] == ["Step 1", "Step 2"]
