"""A short form of ``python tests/soak.py --minutes 60 --json``, which must hold for an hour."""

import asyncio

from making_checkpoints import PROMPTS, World
from serving import serving
from soak import OPTIONS, use


def test_every_answer_is_right_while_checkpoints_change(tmp_path):
    world = World(tmp_path, prompts=PROMPTS[:2])
    with serving(world.root, options=OPTIONS) as server:
        result = asyncio.run(use(server, world, 4))
        assert (result["wrong"], result["server_errors"]) == (0, 0), result
        assert result["requests"] > 50
        assert result["changes"] >= 3
        assert {"models", "stream"} <= set(result["kinds"])
        assert server.stop() == 0
        assert "internal error" not in server.log
