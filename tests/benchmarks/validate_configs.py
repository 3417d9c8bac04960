"""Validates every config that torchtune ships, and writes a table of what is found.

    python -m tests.benchmarks.validate_configs

The bar: no crash and no error, for torchtune's own configs train. Every warning and info of the table was held
against the config and torchtune's source; `WHY` says how. Half a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from autobatch.runs.torchtune_source import registered_recipes
from autobatch.validation.findings import Finding, Report, Severity
from autobatch.validation.validator import validate
from tests.benchmarks.machine import machine_facts

RESULT = Path(__file__).parent / "results" / "validate-torchtune.md"

#: Infos that are the same for most configs, and stand in a list of configs below the table.
COMMON = ("files", "small-unpacked-batch")

WHY = {
    "batch-size-limit": "The figures are the config's and the planning document's. No such run was measured here: "
    "the rule is a rule of thumb, and says so. Those of several devices shard the model.",
    "component": "bitsandbytes and torchvision aren't installed where this table was made, and the recipe imports "
    "the component: training there would fail. With them installed the warning is gone.",
    "files": "Each names a path below /tmp, where `tune download` would put it, and it isn't there (all "
    "compared).",
    "kind": "The recipe with which torchtune ships it generates, evaluates, quantizes, or trains by PPO.",
    "lora": "rank 64 and alpha 16 in all three: a scale of 0.25, where torchtune's other configs have 2.",
    "optimizer": "bitsandbytes' documentation: paged optimizers use CUDA's unified memory.",
    "sections": "Its recipe, in dev/, reads `datasets` and `dataloader`.",
    "small-unpacked-batch": "packed is False or absent, batch_size at most 4 (all compared), and the dataset's "
    "builder has `packed`.",
    "warm-up": "1 epoch of max_steps_per_epoch 50 is all that the recipe trains, and the warm-up takes 100.",
}


def main() -> int:
    """Validate, write the table, and return 1 if the bar is missed."""
    registered = {config for recipe in registered_recipes().values() for config in recipe.configs}
    paths = sorted(config for config in registered if config.exists())
    reports = validate(paths)
    missing = sorted(shown(str(config)) for config in registered if not config.exists())
    text = "\n".join(lines(reports, missing)) + "\n"
    RESULT.write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(report.count(Severity.ERROR) or not report.readable for report in reports) else 0


def lines(reports: Sequence[Report], missing: Sequence[str]) -> list[str]:
    """The results as Markdown."""
    facts = machine_facts()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    counts = {severity: sum(report.count(severity) for report in reports) for severity in Severity}
    found = ", ".join(f"{count} {severity.value}s" for severity, count in counts.items())
    result = [
        "# Every config that torchtune ships, validated",
        "",
        f"`python -m tests.benchmarks.validate_configs`; {facts['cpu']}, {facts['cores']} cores; {versions}.",
        "",
        f"{len(reports)} configs: {found}; "
        f"{sum(report.passes() for report in reports)} pass, {sum(not r.passes() for r in reports)} fail.",
    ]
    if missing:
        result.append(f"Registered and not shipped, so not among them: {', '.join(missing)}.")
    result += ["", "## Findings", "", "| config | severity | check | what | line |", "|---|---|---|---|---|"]
    for report in reports:
        result += [
            f"| {shown(report.path)} | {f.severity.value} | {f.check} | {f.what} | {line_of(f)} |"
            for f in report.findings
            if f.check not in COMMON or f.severity is not Severity.INFO
        ]
    for check in COMMON:
        having = [(r, [f for f in r.findings if f.check == check]) for r in reports]
        having = [(report, findings) for report, findings in having if findings]
        total = sum(len(findings) for _, findings in having)
        result += ["", f"## {check}: {total} infos in {len(having)} configs", ""]
        result.append(", ".join(f"{shown(r.path)} ({', '.join(map(line_of, found))})" for r, found in having))
    result += ["", "## Why each is true", "", "| check | looked at |", "|---|---|"]
    result += [f"| {check} | {why} |" for check, why in WHY.items()]
    result += ["", "## What the checks went by", ""]
    result += [
        "| config | recipe | parameters | size | batch_size | packed | effective |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        if "batch_size" in report.facts:
            by = report.facts
            count = f"{by['parameters'] / 1e9:.3f}B" if by["parameters"] else "by name"
            cells = (shown(report.path), by["recipe"], count, by["size"], by["batch_size"], by["packed"])
            result.append(f"| {' | '.join(map(str, cells))} | {by['effective_batch_size']} |")
    return result


def shown(path: str) -> str:
    """The config's name below torchtune's configs/."""
    return path.rpartition("configs/")[2]


def line_of(finding: Finding) -> str:
    """The line of a finding in its file; empty when it has none."""
    line = finding.where.rpartition(":")[2]
    return line if line.isdigit() else ""


if __name__ == "__main__":
    sys.exit(main())
