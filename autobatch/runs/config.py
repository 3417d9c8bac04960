"""Reads `finetune.yaml` as torchtune does: OmegaConf, with the overrides of the `tune run` line merged in.

torchtune's merging is `torchtune/config/_utils.py`, `_merge_yaml_and_cli_args`; it can't be imported here,
and is followed in `_merge`: ``model=PATH`` sets ``model._component_``, ``~key`` removes a key, ``None``
is null, an argument has exactly one ``=``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autobatch.runs.findings import Findings
from autobatch.runs.fingerprint import can_change_memory
from autobatch.runs.interpolation import Unresolved, resolve
from autobatch.runs.slurm_script import SlurmScript
from autobatch.runs.yaml_source import check_text, key_lines, nearest_line

_OVERRIDE_ADVICE = "torchtune takes key=value, with one `=` and no dashes, or ~key"


@dataclass(frozen=True)
class RunConfig:
    """A config and where each of its values stands.

    Attributes:
        path: of `finetune.yaml`.
        text: of `finetune.yaml`.
        config: with the overrides merged in, interpolations unresolved; ``${oc.env:NAME}`` already has the
            value that `finetune.slurm` exports.
        values: the same, resolved, as plain containers; `Unresolved` where that failed.
        lines: line of each key in `text`, by dotted path.
        overridden: ``finetune.slurm:LINE`` for each key that the `tune run` line sets or removes.
    """

    path: Path
    text: str
    config: DictConfig
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    overridden: dict[str, str] = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """The resolved value at a dotted path; None where there is none."""
        value: Any = self.values
        for part in key.split("."):
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, Mapping):
                value = value.get(part)
            else:
                return value if isinstance(value, Unresolved) else None
        return value

    def where(self, key: str) -> str:
        """``file:line`` of a key: of the override that sets it, else in the YAML file."""
        above = key
        while above:
            if above in self.overridden:
                return self.overridden[above]
            above = above.rpartition(".")[0]
        line = nearest_line(self.lines, key)
        return f"{self.path}:{line}" if line else str(self.path)


def read_config(path: Path, script: SlurmScript | None, findings: Findings) -> RunConfig | None:
    """Reads a config; what is wrong with it goes to `findings`.

    Args:
        path: of `finetune.yaml`.
        script: the run's `finetune.slurm`, whose overrides and exported variables apply.
        findings: gets the problems.

    Returns:
        None when the file can't be loaded at all.
    """
    try:
        # Not read_text, which translates line ends: the write-back compares with what is in the file.
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        findings.problem(f"can't be read: {error.strerror}", str(path), "check its permissions")
        return None
    except UnicodeDecodeError as error:
        findings.problem(f"not UTF-8: {error.reason} at byte {error.start}", str(path), "save it as UTF-8")
        return None
    return parse_config(text, path, script, findings)


def parse_config(text: str, path: Path, script: SlurmScript | None, findings: Findings) -> RunConfig | None:
    """`read_config` on the text of a config; `path` is what messages call it."""
    root = check_text(text, path, findings)
    if root is None:
        return None
    lines = key_lines(root)
    try:
        config = OmegaConf.create(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error)
        findings.problem(what, f"{path}:{mark.line + 1}" if mark else str(path), "correct the line")
        return None
    except Exception as error:  # `!!int x` and the like give whatever PyYAML's constructor raises
        key = getattr(error, "full_key", None) or ""
        line = nearest_line(lines, key.replace("[", ".").replace("]", ""))
        findings.problem(
            f"{key}: {str(error).splitlines()[0]}" if key else f"torchtune can't load it: {error}",
            f"{path}:{line}" if line else str(path),
            "torchtune reads configs with OmegaConf: write a string, number, boolean, null, list or mapping",
        )
        return None
    assert isinstance(config, DictConfig)
    overridden: dict[str, str] = {}
    if script:
        config = _merge(config, script, overridden, findings)
        config = _fill_in_exports(config, script)
    run_config = RunConfig(path, text, config, {}, lines, overridden)
    if "config" in config:
        findings.problem(
            "torchtune reserves the key `config`", run_config.where("config"), "give the key another name"
        )
    values = resolve(config, run_config.where, findings)
    return RunConfig(path, text, config, values, lines, overridden)


def _merge(
    config: DictConfig, script: SlurmScript, overridden: dict[str, str], findings: Findings
) -> DictConfig:
    """Merges the overrides of the `tune run` line; each that can't be merged is a problem."""
    tune_run = script.tune_run
    if tune_run is None:
        return config
    where = script.where(tune_run.line)
    for argument in (*tune_run.overrides, *tune_run.unknown):
        if re.fullmatch(r"~?batch_size(=.*)?", argument, re.DOTALL):
            findings.problem(
                f"`{argument}` overrides the batch_size that the probe writes into finetune.yaml",
                where,
                "remove it from the `tune run` line",
            )
    for argument in tune_run.unknown:
        _report_unknown(argument, where, findings)
    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    settings: DictConfig = OmegaConf.create({})
    for argument in tune_run.overrides:
        if argument.startswith("~"):
            key = argument[1:].partition("=")[0]
            if _remove(container, key.split(".")):
                overridden[key] = where
            else:
                findings.problem(
                    f"`{argument}` removes a key that isn't there, or a component",
                    where,
                    "remove it from the `tune run` line",
                )
            continue
        setting = dotlist_entry(argument, container)
        try:
            if setting is None:
                raise ValueError(_OVERRIDE_ADVICE)
            given = OmegaConf.from_dotlist([setting])
            OmegaConf.merge(OmegaConf.create(container), given)
            settings.merge_with(given)
        except Exception as error:  # what stands behind `=` is YAML too
            what = (str(error) or type(error).__name__).splitlines()[0]
            findings.problem(f"`{argument}` can't be merged into the config: {what}", where, _OVERRIDE_ADVICE)
            continue
        overridden[setting.partition("=")[0]] = where
    try:
        merged = OmegaConf.merge(OmegaConf.create(container), settings)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        findings.problem(str(error).splitlines()[0], where, _OVERRIDE_ADVICE)
        return config
    assert isinstance(merged, DictConfig)
    return merged


def _report_unknown(argument: str, where: str, findings: Findings) -> None:
    key, is_setting, _ = argument.partition("=")
    if not is_setting or "$" in key or "`" in key:
        findings.note(f"{where}: what `{argument}` stands for can't be known here; taken as nothing")
    elif can_change_memory(key):
        findings.problem(
            f"`{argument}` can change memory or density, and its value can't be known before the job runs",
            where,
            f"write the value out, there or in finetune.yaml, or `export` the variable above line "
            f"{where.rpartition(':')[2]} with a literal value",
        )
    else:
        findings.note(f"{where}: the value of `{argument}` can't be known here; it doesn't change memory")


def dotlist_entry(argument: str, container: Mapping[Any, Any]) -> str | None:
    """The dotlist entry of a ``key=value`` argument; None when torchtune would refuse it."""
    key, _, value = argument.partition("=")
    if argument.count("=") != 1 or argument.startswith("-") or not key:
        return None
    section = container.get(key)
    if isinstance(section, Mapping) and "_component_" in section:
        key += "._component_"
    if value == "None":
        value = "!!null"
    if "max_filename" in key:
        value = f"!!str {value}"
    return f"{key}={value}"


def _remove(container: Any, parts: list[str]) -> bool:
    """Removes a key, and the sections that this leaves empty; False when it is missing or a component."""
    if not isinstance(container, dict) or parts[0] not in container or "_component_" in parts:
        return False
    value = container[parts[0]]
    if len(parts) > 1:
        if not _remove(value, parts[1:]):
            return False
        if value:
            return True
    elif isinstance(value, dict) and "_component_" in value:
        return False
    del container[parts[0]]
    return True


def _fill_in_exports(config: DictConfig, script: SlurmScript) -> DictConfig:
    """``${oc.env:NAME}`` replaced by what the script exports, so that the probe sees what training sees."""
    if not script.exports:
        return config
    names = "|".join(map(re.escape, script.exports))
    pattern = re.compile(r"\$\{\s*oc\.env\s*:\s*(" + names + r")\s*(?:,[^{}]*)?\}")

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, str):
            return pattern.sub(lambda match: script.exports[match.group(1)].replace("${", r"\${"), value)
        return value

    filled = OmegaConf.create(fill(OmegaConf.to_container(config, resolve=False)))
    assert isinstance(filled, DictConfig)
    return filled
