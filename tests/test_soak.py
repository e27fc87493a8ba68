"""A short form of ``python tests/soak.py --minutes 60 --json``, which must hold for an hour."""

import asyncio

import pytest
from making_checkpoints import PROMPTS, World
from serving import serving
from soak import OPTIONS, Counts, use


def has_seen_enough(counts: Counts) -> bool:
    """The server has answered requests of the kinds that matter, before and after several changes."""
    return (
        sum(counts.kinds.values()) > 50 and counts.changes >= 3 and counts.kinds["models"] > 0 < counts.kinds["stream"]
    )


@pytest.mark.slow
def test_every_answer_is_right_while_checkpoints_change(tmp_path):
    world = World(tmp_path, prompts=PROMPTS[:2])
    with serving(world.root, options=OPTIONS) as server:
        result = asyncio.run(use(server, world, 60, has_seen_enough))
        assert (result["wrong"], result["server_errors"]) == (0, 0), result
        assert result["requests"] > 50
        assert result["changes"] >= 3
        assert {"models", "stream"} <= set(result["kinds"])
        assert server.stop() == 0
        assert "internal error" not in server.log
