"""Trains the demo on two "machines", network namespaces of this computer, and compares it with one machine.

    python tests/two_machines.py [--ways torchrun no_ssh pdsh] [--deepspeed zero3]

Each namespace has its own network, with one address on a virtual cable to the other; processes reach each other only
through it. Disks are shared, as on a cluster. One rank runs on each machine, started as ``docs/clusters.md`` says:

* ``torchrun``: ``torchrun --nnodes 2`` on each machine.
* ``no_ssh``: ``deepspeed --hostfile … --no_ssh --node_rank …`` on each machine.
* ``pdsh``: ``deepspeed --hostfile …`` on the first machine, which starts both over ssh. It needs pdsh and sshd.

The losses of all updates must equal, bit for bit, those of two ranks on one machine. The last line of output is JSON.
Namespaces need root; without it, or without a program, the script says what it skips.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launching import environment

from coconut_ds.distributed.launcher import launcher
from coconut_ds.training.metrics import read_metrics

TRAIN = Path(__file__).resolve().parents[1] / "coconut_ds" / "train.py"
INTERFACE = "coconut0"
ADDRESSES = ("10.231.7.1", "10.231.7.2")
PORT = "29517"
OVERRIDES = (
    *("run=demo", "training=demo", "data=permutation_product", "model=gpt2_scratch_tiny", "tokenizer=dataset"),
    *("advance=epochs", "epochs_per_stage=1", "num_epochs=3", "global_batch_size=64", "batch_size_training=32"),
    *("size.train=128", "size.valid=16", "size.test=16", "run.wandb=disabled"),
)
"""Six updates, at stages 0, 1 and 2, and a validation after every second one."""
PATIENCE_S = 300.0


class Unavailable(Exception):
    """This computer cannot play two machines; the message says why."""


@dataclass(frozen=True)
class Machine:
    """A network namespace."""

    name: str
    address: str

    def inside(self, *command: Any) -> list[str]:
        """A command that runs ``command`` on this machine."""
        return ["ip", "netns", "exec", self.name, *map(str, command)]


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Makes two namespaces and the cable between them; removes them at the end.

    Raises:
        Unavailable: the user may not make namespaces, or the program ``ip`` is missing.
    """
    if shutil.which("ip") is None:
        raise Unavailable("the program `ip` (package iproute2) is not installed")
    first, second = (Machine(f"coconut-{os.getpid()}-{n}", address) for n, address in enumerate(ADDRESSES))
    made: list[Machine] = []
    try:
        for machine in (first, second):
            _ip("netns", "add", machine.name)
            made.append(machine)
        _ip("-n", first.name, "link", "add", INTERFACE, "type", "veth", "peer", INTERFACE, "netns", second.name)
        for machine in (first, second):
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _ip("-n", machine.name, "link", "set", interface, "up")
        yield first, second
    finally:
        for machine in made:
            # The cable goes with the first namespace that has an end of it.
            subprocess.run(["ip", "netns", "del", machine.name], check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")


def variables() -> dict[str, str]:
    """The environment of all ranks. gloo would otherwise take the address of the computer's name."""
    return environment(GLOO_SOCKET_IFNAME=INTERFACE, DS_ACCELERATOR="cpu")


def losses(folder: Path) -> list[float]:
    """The losses of all updates of the run in ``folder``."""
    (file,) = folder.rglob("metrics.jsonl")
    return [line["train/loss"] for line in read_metrics(file) if "train/loss" in line]


def finish(processes: list[subprocess.Popen[str]]) -> None:
    """Waits for all processes; ends them all if one fails.

    Raises:
        RuntimeError: one failed, or ``PATIENCE_S`` passed.
    """
    ends = time.monotonic() + PATIENCE_S
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < ends:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
        if any(codes) or None in codes:
            raise RuntimeError(f"exit codes {codes} (None: still running)")
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()


def torchrun(machines: tuple[Machine, Machine], arguments: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """``torchrun`` on each machine."""
    master = ["--master_addr", machines[0].address, "--master_port", PORT]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *master]
    return [
        subprocess.Popen(machine.inside(*command, "--node_rank", rank, TRAIN, *arguments), env=variables(), text=True)
        for rank, machine in enumerate(machines)
    ]


def deepspeed_with(hosts: Path, machines: tuple[Machine, Machine], *options: Any) -> list[Any]:
    """The command ``deepspeed`` for both machines."""
    hosts.write_text("".join(f"{machine.address} slots=1\n" for machine in machines))
    program = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "error", "--hostfile", hosts]
    return [*program, "--master_addr", machines[0].address, "--master_port", PORT, *options]


def no_ssh(machines: tuple[Machine, Machine], arguments: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """``deepspeed --no_ssh`` on each machine."""
    started = []
    for rank, machine in enumerate(machines):
        command = deepspeed_with(folder / "hosts.txt", machines, "--no_ssh", "--node_rank", rank)
        started.append(subprocess.Popen(machine.inside(*command, TRAIN, *arguments), env=variables(), text=True))
    return started


def pdsh(machines: tuple[Machine, Machine], arguments: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """``deepspeed`` on the first machine. It forwards few variables; the others are in ``.deepspeed_env``."""
    names = ("GLOO_SOCKET_IFNAME", "DS_ACCELERATOR", "OMP_NUM_THREADS")
    own = variables()
    (folder / ".deepspeed_env").write_text("\n".join(f"{name}={own[name]}" for name in names))
    options = f"-i {folder / 'key'} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    env = {**own, "PDSH_SSH_ARGS_APPEND": options}
    # The check uses plain ssh, without these options.
    command = deepspeed_with(folder / "hosts.txt", machines, "--no_ssh_check", TRAIN, *arguments)
    return [subprocess.Popen(machines[0].inside(*command), env=env, text=True, cwd=folder)]


@contextmanager
def ssh_servers(machines: tuple[Machine, Machine], folder: Path) -> Iterator[None]:
    """An ssh server on each machine, which accepts only the key ``folder/key``.

    Raises:
        Unavailable: a program is missing.
    """
    server = shutil.which("sshd") or "/usr/sbin/sshd"
    for program in ("pdsh", "ssh-keygen", server):
        if shutil.which(program) is None:
            raise Unavailable(f"the program `{program}` is not installed")
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    # sshd refuses to start without this folder.
    Path("/run/sshd").mkdir(exist_ok=True)
    options = [f"HostKey={folder / 'host_key'}", f"AuthorizedKeysFile={folder / 'key.pub'}", "StrictModes=no"]
    options += ["PidFile=none", "UsePAM=no", "PasswordAuthentication=no", "PermitRootLogin=prohibit-password"]
    words = [word for option in options for word in ("-o", option)]
    servers = []
    try:
        for machine in machines:
            own = [server, "-D", "-e", "-f", "/dev/null", "-o", f"ListenAddress={machine.address}", *words]
            servers.append(subprocess.Popen(machine.inside(*own), stderr=subprocess.DEVNULL))
        # Until they listen.
        time.sleep(1.0)
        yield
    finally:
        for each in servers:
            each.terminate()
            each.wait()


Way = Callable[[tuple[Machine, Machine], list[str], Path], list[subprocess.Popen[str]]]
WAYS: Mapping[str, Way] = {"torchrun": torchrun, "no_ssh": no_ssh, "pdsh": pdsh}


def train_in(way: str, machines: tuple[Machine, Machine], arguments: list[str], folder: Path) -> list[float]:
    """Trains on both machines; returns the losses."""
    folder.mkdir()
    with ExitStack() as stack:
        if way == "pdsh":
            stack.enter_context(ssh_servers(machines, folder))
        finish(WAYS[way](machines, [*arguments, f"save_path={folder}"], folder))
    return losses(folder)


def main() -> int:
    """Command line; the exit code is 1 if any losses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--deepspeed", default="zero3", help="the engine's file")
    given = parser.parse_args()
    arguments = [*OVERRIDES, f"deepspeed={given.deepspeed}"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        try:
            machines = stack.enter_context(two_machines())
        except Unavailable as reason:
            sys.stdout.write(json.dumps({"skipped": str(reason)}) + "\n")
            return 0
        one = folder / "one_machine"
        command = [*launcher(2), str(TRAIN), *arguments, f"save_path={one}"]
        subprocess.run(command, env=environment(DS_ACCELERATOR="cpu"), check=True)
        found["one_machine"] = losses(one)
        for way in given.ways:
            try:
                found[way] = train_in(way, machines, arguments, folder / way)
            except Unavailable as reason:
                sys.stderr.write(f"{way}: skipped: {reason}\n")
                found[way] = {"skipped": str(reason)}
    same = all(found[way] == found["one_machine"] for way in given.ways if isinstance(found[way], list))
    sys.stdout.write(json.dumps({**found, "same": same}) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
