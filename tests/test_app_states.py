"""The tables of the page *States* hold the numbers of its figures."""

import re

from coconut_ds.probing.state_patching import PatchedGrid, PatchedState, StatePatching
from coconut_ds.probing.thought_attention import ThoughtAttention
from serve.app.state_tables import attention_table, patching_tables


def cells_of(html: str) -> list[list[str]]:
    """The texts in all rows of tables, of their heads too."""
    rows = re.findall("<tr.*?>(.*?)</tr>", html)
    return [re.findall("<t[hd].*?>(.*?)</t[hd]>", row) for row in rows]


def test_the_table_of_attention_has_each_weight_of_the_layer_and_head():
    heads = (((0.75, 0.25), (0.5, 0.5)), ((0.25, 0.75), (0.0, 1.0)))
    found = ThoughtAttention("a\n", ("a", "\n"), ("question", "thought 1"), (0, 1), (((),), heads))
    head = ["position and token", "from question", "from thought 1"]
    assert cells_of(attention_table(found, 2, 1)) == [head, ["0 a", "75.0%", "50.0%"], ["1 ⏎", "25.0%", "50.0%"]]
    assert cells_of(attention_table(found, 2, None))[1] == ["0 a", "50.0%", "25.0%"]


def test_the_tables_of_patching_have_each_effect_of_the_patch_and_its_controls():
    def grid(name: str, effect: float) -> PatchedGrid:
        cells = (PatchedState(effect, False, True), PatchedState(0.0, True, False))
        return PatchedGrid(name, "", (cells, (PatchedState(0.5, False, False), cells[1])))

    texts = ("q", "d", "own", "other")
    found = StatePatching(*texts, "kept", ("thought 1", "="), grid("patch", 1.0), (grid("random", -0.25),))
    head = ["position", "input", "layer 1"]
    assert cells_of(patching_tables(found))[3:] == [
        *(head, ["thought 1", "1.000 (donor&#x27;s text)", "0.500 (another text)"], ["=", "0.000", "0.000"]),
        *(head, ["thought 1", "-0.250 (donor&#x27;s text)", "0.500 (another text)"], ["=", "0.000", "0.000"]),
    ]
