"""Where a cluster keeps its files: everything below one directory of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from slurm.devcluster.errors import UsageError

#: Of a Unix socket's path: sun_path has 108 bytes, the last one zero (unix(7)).
SOCKET_PATH_LIMIT = 107


@dataclass(frozen=True)
class Layout:
    """A cluster's directory.

    DIR/lock            held by the keeper as long as the cluster is up; holds its pid
    DIR/slurm.conf      and gres.conf, slurmdbd.conf, epilog
    DIR/log/            NAME.out, what a daemon prints; NAME.log, its own log
    DIR/munge/          key and socket        (these four are gone after `down`)
    DIR/database/       MariaDB's files and socket
    DIR/state/          slurmctld's jobs
    DIR/spool/          slurmd's, one folder a node
    """

    directory: Path

    @classmethod
    def of(cls, directory: Path | str) -> Layout:
        """The layout below a directory, which need not exist.

        Raises:
            UsageError: if its sockets would have too long a path.
        """
        layout = cls(Path(directory).expanduser().resolve())
        # munged writes a lock file beside its socket.
        excess = len(bytes(layout.munge_socket)) + len(".lock") - SOCKET_PATH_LIMIT
        if excess > 0:
            raise UsageError(
                f"{layout.directory}: {excess} bytes too long for the sockets below it "
                f"(their limit is {SOCKET_PATH_LIMIT}); choose a shorter --dir"
            )
        return layout

    @property
    def cluster_name(self) -> str:
        """Slurm's ClusterName, one for each directory.

        Slurm puts it into every job's environment, which is how a cluster's processes are found even
        when nothing but the directory's name is left of it.
        """
        return "dev" + hashlib.sha1(bytes(self.directory), usedforsecurity=False).hexdigest()[:10]

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def slurm_conf(self) -> Path:
        return self.directory / "slurm.conf"

    @property
    def gres_conf(self) -> Path:
        return self.directory / "gres.conf"

    @property
    def slurmdbd_conf(self) -> Path:
        return self.directory / "slurmdbd.conf"

    @property
    def epilog(self) -> Path:
        return self.directory / "epilog"

    @property
    def logs(self) -> Path:
        return self.directory / "log"

    def log(self, daemon: str) -> Path:
        """What Slurm's daemons write themselves, with times."""
        return self.logs / f"{daemon}.log"

    def output(self, daemon: str) -> Path:
        """What a daemon prints: also what it says before it knows where its log is."""
        return self.logs / f"{daemon}.out"

    @property
    def munge(self) -> Path:
        return self.directory / "munge"

    @property
    def munge_key(self) -> Path:
        return self.munge / "key"

    @property
    def munge_socket(self) -> Path:
        return self.munge / "socket"

    @property
    def database(self) -> Path:
        return self.directory / "database"

    @property
    def database_socket(self) -> Path:
        return self.database / "socket"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def spool(self) -> Path:
        return self.directory / "spool"

    @property
    def transient(self) -> tuple[Path, ...]:
        """What `down` removes, and `up` begins without."""
        return self.munge, self.database, self.state, self.spool
