"""Reads `finetune.slurm`: the `#SBATCH` header, the exported variables and the `tune run` line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from autobatch.runs.shell import Command, Directory, Script, State, assignment
from autobatch.runs.shell_words import Word
from autobatch.runs.slurm_header import read_header

# Source: torch.distributed.run.get_args_parser (torch 2.13), whose options `tune run` accepts.
_TORCHRUN_FLAGS = frozenset(
    {"-h", "--help", "-m", "--module", "--no-python", "--run-path", "--standalone", "--virtual-local-rank"}
)
#: Variables that have another value in the job than in the shell that submits it; so have all of SLURM_*.
_SET_ANEW = frozenset({"CUDA_VISIBLE_DEVICES", "HOSTNAME", "OLDPWD", "PWD", "SHLVL", "TMPDIR"})
_PRINTING = frozenset({"echo", "printf", ":"})
_SHELLS = frozenset({"bash", "sh", "dash", "zsh", "ksh"})


@dataclass(frozen=True)
class TuneRun:
    """One `tune run` line.

    Attributes:
        recipe: name in torchtune's registry, path or dotted path.
        config: what follows ``--config``; None when it is missing.
        overrides: the ``key=value`` and ``~key`` arguments; those in `unknown` are not among them.
        distributed_args: the torchrun options before the recipe.
        line: of the script, from 1.
        unknown: arguments with a shell expansion whose value isn't known here.
    """

    recipe: str
    config: str | None
    overrides: tuple[str, ...]
    distributed_args: tuple[str, ...]
    line: int
    unknown: tuple[str, ...] = ()

    @property
    def processes_per_node(self) -> int | None:
        """How many processes torchrun starts on a node; None when that can't be known (``gpu``, a variable)."""
        return _count(_option_value(self.distributed_args, "--nproc-per-node"))

    @property
    def nodes(self) -> int | None:
        """On how many nodes; None when that can't be known (``1:4``, a variable)."""
        return _count(_option_value(self.distributed_args, "--nnodes"))

    @property
    def processes(self) -> int | None:
        """How many processes that makes in all."""
        if self.nodes is None or self.processes_per_node is None:
            return None
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class SlurmScript:
    """What autobatch reads from `finetune.slurm`.

    Attributes:
        path: of the script.
        header: the `#SBATCH` options by their long name, without dashes; a flag's value is empty.
        header_lines: the line of each option.
        tune_run: the training; None when the script has no `tune run`.
        exports: variables that the training sees because the script sets them to a literal value.
        export_lines: the line of each.
        directory: where the script changes to before the training, when it says so literally.
        directory_line: of the `cd` that does; None when it starts from a directory that isn't known.
        notes: what had to be assumed, for the user to hear.
    """

    path: Path
    header: dict[str, str] = field(default_factory=dict)
    header_lines: dict[str, int] = field(default_factory=dict)
    tune_run: TuneRun | None = None
    exports: dict[str, str] = field(default_factory=dict)
    export_lines: dict[str, int] = field(default_factory=dict)
    directory: str | None = None
    directory_line: int | None = None
    notes: tuple[str, ...] = ()

    def where(self, line: int | None) -> str:
        """``path:line``, or the path alone."""
        return f"{self.path}:{line}" if line else str(self.path)


@dataclass(frozen=True)
class _Training:
    """A `tune run` and the state of the script in which it runs."""

    tune_run: TuneRun
    exports: Mapping[str, tuple[str, int]]
    directory: Directory


def read_script(path: Path, environ: Mapping[str, str] | None = None) -> SlurmScript:
    """Reads a batch script.

    Args:
        path: the script.
        environ: variables of the shell that submits it. sbatch hands them on to the job.

    Raises:
        OSError: the file can't be read.
    """
    return parse_script(path.read_text(encoding="utf-8", errors="replace"), path, environ)


def parse_script(text: str, path: Path, environ: Mapping[str, str] | None = None) -> SlurmScript:
    """`read_script` on the text of a script; `path` is what messages call it."""
    header, header_lines = read_header(text)
    known = {
        name: value
        for name, value in (environ or {}).items()
        if name not in _SET_ANEW and not name.startswith("SLURM_")
    }
    commands = Script(text, State(known))
    trainings = list(_trainings(commands))
    notes: list[str] = []
    chosen = _choose(trainings, path, notes)
    directory = chosen.directory if chosen else Directory()
    exports = chosen.exports if chosen else commands.state.exports
    return SlurmScript(
        path=path,
        header=header,
        header_lines=header_lines,
        tune_run=chosen.tune_run if chosen else None,
        exports={name: value for name, (value, _) in exports.items()},
        export_lines={name: line for name, (_, line) in exports.items()},
        directory=str(directory.path) if directory.path.parts else None,
        directory_line=directory.line if directory.is_known else None,
        notes=tuple(notes),
    )


def _choose(trainings: list[_Training], path: Path, notes: list[str]) -> _Training | None:
    if not trainings:
        return None
    named = [t for t in trainings if PurePosixPath(t.tune_run.config or "").name == "finetune.yaml"]
    chosen = (named or trainings)[0]
    line = chosen.tune_run.line
    lines = sorted({t.tune_run.line for t in trainings})
    if len(lines) > 1:
        why = "its --config is finetune.yaml" if named else "it is the first; no --config is finetune.yaml"
        on = ", ".join(map(str, lines))
        notes.append(f"{path}:{line}: of the `tune run` on lines {on}, this one is taken: {why}")
    return chosen


def _trainings(script: Script) -> Iterator[_Training]:
    for command in script.commands():
        words, state = command.words, command.state
        if words[0].text in _PRINTING:
            continue
        start = _tune_run_index(words)
        if start is not None:
            tune_run = _parse_tune_run(words[start:])
            if tune_run:
                exports = {**state.exports, **_inline_exports(words[:start])}
                yield _Training(tune_run, exports, state.directory)
        elif nested := _shell_argument(words):
            inherited = State(state.variables, _inherited(command), state.directory)
            yield from _trainings(Script(nested.text, inherited, nested.line))


def _inherited(command: Command) -> dict[str, tuple[str, int]]:
    return {**command.state.exports, **_inline_exports(command.words)}


def _inline_exports(words: tuple[Word, ...]) -> dict[str, tuple[str, int]]:
    """Variables set for one command: ``NAME=value tune run ...``, ``env NAME=value tune run ...``."""
    found = {}
    for word in words:
        pair = assignment(word)
        if pair and not word.unknown:
            found[pair[0]] = (pair[1], word.line)
    return found


def _tune_run_index(words: tuple[Word, ...]) -> int | None:
    """Index of the `run` in ``tune run`` or ``python -m torchtune._cli.tune run``."""
    texts = [word.text for word in words]
    for index in range(1, len(texts)):
        program = texts[index - 1]
        if texts[index] == "run" and (
            PurePosixPath(program).name == "tune"
            or (program == "torchtune._cli.tune" and texts[index - 2] == "-m")
        ):
            return index
    return None


def _shell_argument(words: tuple[Word, ...]) -> Word | None:
    """The script in ``bash -c SCRIPT``."""
    is_shell = False
    for word, following in itertools.pairwise(words):
        is_shell = is_shell or PurePosixPath(word.text).name in _SHELLS
        if is_shell and re.fullmatch(r"-[a-z]*c", word.text):
            return following
    return None


def _parse_tune_run(words: tuple[Word, ...]) -> TuneRun | None:
    """`words` begin with ``run``."""
    line = words[0].line
    rest = list(words[1:])
    distributed: list[str] = []
    while rest and rest[0].text.startswith("-"):
        option = rest.pop(0).text
        distributed.append(option)
        takes_value = "=" not in option and _dashed(option) not in _TORCHRUN_FLAGS
        if takes_value and not re.fullmatch(r"-[rt].+", option) and rest:
            distributed.append(rest.pop(0).text)
    if not rest:
        return None
    recipe = rest.pop(0).text
    config = None
    overrides: list[str] = []
    unknown: list[str] = []
    while rest:
        word = rest.pop(0)
        if word.text == "--config" and rest:
            config = rest.pop(0).text
        elif word.text.startswith("--config="):
            config = word.text.removeprefix("--config=")
        else:
            (unknown if word.unknown else overrides).append(word.text)
    return TuneRun(recipe, config, tuple(overrides), tuple(distributed), line, tuple(unknown))


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _dashed(option: str) -> str:
    return option.replace("_", "-")


def _option_value(arguments: tuple[str, ...], name: str) -> str:
    """Value of a torchrun option, ``1`` when it isn't given; argparse takes any unique prefix of a name."""
    value = "1"
    for index, argument in enumerate(arguments):
        given, has_value, inline = argument.partition("=")
        if len(given) > 4 and given.startswith("--") and name.startswith(_dashed(given)):
            value = inline if has_value else "".join(arguments[index + 1 : index + 2])
    return value
