"""A Slurm cluster of two nodes on this machine, each with four GPUs that are only pretended: ``with Cluster(folder): ...``.

It needs root (``unshare``, device files) and Slurm's daemons: on Debian slurmctld, slurmd, slurm-client and munge.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.sweep_forks import wait_for

NODES = ("n1", "n2")
GPUS = 4
_NULL = os.makedev(1, 3)
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "unshare")


def lacking() -> str:
    """Return why no cluster can be started here, empty where one can."""
    if absent := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"not installed: {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Cluster:
    """Munge, one controller, and a daemon for each node under a host name of its own."""

    def __init__(self, folder: Path) -> None:
        """Describe a cluster in ``folder``, which should have a short path, since it holds sockets."""
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def variables(self) -> dict[str, str]:
        """What Slurm's commands need in their environment."""
        return {"SLURM_CONF": str(self._folder / "slurm.conf")}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def states(self) -> dict[str, str]:
        """Return the state of each node."""
        lines = self.ask("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it prints."""
        return subprocess.run(
            command, env={**os.environ, **self.variables}, check=True, capture_output=True, text=True
        ).stdout

    def _start(self) -> None:
        key = self._folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(stat.S_IRUSR)
        for number in range(GPUS):
            os.mknod(self._folder / f"gpu{number}", stat.S_IFCHR | 0o666, _NULL)
        for name in ("state", *NODES):
            (self._folder / name).mkdir()
        self._configure(free_ports(1 + len(NODES)))
        # Munge wants its folder to be nobody else's to write.
        self._folder.chmod(0o755)
        self._run(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self._folder}/munge.socket",
            f"--pid-file={self._folder}/munge.pid", f"--seed-file={self._folder}/munge.seed",
            f"--log-file={self._folder}/munge.log",
        )  # fmt: skip
        wait_for((self._folder / "munge.socket").exists, 30)
        self._run("slurmctld", "-D", "-f", self.variables["SLURM_CONF"])
        for node in NODES:
            name_and_run = f'hostname {node} && exec slurmd -D -N {node} -f "$SLURM_CONF"'
            self._run("unshare", "--uts", "sh", "-c", name_and_run)
        wait_for(self._is_idle, 60)

    def _is_idle(self) -> bool:
        try:
            return list(self.states().values()) == ["idle"] * len(NODES)
        except subprocess.CalledProcessError:
            return False  # the controller is not up yet

    def _configure(self, ports: list[int]) -> None:
        place, host = self._folder, socket.gethostname().split(".")[0]
        settings = {
            "ClusterName": "pretended",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": ports[0],
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={place}/munge.socket,cred_expire=6",  # a task is requeued after this time
            "CredType": "cred/munge",
            "StateSaveLocation": place / "state",
            "SlurmdSpoolDir": place / "%n",
            "SlurmctldPidFile": place / "slurmctld.pid",
            "SlurmdPidFile": place / "%n.pid",
            "SlurmctldLogFile": place / "slurmctld.log",
            "SlurmdLogFile": place / "%n.log",
            # Without cgroups, which a container may not have.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "GresTypes": "gpu",
            "SlurmdParameters": "config_overrides",  # the nodes are larger than this machine
            "ReturnToService": 0,  # a node that is set down stays down
            "KillWait": 5,
            "SchedulerParameters": "sched_interval=1,batch_sched_delay=0,sched_min_interval=100000",
            "MpiDefault": "none",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        for node, port in zip(NODES, ports[1:], strict=True):
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=20000 "
                f"Gres=gpu:{GPUS}"
            )
        everywhere = f"Nodes={','.join(NODES)} State=UP MaxTime=INFINITE"
        # Jobs of the second take the place of those of the first, which have a minute to end.
        lines.append(f"PartitionName=all Default=YES PriorityTier=1 GraceTime=60 {everywhere}")
        lines.append(f"PartitionName=urgent PriorityTier=2 PreemptMode=OFF {everywhere}")
        (place / "slurm.conf").write_text("\n".join(lines) + "\n")
        devices = f"NodeName=n[1-2] Name=gpu File={place}/gpu[0-{GPUS - 1}]"
        (place / "gres.conf").write_text(f"AutoDetect=off\n{devices}\n")

    def _run(self, *command: str) -> None:
        with (self._folder / f"{command[0]}-{len(self._started)}.out").open("w") as out:
            self._started.append(
                subprocess.Popen(
                    command, env={**os.environ, **self.variables}, stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
            )

    def _holds_jobs(self) -> bool:
        try:
            return bool(self.ask("squeue", "--noheader", "--states=running,completing"))
        except subprocess.CalledProcessError:
            return False

    def _stop(self) -> None:
        if len(self._started) > 1:  # jobs do not end with their daemons
            subprocess.run(["scancel", "--user=root"], env={**os.environ, **self.variables}, capture_output=True)
            end = time.monotonic() + 15  # a step whose daemon is gone would stay for ever
            while self._holds_jobs() and time.monotonic() < end:
                time.sleep(0.2)
        for process in reversed(self._started):
            process.terminate()
        for process in self._started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
