"""What can be known about the installed torchtune by reading its source files.

Nothing here imports torchtune: that takes seconds, imports torch and, on a machine with a GPU,
initialises CUDA.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAX_ALIASES = 20


@dataclass(frozen=True)
class RegisteredRecipe:
    """An entry of torchtune's recipe registry.

    Attributes:
        name: as `tune run` takes it.
        path: absolute path of the recipe file.
        supports_distributed: whether `tune run` starts it through torchrun.
        configs: absolute paths of the configs that ship with it.
    """

    name: str
    path: Path
    supports_distributed: bool
    configs: tuple[Path, ...]


def package_dir() -> Path | None:
    """Directory of the installed torchtune; None when there is none."""
    spec = importlib.util.find_spec("torchtune")
    return Path(spec.origin).parent if spec and spec.origin else None


def registered_recipes() -> dict[str, RegisteredRecipe]:
    """torchtune's recipes by name; empty when torchtune isn't installed."""
    package = package_dir()
    if package is None:
        return {}
    recipes = package.parent / "recipes"  # as torchtune/_cli/run.py finds them
    listed = runpy.run_path(str(package / "_recipe_registry.py"))["get_all_recipes"]()
    return {
        recipe.name: RegisteredRecipe(
            recipe.name,
            recipes / recipe.file_path,
            bool(recipe.supports_distributed),
            tuple(recipes / "configs" / config.file_path for config in recipe.configs),
        )
        for recipe in listed
    }


def is_missing(component: str) -> bool:
    """Whether `component`, a dotted path into torchtune, names nothing there."""
    return component.startswith("torchtune.") and package_dir() is not None and _find(component) is None


def similar(component: str) -> list[str]:
    """Dotted paths that exist beside `component` and are spelled almost like it."""
    module, _, name = component.rpartition(".")
    found = _module_file(module.split("."))
    if found is None or found[1]:
        return []
    names = [name for name, _ in _bound_names(_parse(found[0])) if not name.startswith("_")]
    return [f"{module}.{match}" for match in difflib.get_close_matches(name, names, n=3)]


def can_pack(component: str) -> bool | None:
    """Whether a dataset component packs when it is given ``packed: True``.

    Returns:
        False when the component has no such parameter or begins by refusing it, True when it has it,
        None when `component` isn't found in torchtune's source: that of others isn't read.
    """
    definition = _function(component)
    if definition is None:
        return None
    return _has(definition, "packed") and not any(_refuses_packed(statement) for statement in definition.body)


def takes(component: str, parameter: str) -> bool | None:
    """Whether a component has a parameter of that name; None when it isn't found in torchtune's source."""
    definition = _function(component)
    return None if definition is None else _has(definition, parameter)


def _function(component: str) -> ast.FunctionDef | None:
    """The function that makes `component`: itself, or the ``__init__`` of a class."""
    definition = _find(component)
    if isinstance(definition, ast.ClassDef):
        definition = next(
            (d for d in definition.body if isinstance(d, ast.FunctionDef) and d.name == "__init__"), None
        )
    return definition if isinstance(definition, ast.FunctionDef) else None


def _has(definition: ast.FunctionDef, parameter: str) -> bool:
    arguments = definition.args
    return any(argument.arg == parameter for argument in (*arguments.args, *arguments.kwonlyargs))


def _refuses_packed(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.If)
        and isinstance(statement.test, ast.Name)
        and statement.test.id == "packed"
        and isinstance(statement.body[0], ast.Raise)
    )


def _find(component: str) -> ast.stmt | None:
    """The statement that defines `component`, through re-exports, aliases and `functools.partial`."""
    for _ in range(_MAX_ALIASES):
        found = _module_file(component.split("."))
        if found is None or not found[1]:
            return None
        file, rest = found
        statement = next((s for name, s in _bound_names(_parse(file)) if name in (rest[0], "*")), None)
        target = _alias(statement, rest[0], file)
        if target is None or target.partition(".")[0] != component.partition(".")[0]:
            return statement
        component = target
    return None


def _alias(statement: ast.stmt | None, name: str, file: Path) -> str | None:
    """The dotted path that `statement` makes `name` another name of; None when it defines it."""
    if isinstance(statement, ast.ImportFrom):
        package = _dotted(file).split(".")
        base = package[: len(package) - statement.level + 1] if statement.level else []
        original = next((a.name for a in statement.names if (a.asname or a.name) == name), None)
        if original is None:  # `from x import *` may bind any name
            return None
        return ".".join([*base, *([statement.module] if statement.module else []), original])
    value = statement.value if isinstance(statement, (ast.Assign, ast.AnnAssign)) else None
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("partial", "functools.partial"):
        value = value.args[0] if value.args else None
    if isinstance(value, ast.Name):
        module = _dotted(file) if file.name == "__init__.py" else f"{_dotted(file)}.{file.stem}"
        return f"{module}.{value.id}"
    return None


def _dotted(file: Path) -> str:
    """The package that `file` is in."""
    package = package_dir()
    assert package is not None
    return ".".join(file.parent.relative_to(package.parent).parts)


def _bound_names(module: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Names that the module binds at its top level, also below `if` and `try`."""
    statements: list[ast.stmt] = list(module.body)
    while statements:
        statement = statements.pop(0)
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield statement.name, statement
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name, statement) for alias in statement.names)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from ((target.id, statement) for target in targets if isinstance(target, ast.Name))
        elif isinstance(statement, (ast.If, ast.Try)):
            statements = [*statement.body, *statement.orelse, *statements]


def _module_file(parts: list[str]) -> tuple[Path, list[str]] | None:
    """The file of the longest prefix of `parts` that is a module of torchtune, and the other parts."""
    package = package_dir()
    if package is None or parts[0] != package.name:
        return None
    directory = package
    for index, part in enumerate(parts[1:], start=1):
        if (directory / part / "__init__.py").is_file():
            directory /= part
        elif (directory / f"{part}.py").is_file():
            return directory / f"{part}.py", parts[index + 1 :]
        else:
            return directory / "__init__.py", parts[index:]
    return directory / "__init__.py", []


@functools.lru_cache(maxsize=256)
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))
