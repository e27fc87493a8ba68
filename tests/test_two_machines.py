"""Ranks on two machines, network namespaces of this computer, train as ranks of one machine do."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from launching import TRAIN, environment, run, start
from two_machines import INTERFACE, OVERRIDES, PORT, Unavailable, losses, two_machines

IN_NAMESPACE = Path(__file__).with_name("in_namespace.py")


@pytest.mark.slow
def test_two_machines_give_the_losses_of_one(tmp_path):
    """Bit for bit, under ZeRO-3; both ranks have local rank 0. ``two_machines.py`` does so with the real launchers."""
    arguments = [*OVERRIDES, "num_epochs=2", "deepspeed=zero3"]
    with ExitStack() as stack:
        try:
            machines = stack.enter_context(two_machines())
        except Unavailable as reason:
            pytest.skip(f"two machines need network namespaces: {reason}")
        shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": INTERFACE}
        shared |= {"MASTER_ADDR": machines[0].address, "MASTER_PORT": PORT}
        ranks = [
            start(
                [IN_NAMESPACE, machine.name, TRAIN, *arguments, f"save_path={tmp_path / 'two'}"],
                environment(RANK=str(rank), **shared),
            )
            for rank, machine in enumerate(machines)
        ]
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    done = run([TRAIN, *arguments, f"save_path={tmp_path / 'one'}"], environment(), ranks=2)
    assert done.returncode == 0, done.stderr
    found = losses(tmp_path / "two")
    assert len(found) == 4
    assert found == losses(tmp_path / "one")
