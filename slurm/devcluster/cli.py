# ruff: noqa: T201 - the one module that prints
"""The command line: arguments, printing, exit status."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from slurm.devcluster import cluster, packages
from slurm.devcluster.conf import Options
from slurm.devcluster.errors import DevclusterError

_EXAMPLE = """\
example:
  $ python3 -m slurm.devcluster up --accounting
  $ eval "$(python3 -m slurm.devcluster env)"
  $ sbatch --gres=gpu:1 --wrap 'echo GPU $CUDA_VISIBLE_DEVICES'
  Submitted batch job 1
  $ sacct --format=JobID,State --noheader
  1             COMPLETED
  1.batch       COMPLETED
  $ python3 -m slurm.devcluster down

exit status: 0 done; 1 up although one is up already, or env, status, restart although none is;
2 wrong usage; 3 not possible here, or a daemon failed
"""


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.command(parsed)
    except DevclusterError as error:
        print(f"devcluster: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("devcluster: interrupted", file=sys.stderr)
        return 130
    return status


def _up(parsed: argparse.Namespace) -> int:
    begun = time.monotonic()
    options = Options(parsed.accounting, parsed.gpus, parsed.nodes, dict(parsed.settings))
    running = cluster.up(parsed.dir, options, parsed.owner)
    print(
        f"up in {time.monotonic() - begun:.1f} s: {options.nodes} node(s) with {options.gpus} GPU(s) each, "
        f"{'with' if options.accounting else 'without'} accounting, in {running.directory}\n"
        f'use it:  eval "$(python3 -m slurm.devcluster env --dir {shlex.quote(str(running.directory))})"',
        file=sys.stderr,
    )
    return 0


def _down(parsed: argparse.Namespace) -> int:
    was_up = cluster.down(parsed.dir)
    print("down" if was_up else f"{parsed.dir}: nothing was up", file=sys.stderr)
    return 0


def _env(parsed: argparse.Namespace) -> int:
    for key, value in cluster.find(parsed.dir).exports.items():
        print(f"export {key}={shlex.quote(value)}")
    return 0


def _status(parsed: argparse.Namespace) -> int:
    running = cluster.find(parsed.dir)
    status = cluster.status(running)
    print(f"{'directory':<12}{running.directory}")
    for name, pids in status.daemons.items():
        print(f"{name:<12}{' '.join(map(str, pids)) or 'not running'}")
    nodes, jobs = status.nodes, status.jobs
    print(f"{'nodes':<12}{'no answer' if nodes is None else ', '.join(f'{n} {s}' for n, s in nodes.items())}")
    print(
        f"{'jobs':<12}{'no answer' if jobs is None else ', '.join(f'{n} {s}' for s, n in jobs.items()) or 'none'}"
    )
    return 3 if status.missing else 0


def _restart(parsed: argparse.Namespace) -> int:
    cluster.restart(cluster.find(parsed.dir), parsed.daemon)
    return 0


def _install(parsed: argparse.Namespace) -> int:
    missing = packages.missing(accounting=not parsed.without_accounting)
    if missing:
        print(f"installing {', '.join(missing)}", file=sys.stderr)
    packages.install(missing)
    print("everything is installed", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m slurm.devcluster",
        description="A Slurm cluster of one machine, for development and tests.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start a cluster; returns when it takes jobs")
    up.add_argument("--accounting", action="store_true", help="with slurmdbd and MariaDB, for sacct")
    up.add_argument(
        "--gpus", type=int, default=2, metavar="N", help="pretended GPUs of each node (default: 2)"
    )
    up.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="nodes, all on this machine (default: 1)"
    )
    up.add_argument("--owner", type=int, metavar="PID", help="down by itself when that process has ended")
    up.add_argument(
        "--set",
        dest="settings",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of slurm.conf, for instance MinJobAge=2; may be repeated",
    )
    up.set_defaults(command=_up)

    down = commands.add_parser("down", help="end its jobs and daemons; configuration and logs stay")
    down.set_defaults(command=_down)

    env = commands.add_parser("env", help="print the exports that turn Slurm's commands to it")
    env.set_defaults(command=_env)

    status = commands.add_parser("status", help="print daemons, nodes and jobs")
    status.set_defaults(command=_status)

    restart = commands.add_parser("restart", help="restart one daemon, jobs and queue kept")
    restart.add_argument("daemon", help="slurmctld, slurmd, slurmdbd, mariadbd or munged")
    restart.set_defaults(command=_restart)

    install = commands.add_parser("install", help="install Debian's packages (as root or through sudo)")
    install.add_argument("--without-accounting", action="store_true", help="no slurmdbd, no MariaDB")
    install.set_defaults(command=_install)

    for command in (up, down, env, status, restart):
        command.add_argument(
            "--dir",
            type=Path,
            default=_default_directory(),
            help="the cluster's directory (default: %(default)s)",
        )
    return parser


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _default_directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "autobatch" / "devcluster"
