"""A real SLURM of one node, started for a test and ended with it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDS = ("slurmctld", "slurmd", "munged", "squeue")


def why_not() -> str | None:
    """Why SLURM cannot be started here, or None where it can."""
    if missing := [name for name in NEEDS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]:
        return f"SLURM is not installed: {', '.join(missing)} missing (slurm-wlm, munge)"
    return None if os.geteuid() == 0 else "SLURM's daemons are started by root only"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds} s")
        time.sleep(0.2)


@contextmanager
def running(folder: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Yields the environment in which SLURM's commands talk to a cluster of this machine."""
    folder.chmod(0o755)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key, sock = folder / "munge" / "key", folder / "munge" / "socket"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(
        f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={sock}
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=1
KillWait=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
""",
        encoding="utf-8",
    )
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    environment["PATH"] += ":/usr/sbin"
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={sock}",
         f"--pid-file={folder}/munge/pid", f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D", "-N", host],
    ]  # fmt: skip
    daemons = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("wb") as said:
                daemons.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
            if command[0] == "munged":
                wait_until(sock.exists, 20, "munged")
        wait_until(lambda: "idle" in output_of(environment, "sinfo", "--noheader"), 60, f"an idle node ({folder})")
        yield environment
    finally:
        output_of(environment, "scancel", "--full", "--user=root")
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def output_of(environment: dict[str, str], *command: str) -> str:
    """What one of SLURM's commands prints."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
