"""`autobatch.runs.shell`, `slurm_header` and `slurm_script`: what a batch script says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autobatch.runs.shell import Script, State
from autobatch.runs.slurm_header import read_header
from autobatch.runs.slurm_script import SlurmScript, TuneRun, parse_script, read_script

ENVIRON = {"HOME": "/home/ada", "SCRATCH": "/scratch", "EMPTY": "", "SLURM_JOB_ID": "7", "PWD": "/here"}


def parse(text: str) -> SlurmScript:
    return parse_script(text, Path("finetune.slurm"), ENVIRON)


def tune_run(text: str) -> TuneRun:
    found = parse(text).tune_run
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("lines", "header"),
    [
        pytest.param("#SBATCH --time=01:00:00", {"time": "01:00:00"}, id="equals"),
        pytest.param("#SBATCH --time 01:00:00", {"time": "01:00:00"}, id="space"),
        pytest.param("#SBATCH -t 01:00:00", {"time": "01:00:00"}, id="short"),
        pytest.param("#SBATCH -N1 -pgpu", {"nodes": "1", "partition": "gpu"}, id="short-without-space"),
        pytest.param("#SBATCH --exclusive --mem=4G", {"exclusive": "", "mem": "4G"}, id="flag-then-option"),
        pytest.param("#SBATCH --exclusive\n", {"exclusive": ""}, id="flag"),
        pytest.param("#SBATCH -Hp gpu", {"hold": "", "partition": "gpu"}, id="clustered-short-flags"),
        pytest.param("#SBATCH --requeue gpu", {"requeue": ""}, id="flag-takes-no-value"),
        pytest.param("#SBATCH --mem=1G # not 2G", {"mem": "1G"}, id="comment-behind"),
        pytest.param('#SBATCH --output="a b.out"', {"output": "a b.out"}, id="quotes"),
        pytest.param("#SBATCH --comment=don't", {"comment": "don't"}, id="unclosed-quote"),
        pytest.param("#SBATCH --mem=1G\n#SBATCH --mem=2G", {"mem": "2G"}, id="last-counts"),
        pytest.param("##SBATCH --mem=1G\n# SBATCH -t 1", {}, id="switched-off"),
        pytest.param("#!/bin/sh\n\n# c\n#SBATCH --mem=1G", {"mem": "1G"}, id="after-comments-and-blanks"),
        pytest.param("cd /x\n#SBATCH --mem=1G", {}, id="ends-at-first-command"),
        pytest.param(
            "#SBATCH -A a -q q -C h100 -w n1 -x n2 -c 4 -n 1 -J j -o o -D /d",
            {
                "account": "a",
                "qos": "q",
                "constraint": "h100",
                "nodelist": "n1",
                "exclude": "n2",
                "cpus-per-task": "4",
                "ntasks": "1",
                "job-name": "j",
                "output": "o",
                "chdir": "/d",
            },
            id="long-names",
        ),
    ],
)
def test_header(lines: str, header: dict[str, str]) -> None:
    assert read_header(lines)[0] == header


def test_header_lines() -> None:
    script = parse("#!/bin/bash\n#SBATCH -p gpu\n\n#SBATCH --mem=4G\n")
    assert script.header_lines == {"partition": 2, "mem": 4}


TRAIN = "tune run lora --config finetune.yaml"
PLAIN = TuneRun("lora", "finetune.yaml", (), (), 1)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(TRAIN, PLAIN, id="plain"),
        pytest.param("tune run \\\n  lora \\\n  --config finetune.yaml", PLAIN, id="continued"),
        pytest.param(f"srun --ntasks=1 {TRAIN}", PLAIN, id="srun"),
        pytest.param(f"exec {TRAIN}", PLAIN, id="exec"),
        pytest.param(f"time srun {TRAIN} &", PLAIN, id="time"),
        pytest.param(f"/opt/env/bin/{TRAIN}", PLAIN, id="absolute-tune"),
        pytest.param("python -m torchtune._cli.tune run lora --config finetune.yaml", PLAIN, id="python-m"),
        pytest.param(f"A=1 B='2 3' {TRAIN}", PLAIN, id="assignments-before"),
        pytest.param(f"cd x && {TRAIN} > log 2>&1 || exit 1", PLAIN, id="and-or-redirections"),
        pytest.param(f"{TRAIN} 2>&1 | tee log", PLAIN, id="pipe"),
        pytest.param(f"{TRAIN} &> log", PLAIN, id="both-redirected"),
        pytest.param(f"if ! {TRAIN}; then exit 1; fi", PLAIN, id="if"),
        pytest.param(f"srun bash -lc 'set -e; {TRAIN}'", PLAIN, id="bash-c"),
        pytest.param(f"apptainer exec --nv torch.sif {TRAIN}", PLAIN, id="container"),
        pytest.param(f"{TRAIN} # tune run other", PLAIN, id="comment-behind"),
        pytest.param("tune run lora `# why` --config finetune.yaml", PLAIN, id="backtick-comment"),
        pytest.param("tune run 'lora' --config \"finetune.yaml\"", PLAIN, id="quotes"),
        pytest.param("tune run lora --config=finetune.yaml", PLAIN, id="config-equals"),
        pytest.param(
            'RUN=/runs/a\ntune run lora --config "$RUN/finetune.yaml" seed=${SEED:-3} output_dir=$SCRATCH/o',
            TuneRun("lora", "/runs/a/finetune.yaml", ("seed=3", "output_dir=/scratch/o"), (), 2),
            id="known-variables",
        ),
        pytest.param(
            "tune run lora --config $RUN/finetune.yaml seed=$SEED dir=${SLURM_JOB_ID} 'x=$y' \"$@\"",
            TuneRun(
                "lora", "$RUN/finetune.yaml", ("x=$y",), (), 1, ("seed=$SEED", "dir=${SLURM_JOB_ID}", "$@")
            ),
            id="unknown-variables",
        ),
        pytest.param(
            "R=$(pick)\ntune run $R --config finetune.yaml a=$EMPTY",
            TuneRun("$R", "finetune.yaml", ("a=",), (), 2),
            id="command-substitution-makes-unknown",
        ),
        pytest.param(
            'A=(x y)\nB=1; B+=2\ntune run lora --config $PWD/finetune.yaml a=$A b=$B "${A[@]}"',
            TuneRun("lora", "$PWD/finetune.yaml", (), (), 3, ("a=$A", "b=$B", "${A[@]}")),
            id="arrays-appending-and-what-the-job-sets-anew",
        ),
        pytest.param(
            "tune run lora --config finetune.yaml model.lora_rank=16 ~lr_scheduler 'a.b=${c}'",
            TuneRun("lora", "finetune.yaml", ("model.lora_rank=16", "~lr_scheduler", "a.b=${c}"), (), 1),
            id="overrides",
        ),
        pytest.param(
            "tune run --nproc_per_node 4 --nnodes=2 --standalone lora --config finetune.yaml",
            TuneRun("lora", "finetune.yaml", (), ("--nproc_per_node", "4", "--nnodes=2", "--standalone"), 1),
            id="torchrun-options",
        ),
    ],
)
def test_tune_run(script: str, expected: TuneRun) -> None:
    assert tune_run(script) == expected


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("", id="empty"),
        pytest.param("# tune run lora --config finetune.yaml", id="comment"),
        pytest.param("echo tune run lora --config finetune.yaml", id="echo"),
        pytest.param("echo 'tune run lora'", id="in-quotes"),
        pytest.param("cat <<EOF\ntune run lora --config finetune.yaml\nEOF", id="here-document"),
        pytest.param("cat <<-'EOF'\n\ttune run lora\n\tEOF\nsleep 1", id="indented-here-document"),
        pytest.param("tune download x\ntune ls", id="other-subcommands"),
        pytest.param("tune run", id="without-recipe"),
    ],
)
def test_no_tune_run(script: str) -> None:
    assert parse(script).tune_run is None


def test_here_document_ends() -> None:
    assert tune_run(f"cat <<A >x <<B\n1\nA\n2\nB\n{TRAIN}").line == 6


@pytest.mark.parametrize(
    ("written", "delimiter"),
    [
        pytest.param("'END-X'", "END-X", id="single-quotes"),
        pytest.param('"end of file"', "end of file", id="double-quotes"),
        pytest.param("END-X", "END-X", id="dash"),
        pytest.param("\\EOF", "EOF", id="backslash"),
        pytest.param("E'O'F", "EOF", id="partly-quoted"),
        pytest.param("!@#%", "!@#%", id="no-letter"),
        pytest.param("''", "", id="empty"),
        pytest.param("EOF|", "EOF", id="up-to-a-pipe"),
    ],
)
def test_here_document_delimiters(written: str, delimiter: str) -> None:
    script = parse(f"cat <<{written} tee x\nexport A=1\n{delimiter}\nexport B=2\n{TRAIN}\n")
    assert script.exports == {"B": "2"}


def test_here_string_is_no_here_document() -> None:
    assert parse(f"cat <<< END-X\nexport A=1\nEND-X\n{TRAIN}\n").exports == {"A": "1"}


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        pytest.param("", 1, id="none"),
        pytest.param("--nproc_per_node 4", 4, id="underscores"),
        pytest.param("--nproc-per-node=4", 4, id="dashes"),
        pytest.param("--nproc 2", 2, id="abbreviated"),
        pytest.param("--nnodes 2 --nproc_per_node 4", 8, id="nodes"),
        pytest.param("--nproc_per_node 1 --rdzv-id 7", 1, id="one"),
        pytest.param("--nproc_per_node gpu", None, id="gpu"),
        pytest.param("--nproc_per_node \u00b2", None, id="squared"),
        pytest.param(f"--nproc_per_node {'9' * 5000}", None, id="huge"),
        pytest.param("--nproc_per_node $GPUS", None, id="variable"),
        pytest.param("--nnodes 1:4", None, id="elastic"),
        pytest.param("-r 3 -t3 --tee=3 -m", 1, id="short-options"),
    ],
)
def test_processes(options: str, processes: int | None) -> None:
    found = tune_run(f"tune run {options} lora --config finetune.yaml")
    assert (found.recipe, found.processes) == ("lora", processes)


def test_several_tune_runs_take_the_one_with_this_config() -> None:
    script = parse("tune run a --config x.yaml\ntune run b --config y/finetune.yaml\ntune run c --config z\n")
    assert script.tune_run is not None
    assert script.tune_run.recipe == "b"
    assert script.notes == (
        "finetune.slurm:2: of the `tune run` on lines 1, 2, 3, this one is taken: its --config is finetune.yaml",
    )


def test_several_tune_runs_without_this_config_take_the_first() -> None:
    script = parse("tune run a --config x.yaml\ntune run b --config y.yaml\n")
    assert script.tune_run is not None
    assert script.tune_run.recipe == "a"
    assert "it is the first" in script.notes[0]


def test_exports_are_those_that_the_training_sees() -> None:
    script = parse(
        "export A=1 B='$x y'\n"
        "C=3\n"
        "D=4; export D\n"
        "export E=$(date) F=$UNKNOWN G=$HOME/g\n"
        "export H=5\n"
        "unset H\n"
        "I=9 tune run lora --config finetune.yaml\n"
        "export A=2 Z=1\n"
    )
    assert script.exports == {"A": "1", "B": "$x y", "D": "4", "G": "/home/ada/g", "I": "9"}
    assert script.export_lines == {"A": 1, "B": 1, "D": 3, "G": 4, "I": 7}


@pytest.mark.parametrize(
    ("before", "exports", "directory"),
    [
        pytest.param("(export A=1; cd /x)", {}, None, id="subshell"),
        pytest.param("export A=1\n(\n  export A=2\n  cd /x\n)", {"A": "1"}, None, id="subshell-of-lines"),
        pytest.param("A=1\n(A=2)\nexport B=$A", {"B": "1"}, None, id="variable-of-a-subshell"),
        pytest.param("(cd /x; (cd y; export A=1); export B=2)", {}, None, id="nested-subshells"),
        pytest.param(
            "((export A=1); export B=2)\nexport C=3", {"C": "3"}, None, id="subshell-at-once-in-another"
        ),
        pytest.param("( [[ a =~ ^(a|b)$ ]] && export A=1 )", {}, None, id="brackets-of-a-test"),
        pytest.param(
            "(case $x in a) export A=1;; (b|c) export B=1;; esac; cd /x)", {}, None, id="case-inside"
        ),
        pytest.param(
            "case $x in\n  a) export A=1 ;;\n  (b) (export B=1) ;;\nesac", {"A": "1"}, None, id="case"
        ),
        pytest.param("(\ncase $x in\n  a) A=1\nesac\nexport B=1)\n", {}, None, id="case-of-lines-inside"),
        pytest.param("{ export A=1; cd /x; }", {"A": "1"}, "/x", id="braces"),
        pytest.param("(( i = (1 + 2) << 2 ))\nexport A=1\n2", {"A": "1"}, None, id="arithmetic"),
        pytest.param("for ((i = 0; i < 2; i++)); do export A=1; done", {"A": "1"}, None, id="arithmetic-for"),
        pytest.param("B=$( (cd /x; date) ) C=$((1 + 2)); export A=1", {"A": "1"}, None, id="substitutions"),
        pytest.param("a=()\nb=( '(' x \")\" # (\n)\nc+=(y)\nexport A=1", {"A": "1"}, None, id="arrays"),
        pytest.param("diff <(cd /x; ls) >(cat); export A=1", {"A": "1"}, None, id="process-substitution"),
        pytest.param("f() { export A=1; cd /x; }", {}, None, id="function"),
        pytest.param("f ()\n{\n  export A=1\n}\nexport B=1", {"B": "1"}, None, id="function-of-lines"),
        pytest.param("function f { export A=1; }\nfunction g() { cd /x; }", {}, None, id="function-keyword"),
        pytest.param("f() (export A=1)\nexport B=1", {"B": "1"}, None, id="function-in-a-subshell"),
        pytest.param(
            "if x; then f() { export A=1; }; fi\nexport B=1", {"B": "1"}, None, id="function-in-a-branch"
        ),
        pytest.param(
            "f() {\n  { (x) }; case a in }) A=1;; esac\n  export A=1\n}", {}, None, id="nested-in-function"
        ),
        pytest.param("(f() { x; })\n(export A=1)", {}, None, id="function-that-ends-with-its-subshell"),
        pytest.param("f() { export A=$B; cd x; }\nB=1\nf\ncd y", {"A": "1"}, "x/y", id="called"),
        pytest.param("f() { export A=$1; }\nf 1", {}, None, id="called-with-arguments"),
        pytest.param("f() ( export A=1 )\nf", {}, None, id="called-in-a-subshell-of-its-own"),
        pytest.param(
            "g() { export A=1; }; f() { g; }\nf || exit 1", {"A": "1"}, None, id="called-by-a-called-one"
        ),
        pytest.param("f() { export A=1; f; }\nf", {"A": "1"}, None, id="recursive"),
    ],
)
def test_settings_of_subshells_and_functions(
    before: str, exports: dict[str, str], directory: str | None
) -> None:
    script = parse(f"{before}\n{TRAIN}\n")
    assert script.tune_run is not None
    assert (script.exports, script.directory) == (exports, directory)


@pytest.mark.parametrize(
    ("text", "exports", "directory"),
    [
        pytest.param(f"export A=1\n(cd /x; export B=2\n{TRAIN})", {"A": "1", "B": "2"}, "/x", id="subshell"),
        pytest.param(f"f() {{\n  export A=1\n{TRAIN}\n}}\ncd /x\nf", {"A": "1"}, "/x", id="function"),
        pytest.param(f"f() {{\n  cd y\n{TRAIN}\n}}\ncd /x\ntrap f EXIT", {}, "/x/y", id="function-by-a-trap"),
        pytest.param(f"cd /x\nbash -c 'cd y; export A=1\n{TRAIN}'", {"A": "1"}, "/x/y", id="shell"),
    ],
)
def test_training_in_a_subshell_or_function(text: str, exports: dict[str, str], directory: str) -> None:
    script = parse(text)
    assert script.tune_run is not None
    line = 1 + text[: text.index("tune run")].count("\n")
    assert (script.tune_run.line, script.exports, script.directory) == (line, exports, directory)
    assert script.notes == ()


def test_function_called_for_several_trainings() -> None:
    script = parse('f() {\n  tune run "$1" --config finetune.yaml\n}\nf a\nf b\n')
    assert script.notes == ()


def test_functions_that_call_each_other_take_no_time() -> None:
    text = "".join(f"f{i}() {{ f{i + 1}; f{i + 1}; }}\n" for i in range(100))
    assert tune_run(f"{text}f0\n{TRAIN}\n").line == 102


def test_exports_without_tune_run() -> None:
    assert parse("export A=1\nsbatch other\n(export B=1)\nf() { export C=1; }\n").exports == {"A": "1"}


@pytest.mark.parametrize(
    ("before", "directory"),
    [
        pytest.param("", None, id="none"),
        pytest.param("cd /data/run1", "/data/run1", id="literal"),
        pytest.param("cd /data; cd run1", "/data/run1", id="twice"),
        pytest.param('cd "$SLURM_SUBMIT_DIR"', None, id="unknown"),
        pytest.param('cd "$HOME/a b"', "/home/ada/a b", id="known-variable"),
        pytest.param("cd ~/proj", "/home/ada/proj", id="tilde-and-slash"),
        pytest.param("cd ~; cd proj", "/home/ada/proj", id="tilde"),
        pytest.param('cd ~/"a b" && true', "/home/ada/a b", id="tilde-before-quotes"),
        pytest.param("HOME=/elsewhere\ncd ~/proj", "/elsewhere/proj", id="tilde-with-another-home"),
        pytest.param("unset HOME\ncd /x; cd ~/proj", None, id="tilde-without-home"),
        pytest.param("export RUN=~/proj\ncd $RUN", "/home/ada/proj", id="tilde-in-an-assignment"),
        pytest.param("cd '~/proj'", "~/proj", id="quoted-tilde"),
        pytest.param('cd "~"/proj', "~/proj", id="tilde-alone-in-quotes"),
        pytest.param("cd \\~", "~", id="escaped-tilde"),
        pytest.param("cd /x~/y~", "/x~/y~", id="tilde-further-on"),
        pytest.param("cd ${NOWHERE:-~/proj}", None, id="tilde-as-default"),
        pytest.param("cd /x; cd ~bob/proj", None, id="another-user's-home"),
        pytest.param("cd /x; cd -", None, id="back"),
        pytest.param("cd /x; cd - && cd y", "y", id="on-from-back"),
    ],
)
def test_directory(before: str, directory: str | None) -> None:
    assert parse(f"{before}\n{TRAIN}\n").directory == directory


def test_tilde_in_arguments() -> None:
    found = tune_run("tune run ~/r.py --config ~/finetune.yaml a=~/x b.c=~/x ~d/e '~/f' g=/h~/")
    assert (found.recipe, found.config) == ("/home/ada/r.py", "/home/ada/finetune.yaml")
    assert found.overrides == ("a=/home/ada/x", "b.c=~/x", "~d/e", "~/f", "g=/h~/")


@pytest.mark.parametrize(
    ("before", "line"),
    [
        pytest.param("", None, id="none"),
        pytest.param("cd /x\ncd y", 2, id="last"),
        pytest.param('cd "$UNKNOWN"\ncd y', None, id="behind-an-unknown-one"),
        pytest.param("cd -\ncd /y", 2, id="absolute-behind-an-unknown-one"),
        pytest.param("cd y\n(cd z)", 1, id="subshell"),
    ],
)
def test_directory_line(before: str, line: int | None) -> None:
    assert parse(f"{before}\n{TRAIN}\n").directory_line == line


def test_windows_line_ends_and_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "finetune.slurm"
    path.write_bytes(
        b"#!/bin/bash\r\n#SBATCH -p gpu\r\n# caf\xe9\r\ntune run lora \\\r\n  --config finetune.yaml\r\n"
    )
    script = read_script(path)
    assert script.header == {"partition": "gpu"}
    assert script.tune_run == TuneRun("lora", "finetune.yaml", (), (), 4)


@given(st.text(alphabet="ab ~=$'\"\\`(){}<>&|;#\n-", max_size=60))
@example("$")
@example("${")
@example('"\\')
@example("<<")
@example("((")
@example("a(){")
@example("a(){ b\n}\nb(){ a(){ b\n}\n}\n")
def test_no_text_stops_the_reader(text: str) -> None:
    words = [word for command in Script(text, State({})).commands() for word in command.words]
    assert all(1 <= word.line <= text.count("\n") + 1 for word in words)
