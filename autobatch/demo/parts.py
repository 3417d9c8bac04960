"""Filling in the templates of `configs/demo/`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from autobatch.errors import UsageError
from autobatch.shipped import configs_dir

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def fill(template: str, values: Mapping[str, object]) -> str:
    """`template` with each ``{{name}}`` replaced by ``str(values[name])``.

    Nothing else of the text changes: comments stay, and so do OmegaConf's ``${...}``. A value that
    no placeholder asks for is passed over.

    Raises:
        KeyError: the template asks for a name that `values` doesn't have.
    """
    return _PLACEHOLDER.sub(lambda match: str(values[match.group(1)]), template)


def filled_template(name: str, values: Mapping[str, object]) -> str:
    """The template `configs/demo/NAME.template`, filled in.

    Raises:
        UsageError: there is no such template.
    """
    path = configs_dir() / "demo" / f"{name}.template"
    try:
        template = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} can't be read ({error.strerror}): install autobatch again") from error
    return fill(template, values)
