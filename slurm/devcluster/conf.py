"""The text of Slurm's configuration files; nothing here is read or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from slurm.devcluster.errors import UsageError
from slurm.devcluster.layout import Layout

#: What stands for a GPU. Slurm sets CUDA_VISIBLE_DEVICES only for gres with a character device each.
GPU_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
MAX_NODES = 8

CPUS_PER_NODE = 8
MEMORY_PER_NODE_MIB = 16000


@dataclass(frozen=True)
class Options:
    """What a cluster is asked to be.

    Attributes:
        accounting: with slurmdbd and MariaDB, so that sacct answers.
        gpus: pretended GPUs of each node.
        nodes: nodes, all on this machine, with 8 CPUs each (pretended too).
        settings: slurm.conf settings that replace or join ours, for instance {"MinJobAge": "2"}.
    """

    accounting: bool = False
    gpus: int = 2
    nodes: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.gpus <= len(GPU_DEVICES):
            raise UsageError(f"--gpus {self.gpus}: a node can have 0 to {len(GPU_DEVICES)}")
        if not 1 <= self.nodes <= MAX_NODES:
            raise UsageError(f"--nodes {self.nodes}: a cluster can have 1 to {MAX_NODES}")
        nameless = [key for key in self.settings if not key.isidentifier()]
        if nameless:
            raise UsageError(f"--set {nameless[0]!r}: not the name of a slurm.conf setting")

    @property
    def node_names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]


@dataclass(frozen=True)
class Ports:
    """TCP ports on the loopback interface."""

    slurmctld: int
    slurmdbd: int
    slurmd: tuple[int, ...]


def slurm_conf(layout: Layout, options: Options, ports: Ports) -> str:
    settings = {
        "ClusterName": layout.cluster_name,
        "SlurmctldHost": "localhost",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "SlurmctldPort": str(ports.slurmctld),
        # A cluster to play with is nobody else's: listen on the loopback interface only.
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        "StateSaveLocation": str(layout.state),
        "SlurmdSpoolDir": f"{layout.spool}/%n",
        "SlurmctldPidFile": f"{layout.state}/slurmctld.pid",
        "SlurmdPidFile": f"{layout.spool}/%n.pid",
        "SlurmctldLogFile": str(layout.log("slurmctld")),
        "SlurmdLogFile": f"{layout.logs}/slurmd.%n.log",
        "SlurmctldDebug": "info",
        "SlurmdDebug": "info",
        "AuthType": "auth/munge",
        # A requeued job waits until its old credential has expired, 120 s by default.
        "AuthInfo": f"socket={layout.munge_socket},cred_expire=5",
        "CredType": "cred/munge",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        # Without cgroups: the process group is what scancel kills. linuxproc loses a batch script's child
        # as soon as the shell above it has died.
        "ProctrackType": "proctrack/pgid",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "Epilog": str(layout.epilog),
        "ReturnToService": "2",
        "SlurmdParameters": "config_overrides",
        "SlurmctldParameters": "preempt_send_user_signal",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "KillWait": "2",
        # An unknown job id counts as a satisfied dependency, so jobs are remembered for long.
        "MinJobAge": "3600",
        "GresTypes": "gpu",
    }
    if options.accounting:
        settings |= {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "localhost",
            "AccountingStoragePort": str(ports.slurmdbd),
            # AuthInfo doesn't reach the connections to slurmdbd.
            "AccountingStoragePass": str(layout.munge_socket),
            "AccountingStorageTRES": "gres/gpu",
        }
    else:
        settings["AccountingStorageType"] = "accounting_storage/none"
    # slurm.conf ignores case in names.
    replaced = {key.lower() for key in options.settings}
    settings = {key: value for key, value in settings.items() if key.lower() not in replaced}
    lines = [f"{key}={value}" for key, value in (settings | dict(options.settings)).items()]
    return "\n".join([*lines, *_nodes(options, ports), *_partitions()]) + "\n"


def _nodes(options: Options, ports: Ports) -> list[str]:
    gres = f" Gres=gpu:{options.gpus}" if options.gpus else ""
    return [
        f"NodeName={name} NodeHostname=localhost NodeAddr=localhost Port={port} "
        f"CPUs={CPUS_PER_NODE} RealMemory={MEMORY_PER_NODE_MIB} State=UNKNOWN{gres}"
        for name, port in zip(options.node_names, ports.slurmd, strict=True)
    ]


def _partitions() -> list[str]:
    return [
        # The grace lets a job answer the signal of a preemption (submitit's checkpoint).
        "PartitionName=main Nodes=ALL Default=YES State=UP MaxTime=INFINITE PriorityTier=1 "
        "PreemptMode=REQUEUE GraceTime=5",
        "PartitionName=urgent Nodes=ALL State=UP MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF",
    ]


def gres_conf(options: Options) -> str:
    """One line a device: `Count=2` on one line would leave CUDA_VISIBLE_DEVICES unset."""
    return "".join(
        f"NodeName={name} Name=gpu File={device}\n"
        for name in options.node_names
        for device in GPU_DEVICES[: options.gpus]
    )


def slurmdbd_conf(layout: Layout, ports: Ports) -> str:
    settings = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={layout.munge_socket}",
        "DbdHost": "localhost",
        "DbdPort": str(ports.slurmdbd),
        "SlurmUser": "root",
        "LogFile": str(layout.log("slurmdbd")),
        "PidFile": f"{layout.database}/slurmdbd.pid",
        "CommunicationParameters": "NoInAddrAny",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",
        "StorageUser": "root",
        "StorageLoc": "slurm",
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def epilog(layout: Layout) -> str:
    """Run by slurmd after each job: kills what left the job's process group, as a cgroup would.

    On its own node alone: the other nodes of the job are on this machine too, and so are their epilogs.
    """
    return f"""#!/bin/sh
pids=$(grep -lzx "SLURM_JOB_ID=$SLURM_JOB_ID" /proc/[0-9]*/environ 2>/dev/null |
    xargs -r grep -lzx "SLURM_CLUSTER_NAME={layout.cluster_name}" 2>/dev/null |
    xargs -r grep -lzx "SLURMD_NODENAME=$SLURMD_NODENAME" 2>/dev/null)
for environ in $pids; do
    pid=${{environ#/proc/}}
    pid=${{pid%/environ}}
    [ "$pid" = $$ ] || kill -KILL "$pid" 2>/dev/null
done
exit 0
"""
