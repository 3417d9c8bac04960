"""Forty runs with four fingerprints, on the development cluster: an array of four probes against forty probes.

    python -m tests.benchmarks.many_runs --markdown tests/benchmarks/results/many-runs.md

All jobs ask for half the node's cores, so two run at a time, groups as well as single probes. Of the forty single
probes only some are carried out, the same number of each fingerprint, and their time is scaled up; the table says
how many. A run's training job checks its probe (`autobatch verify`) and ends. Needs root, as the cluster does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from autobatch.demo import SmallRun, lay_out
from autobatch.runs.results import load_result
from slurm.devcluster import cluster as devcluster
from slurm.devcluster.conf import Options
from tests.benchmarks.machine import machine_facts, write_json
from tests.many_runs import copy_run
from tests.slurm.client import Slurm

_RESULTS = Path(__file__).parent / "results"

#: What makes the fingerprints; each is combined with learning rates and seeds.
FINGERPRINTS: tuple[dict[str, Any], ...] = (
    {"lora_rank": 8},
    {"lora_rank": 32},
    {"lora_rank": 8, "gradient_accumulation_steps": 4},
    {"lora_rank": 8, "enable_activation_checkpointing": True},
)

_SCRIPT = """\
#!/bin/bash
#SBATCH --output=train-%j.out
set -e
autobatch verify .
exit 0
tune run lora_finetune_single_device --config finetune.yaml
"""

_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
_TIMEOUT_S = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe, print the table; 1 unless all runs are written and trained behind their own group."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="many-runs-") as scratch:
        Path(scratch).chmod(0o755)
        directory = Path(scratch) / "cluster"
        try:
            slurm = Slurm(devcluster.up(directory, Options(), owner_pid=os.getpid()))
            grouped = _grouped(slurm, _lay_out(Path(scratch) / "many", options.runs), options.capacity)
            singles = _singles(slurm, _lay_out(Path(scratch) / "single", options.singles), options.capacity)
        finally:
            devcluster.down(directory)
    answer = {
        **machine_facts(),
        "load_before": options.load,
        "runs": options.runs,
        "grouped": grouped,
        "singles": singles,
        "singles_scaled_s": singles["wall_s"] * options.runs / options.singles,
    }
    answer["ratio"] = answer["singles_scaled_s"] / grouped["wall_s"]
    lines = _lines(answer)
    print("\n".join(lines))
    write_json(answer, _RESULTS / "many-runs.json")
    if options.markdown:
        Path(options.markdown).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if grouped["written"] == grouped["trained"] == options.runs and grouped["by_group"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=40, help="runs of the experiment (default: 40)")
    parser.add_argument("--singles", type=int, default=8, help="single probes to carry out (default: 8)")
    parser.add_argument("--capacity", default="1.0GiB", help="as of autobatch probe (default: 1.0GiB)")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there, too")
    parser.set_defaults(load=os.getloadavg()[0])
    return parser


def _lay_out(experiment: Path, count: int) -> Path:
    """`count` runs, the fingerprints in turn; each with its own learning rate and seed."""
    first = lay_out(experiment, SmallRun(name="base", examples=300, max_seq_len=128, num_layers=2))
    (first / "finetune.slurm").write_text(_SCRIPT, encoding="utf-8")
    for index in range(count):
        settings = FINGERPRINTS[index % len(FINGERPRINTS)]
        copy_run(first, f"run{index + 1:02d}", lr=f"{index + 1}e-5", seed=index, **settings)
    for path in (*first.iterdir(),):
        path.unlink()
    first.rmdir()
    return experiment


def _call(slurm: Slurm, *words: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "autobatch.cli.main", *words],
        env=slurm.environment | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _grouped(slurm: Slurm, experiment: Path, capacity: str) -> dict[str, Any]:
    words = ("probe", str(experiment), "--cluster", "slurm", "--cpus", "4", "--capacity", capacity)
    entries = json.loads(_call(slurm, *words, "--train", "--json"))["runs"]
    jobs = {
        entry["job_id"]: slurm.wait_for(entry["job_id"], *_ENDED, timeout_s=_TIMEOUT_S) for entry in entries
    }
    trained = {
        entry["run"]: slurm.wait_for(entry["train_job_id"], *_ENDED, timeout_s=_TIMEOUT_S)
        for entry in entries
    }
    results = [load_result(Path(entry["run"]) / "probe" / "result.json") for entry in entries]
    own = [len(one.trials) - sum(len(s.batch_sizes) for s in one.shared_from) for one in results]
    last = max(_time(job["EndTime"]) for job in jobs.values())
    return {
        "wall_s": last - min(_time(job["SubmitTime"]) for job in jobs.values()),
        "jobs": len(jobs),
        "written": sum(
            _stands_in(Path(one.request.run_dir) / "finetune.yaml", one.batch_size) for one in results
        ),
        "trained": sum(job["JobState"] == "COMPLETED" for job in trained.values()),
        "by_group": all(
            _time(jobs[entry["job_id"]]["EndTime"]) <= _time(trained[entry["run"]]["StartTime"])
            for entry in entries
        ),
        "trained_before_the_last_probe": sum(_time(job["StartTime"]) <= last for job in trained.values()),
        "trials": sum(own),
        "runs_with_trials": sum(map(bool, own)),
        "batch_sizes": [one.batch_size for one in results],
    }


def _singles(slurm: Slurm, experiment: Path, capacity: str) -> dict[str, Any]:
    runs = sorted(experiment.glob("run*/finetune.yaml"))
    words = ("--cluster", "slurm", "--cpus", "4", "--capacity", capacity)
    ids = [_call(slurm, "probe", str(config.parent), *words).strip() for config in runs]
    jobs = [slurm.wait_for(job, *_ENDED, timeout_s=_TIMEOUT_S) for job in ids]
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    results = [load_result(config.parent / "probe" / "result.json") for config in runs]
    return {
        "wall_s": max(_time(job["EndTime"]) for job in jobs) - min(_time(job["StartTime"]) for job in jobs),
        "jobs": len(jobs),
        "trials": sum(len(one.trials) for one in results),
        "batch_sizes": [one.batch_size for one in results],
    }


def _stands_in(config: Path, batch_size: int | None) -> bool:
    return re.search(rf"(?m)^batch_size: {batch_size}\b", config.read_text(encoding="utf-8")) is not None


def _time(text: str) -> float:
    return time.mktime(datetime.fromisoformat(text).timetuple())


def _lines(answer: dict[str, Any]) -> list[str]:
    grouped, singles, runs = answer["grouped"], answer["singles"], answer["runs"]
    done = singles["jobs"]
    return [
        f"# {runs} runs, {len(FINGERPRINTS)} fingerprints",
        "",
        f"{answer['cpu']}, {answer['cores']} cores, load {answer['load_before']:.1f} from other work before it "
        f"began; torch {answer['versions'].get('torch')}, torchtune {answer['versions'].get('torchtune')}. The "
        "small model, LoRA, packs of 128 tokens; two jobs at a time.",
        "",
        "| | jobs | trials | wall |",
        "|---|---|---|---|",
        f"| `autobatch probe EXPERIMENT` | {grouped['jobs']} | {grouped['trials']} | {grouped['wall_s']:.0f} s |",
        f"| single probes, {done} carried out | {done} | {singles['trials']} | {singles['wall_s']:.0f} s |",
        f"| scaled to {runs} | {runs} | {singles['trials'] * runs / done:.0f} "
        f"| {answer['singles_scaled_s']:.0f} s |",
        "",
        f"Ratio: {answer['ratio']:.1f}. {grouped['written']} of {runs} runs have the measured batch_size in their "
        f"finetune.yaml; {grouped['trained']} training jobs ended well, each begun after its own group's task, "
        f"{grouped['trained_before_the_last_probe']} of them before the last task had ended. "
        f"{grouped['runs_with_trials']} runs measured; the others had every trial from one of those.",
    ]


if __name__ == "__main__":
    sys.exit(main())
