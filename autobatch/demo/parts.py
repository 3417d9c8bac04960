"""Finding the files under `configs/` and filling in the templates among them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from autobatch.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent.parent
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def configs_dir(package: Path = _PACKAGE) -> Path:
    """The directory that holds what `configs/README.md` describes.

    Args:
        package: directory of the autobatch package.

    Returns:
        The copy inside an installed package, else the checkout's `configs/` beside the package.

    Raises:
        UsageError: neither is there.
    """
    # site-packages may hold somebody else's "configs"; only ours has demo/ in it.
    places = (package / "_configs", package.parent / "configs")
    for place in places:
        if (place / "demo").is_dir():
            return place
    raise UsageError(
        f"autobatch's configs are missing: looked for {places[0]} and {places[1]}\n"
        "    install autobatch again, or run it from a complete checkout"
    )


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
