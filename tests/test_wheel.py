"""The built wheel, away from the checkout: what ships beside the modules is in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the wheel is installed into; what it depends on is this environment's."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(ROOT)], check=True
    )
    [wheel] = place.glob("autobatch-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place / "site"), str(wheel)], check=True)
    return place / "site"


def autobatch(installed: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The wheel's own console script, away from the checkout."""
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "autobatch"), *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_its_modules_are_the_wheels(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import autobatch.shipped as s; print(s.__file__, s.configs_dir())"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()

    assert [Path(path).is_relative_to(installed) for path in where] == [True, True]


def test_the_demo_is_laid_out_and_valid(installed: Path, tmp_path: Path) -> None:
    laid_out = autobatch(installed, "demo", "--lay-out-only", cwd=tmp_path)
    planned = autobatch(installed, "probe", "demo-run/run1", "--cluster", "local", "--dry-run", cwd=tmp_path)

    assert laid_out.returncode == 0, laid_out.stderr
    assert planned.returncode == 0, planned.stderr


def test_a_run_is_made_from_a_config_that_ships(installed: Path, tmp_path: Path) -> None:
    made = autobatch(
        installed, "init", "run1", "--config", "llama3_2_1b_lora", "--skip-validation", cwd=tmp_path
    )
    skills = autobatch(installed, "skills", "install", "skills", cwd=tmp_path)

    assert made.returncode == 0, made.stderr
    assert "tune run" in (tmp_path / "run1" / "finetune.slurm").read_text(encoding="utf-8")
    assert skills.returncode == 0, skills.stderr
    assert (tmp_path / "skills" / "plan-runs" / "SKILL.md").is_file()
