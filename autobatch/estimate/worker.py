"""The process of an estimate, on a simulated GPU: a question on stdin; trials and the estimate on stdout."""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO

from autobatch.errors import AutobatchError
from autobatch.estimate.estimator import answer, message
from autobatch.estimate.records import Question
from autobatch.probing.forkserver import die_with_parent
from autobatch.records import from_json


def main() -> None:
    """Answer one question."""
    import signal

    die_with_parent(signal.SIGTERM)
    question = from_json(Question, json.load(sys.stdin))
    # Whatever else prints, here or in the processes started from here, isn't part of the answer.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        found = answer(question, lambda trial, known: _say(out, {"trial": trial, "known": known}))
    except AutobatchError as error:
        _say(out, {"error": str(error), "exit_code": error.exit_code})
    except Exception as error:
        said = f"estimating failed: {type(error).__name__}: {error}"
        _say(out, {"error": said, "exit_code": AutobatchError.exit_code})
    else:
        _say(out, {"estimate": found})


def _say(out: TextIO, said: dict[str, object]) -> None:
    out.write(message(said) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
