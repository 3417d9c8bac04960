"""The development cluster comes up and goes down without a trace, whatever happens to it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.devcluster import cluster as devcluster
from slurm.devcluster import lock, packages
from slurm.devcluster.conf import Options
from slurm.devcluster.errors import AlreadyUp, NotUp, StartFailed, UsageError
from tests.slurm.client import Slurm, processes_of, runs, stubborn, wait_until
from tests.slurm.conftest import require

CHECKOUT = Path(__file__).parents[2]


def test_down_leaves_no_process(own_directory: Path, tmp_path: Path) -> None:
    slurm = Slurm(devcluster.up(own_directory, Options(nodes=2)))
    _, pids = stubborn(slurm, tmp_path)
    pending = slurm.wrap(tmp_path, "touch started", "--dependency=singleton", "--begin=now+1hour")
    assert slurm.job(pending)["JobState"] == "PENDING"

    was_up = devcluster.down(own_directory)

    assert was_up
    assert not any(map(runs, pids))
    assert processes_of(own_directory) == []
    assert sorted(path.name for path in own_directory.iterdir()) == [
        "epilog",
        "gres.conf",
        "lock",
        "log",
        "slurm.conf",
    ]
    assert not devcluster.down(own_directory), "a second time there is nothing to do"


def test_down_after_the_keeper_was_killed(own_directory: Path, tmp_path: Path) -> None:
    slurm = Slurm(devcluster.up(own_directory, Options()))
    job = slurm.wrap(tmp_path, "sleep 1000")
    slurm.wait_for(job, "RUNNING")
    os.kill(int((own_directory / "lock").read_text()), signal.SIGKILL)
    wait_until(lambda: lock.holder(slurm.cluster.layout) is None)

    devcluster.down(own_directory)

    assert processes_of(own_directory) == []


def test_down_after_the_directory_was_removed(own_directory: Path, tmp_path: Path) -> None:
    slurm = Slurm(devcluster.up(own_directory, Options()))
    slurm.wait_for(slurm.wrap(tmp_path, "sleep 1000"), "RUNNING")
    for _ in range(100):
        # The daemons still write into it, so that once may leave something.
        shutil.rmtree(own_directory, ignore_errors=True)
        if not own_directory.exists():
            break

    devcluster.down(own_directory)

    assert processes_of(own_directory) == []


def test_a_killed_test_run_takes_its_cluster_along(tmp_path: Path) -> None:
    require(Options())
    (tmp_path / "test_hangs.py").write_text(
        "import pathlib, time\n"
        "def test_hangs(cluster):\n"
        "    cluster.wrap(cluster.cluster.directory, 'sleep 1000')\n"
        f"    pathlib.Path({str(tmp_path / 'up')!r}).write_text(str(cluster.cluster.directory))\n"
        "    time.sleep(1000)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "tests.slurm.conftest", "-p", "no:cacheprovider", tmp_path],
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until((tmp_path / "up").exists)
        directory = Path((tmp_path / "up").read_text())
        assert processes_of(directory) != []
    finally:
        run.kill()
        run.wait()

    wait_until(lambda: processes_of(directory) == [])


@pytest.mark.parametrize("ending", ["down", "kill"])
def test_an_up_that_ends_half_way_leaves_nothing(own_directory: Path, tmp_path: Path, ending: str) -> None:
    slurmd = tmp_path / "bin" / "slurmd"
    slurmd.parent.mkdir()
    slurmd.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nexec sleep 1000\n")
    slurmd.chmod(0o755)
    up = subprocess.Popen(
        [sys.executable, "-m", "slurm.devcluster", "up", f"--dir={own_directory}"],
        cwd=CHECKOUT,
        env=os.environ | {"PATH": f"{slurmd.parent}:{os.environ['PATH']}"},
        stderr=subprocess.DEVNULL,
    )
    wait_until((tmp_path / "asked").exists)
    assert len(processes_of(own_directory)) >= 4

    if ending == "down":
        devcluster.down(own_directory)
    else:
        up.kill()

    assert up.wait() == {"down": 3, "kill": -signal.SIGKILL}[ending]
    wait_until(lambda: processes_of(own_directory) == [])


def test_an_up_that_fails_leaves_nothing(own_directory: Path) -> None:
    broken = Options(settings={"SelectType": "select/nonsense"})

    with pytest.raises(StartFailed) as caught:
        devcluster.up(own_directory, broken)

    assert "slurmctld ended with status 1" in str(caught.value)
    assert "select/nonsense" in str(caught.value)
    assert processes_of(own_directory) == []
    with pytest.raises(NotUp):
        devcluster.find(own_directory)


def test_a_second_up_says_so(cluster: Slurm) -> None:
    with pytest.raises(AlreadyUp) as caught:
        devcluster.up(cluster.cluster.directory, Options())

    assert str(caught.value).startswith(f"{cluster.cluster.directory}: a cluster is up here (process ")
    cluster.run("sinfo")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"gpus": 5}, "--gpus 5: a node can have 0 to 4", id="too many GPUs"),
        pytest.param({"nodes": 0}, "--nodes 0: a cluster can have 1 to 8", id="no node"),
        pytest.param({"settings": {"Min Job": "1"}}, "--set 'Min Job': not the name of", id="no setting"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options(**options)  # type: ignore[arg-type] # wrong on purpose

    assert message in str(caught.value)


def test_a_directory_of_someone_else_is_not_touched(own_directory: Path) -> None:
    own_directory.mkdir()
    (own_directory / "thesis.tex").touch()

    with pytest.raises(UsageError, match="holds other files"):
        devcluster.up(own_directory, Options())

    assert [path.name for path in own_directory.iterdir()] == ["thesis.tex"]


def test_a_directory_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose a shorter --dir"):
        devcluster.down(tmp_path / ("deep" * 20))


def test_the_commands(own_directory: Path) -> None:
    # -S: without site-packages, as before anything is installed.
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["python3", "-S", "-m", "slurm.devcluster", *arguments],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
        )

    at = f"--dir={own_directory}"
    assert command("env", at).returncode == 1
    up = command("up", at, "--gpus=1", "--set=MinJobAge=2")
    assert up.returncode == 0, up.stderr
    assert up.stdout == ""
    assert command("up", at).returncode == 1
    assert command("env", at).stdout == f"export SLURM_CONF={own_directory}/slurm.conf\n"
    status = command("status", at)
    assert status.returncode == 0
    assert "nodes       n1 idle\njobs        none\n" in status.stdout
    assert "MinJobAge=2\n" in (own_directory / "slurm.conf").read_text()
    assert "MinJobAge=3600" not in (own_directory / "slurm.conf").read_text()
    assert command("restart", at, "cron").returncode == 2
    assert command("down", at).returncode == 0
    assert command("status", at).returncode == 1


def test_a_missing_package_is_named(own_directory: Path) -> None:
    done = without_munged("up", f"--dir={own_directory}")

    assert done.returncode == 3
    assert "packages are missing: munge\n" in done.stderr
    assert "python3 -m slurm.devcluster install\n" in done.stderr
    assert "apt-get install munge\n" in done.stderr


def test_an_installation_that_fails_says_so(own_directory: Path, tmp_path: Path) -> None:
    apt_get = tmp_path / "bin" / "apt-get"
    apt_get.parent.mkdir()
    apt_get.write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
    apt_get.chmod(0o755)

    done = without_munged("install", PATH=f"{apt_get.parent}:{os.environ['PATH']}")

    assert done.returncode == 3
    assert "E: no network\n" in done.stderr
    # And those for accounting, where no other test has installed them yet.
    assert re.search(
        r"failed with status 100\. Install by hand: munge(, [\w, -]+)? \(Debian 12's names\)\.\n", done.stderr
    )


def without_munged(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command where munged can't be found: in its own view of the file system."""
    munged = packages.find("munged")
    hide = f"mount --bind /dev/null {munged}"
    if subprocess.run(["unshare", "--mount", "sh", "-c", hide], capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces here")
    hidden = ["unshare", "--mount", "sh", "-c", f'{hide} && exec "$@"', "sh"]
    return subprocess.run(
        [*hidden, sys.executable, "-m", "slurm.devcluster", *arguments],
        cwd=CHECKOUT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
