"""`autobatch.yaml`: named cluster profiles, for what a probe's job needs and `finetune.slurm` doesn't say.

    default: gpu                  # the profile that is used unless --profile names another
    profiles:
      gpu:
        partition: gpu            # any of `OPTIONS`, as sbatch spells them
        account: lab
        time: "00:15:00"          # or minutes; default 20 minutes
        setup:                    # shell lines before the probe; the job ends at the first that fails
          - module load cuda/12.8
          - source ~/venvs/tune/bin/activate
        environment:
          HF_HUB_OFFLINE: 1

It is looked for in the run directory, the experiment directory and the user's configuration directory
(`$XDG_CONFIG_HOME/autobatch`, `~/.config/autobatch`); the first that has the profile decides.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autobatch.errors import UsageError

FILE_NAME = "autobatch.yaml"

#: sbatch options that a profile, a flag or the training job's header may give the probe's job.
OPTIONS = (
    "account", "clusters", "constraint", "cpus-per-gpu", "cpus-per-task", "exclude", "gpus", "gpus-per-node",
    "gpus-per-task", "gres", "licenses", "mem", "mem-per-cpu", "mem-per-gpu", "nodelist", "partition", "qos",
    "reservation", "time",
)  # fmt: skip

_OTHER = ("environment", "setup")


@dataclass(frozen=True)
class Profile:
    """A named cluster profile.

    Attributes:
        name: of the profile; empty for none.
        path: file that it stands in; None for none.
        options: sbatch options by their long name.
        setup: shell lines.
        environment: variables.
    """

    name: str = ""
    path: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def find_profile(name: str | None, directories: Sequence[Path]) -> Profile:
    """The profile called `name`, or the default one.

    Args:
        name: None takes the file's `default`, or no profile when there is none.
        directories: where to look, in this order.

    Raises:
        UsageError: no such profile, or a file that can't be used; the message names the valid names.
    """
    known: list[str] = []
    for directory in directories:
        path = directory / FILE_NAME
        if not path.is_file():
            continue
        content = _read(path)
        profiles = content.get("profiles") or {}
        wanted = name if name is not None else content.get("default")
        if wanted in profiles:
            return _profile(str(wanted), profiles[wanted], path)
        if name is None and wanted is not None:
            raise UsageError(f"{path}: default names {wanted!r}, which isn't under profiles")
        known += [str(profile) for profile in profiles]
    if name is None:
        return Profile()
    where = ", ".join(str(directory / FILE_NAME) for directory in directories)
    raise UsageError(f"--profile {name}: no such profile in {where}; there are: {', '.join(known) or 'none'}")


def user_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the user's own `autobatch.yaml` is (XDG Base Directory Specification)."""
    base = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".config"
    return Path(base) / "autobatch"


def parse_minutes(text: str) -> int:
    """Minutes, rounded up, of a time as sbatch takes it: ``20``, ``20:30``, ``1:00:00``, ``1-0``, ``1-2:30``.

    Raises:
        UsageError: not such a time, or none at all.
    """
    match = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a time: write minutes, HH:MM:SS or D-HH:MM:SS")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, minutes, seconds = 0, *[*numbers, 0][:2]
    total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise UsageError(f"{text!r} is no time at all: a probe takes minutes")
    return -(-total // 60)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Everything is text, as sbatch and a shell take it.

        YAML reads an unquoted ``time: 1:30:00`` as 5400, ``0755`` as 493 and ``yes`` as True.
        """

        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in known if tag.endswith((":null", ":merge"))]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        # A subclass of SafeLoader.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: can't be read: {error.problem or error.context}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: can't be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("profiles") or {}, dict):
        raise UsageError(f"{path}: must be a mapping with profiles: below it; see slurm/README.md")
    _refuse_unknown(content, ("default", "profiles"), str(path))
    if not isinstance(content.get("default"), (str, type(None))):
        raise UsageError(f"{path}: default must be the name of a profile")
    return content


def _profile(name: str, content: Any, path: Path) -> Profile:
    where = f"{path}: profile {name}"
    if not isinstance(content, dict):
        raise UsageError(f"{where}: must be a mapping of settings")
    _refuse_unknown(content, (*OPTIONS, *_OTHER), where)
    setup = content.get("setup") or []
    environment = content.get("environment") or {}
    if not isinstance(setup, list) or not all(isinstance(line, str) for line in setup):
        raise UsageError(f"{where}: setup must be a list of shell lines")
    if not isinstance(environment, dict):
        raise UsageError(f"{where}: environment must be a mapping of variables")
    for key, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", str(key), re.ASCII):
            raise UsageError(f"{where}: environment: {key!r} is no name of a variable")
        if not isinstance(value, (str, type(None))):
            raise UsageError(f"{where}: environment: {key} must be a single value")
    options = {key: value for key, value in content.items() if key in OPTIONS and value is not None}
    for key, value in options.items():
        # sbatch reads its options line by line.
        if not isinstance(value, str) or "\n" in value:
            raise UsageError(f"{where}: {key} must be a single value on one line, as sbatch takes it")
    return Profile(
        name, path, options, tuple(setup), {key: value or "" for key, value in environment.items()}
    )


def _refuse_unknown(content: Mapping[Any, Any], valid: Sequence[str], where: str) -> None:
    unknown = [str(key) for key in content if key not in valid]
    if unknown:
        close = difflib.get_close_matches(unknown[0], valid, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"{where}: unknown: {', '.join(unknown)}{hint}; valid: {', '.join(valid)}")
