"""Debian's packages: which are missing, and installing them without starting their services."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slurm.devcluster.errors import NotPossible

#: A program that we run -> the Debian package that ships it.
PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
ACCOUNTING_PROGRAMS = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
}
#: No program, but slurmdbd can't store anything without it.
MYSQL_PLUGIN, MYSQL_PLUGIN_PACKAGE = "slurm-wlm/accounting_storage_mysql.so", "slurm-wlm-mysql-plugin"

#: The services that these packages bring; a development cluster starts its own daemons instead.
SERVICES = {
    "munge": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
    "mariadb-server": "mariadb",
}

POLICY = Path("/usr/sbin/policy-rc.d")
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find(program: str) -> str | None:
    """The program's path; the daemons' directories are often not on a user's PATH."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN]))


def missing(accounting: bool) -> list[str]:
    """Packages to install before `up`, in the order in which they are needed."""
    programs = PROGRAMS | (ACCOUNTING_PROGRAMS if accounting else {})
    packages = [package for program, package in programs.items() if find(program) is None]
    if accounting and not any(Path("/usr/lib").glob(f"*/{MYSQL_PLUGIN}")):
        packages.append(MYSQL_PLUGIN_PACKAGE)
    return packages


def install(packages: Iterable[str]) -> None:
    """Install with apt-get, as root or through sudo; what it prints goes to stderr.

    Raises:
        NotPossible: without apt-get, without the right to run it, or when it fails.
    """
    wanted = list(packages)
    if not wanted:
        return
    by_hand = f"Install by hand: {', '.join(wanted)} (Debian 12's names)."
    if shutil.which("apt-get") is None:
        raise NotPossible(f"no apt-get on this machine. {by_hand}")
    with _services_stay_off(wanted):
        try:
            _apt_get("install", *wanted)
        except subprocess.CalledProcessError:
            # A machine that was never updated has no package lists, or old ones.
            try:
                _apt_get("update")
                _apt_get("install", *wanted)
            except subprocess.CalledProcessError as error:
                raise NotPossible(
                    f"`{shlex.join(error.cmd)}` failed with status {error.returncode}. {by_hand}"
                ) from error
    left = set(missing(accounting=True)) & set(wanted)
    if left:
        raise NotPossible(f"apt-get ended well, but {', '.join(sorted(left))} is still missing. {by_hand}")


def _apt_get(command: str, *packages: str) -> None:
    # Another apt-get may be at work, for instance that of a second test run beside this one.
    options = ["-q", "-o", "DPkg::Lock::Timeout=300"]
    if command == "install":
        options += ["--yes", "--no-install-recommends"]
    _as_root("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *options, command, *packages)


def _as_root(*command: str, check: bool = True) -> None:
    arguments = [*_sudo(), *command]
    # stdout is kept for the command's answer.
    subprocess.run(
        arguments, check=check, stdout=sys.stderr, stdin=None if sys.stdin.isatty() else subprocess.DEVNULL
    )


def _sudo() -> list[str]:
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo is None:
        raise NotPossible(
            f"user id {os.geteuid()} may not install packages, and there is no sudo: run it as root."
        )
    return [sudo] if sys.stdin.isatty() else [sudo, "--non-interactive"]


@contextmanager
def _services_stay_off(packages: list[str]) -> Iterator[None]:
    """Keep Debian from starting the new packages' services, now and (with systemd) at boot."""
    ours = not POLICY.exists()
    if ours:
        _as_root("sh", "-c", f"printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}")
    try:
        yield
    finally:
        if ours:
            _as_root("rm", "-f", str(POLICY))
        if Path("/run/systemd/system").is_dir():
            for service in (SERVICES[package] for package in packages if package in SERVICES):
                _as_root("systemctl", "disable", "--now", service, check=False)
