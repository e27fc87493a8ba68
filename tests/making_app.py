"""Questions and graphs that the tests of the app share, one of them hostile to HTML."""

import json
from pathlib import Path

from coconut_ds.data.problem import Problem

HOSTILE = """<script>alert('x')</script>"&{{7*7}}${7*7}%{x}"""

NAMES = ["Tom", "Sam", "ape", "bee", "cat", "dog", "elk"]

EDGES = [[0, 2], [0, 3], [2, 4], [1, 5], [5, 6]]

GRAPH = Problem(
    "Tom is a ape. Tom is a bee. Every ape is a cat. Sam is a dog. Every dog is a elk. Is Tom a cat or elk?",
    ("Tom is a ape.", "Every ape is a cat."),
    "Tom is a cat.",
    {"idx_to_symbol": NAMES, "edges": EDGES, "root": 0, "target": 4, "neg_target": 6},
)

SWAPPED = Problem(GRAPH.question.replace("cat or elk", "elk or cat"), GRAPH.steps, GRAPH.answer, GRAPH.extra)
"""The same graph, with the options in the other order."""

SUMS = tuple(Problem(f"{a} + {b} =", (str(a),), str(a + b)) for a in range(1, 5) for b in range(1, 4))

LONG = tuple(Problem(f"{a} + {b} =", (str(a),), str(a + b)) for a in range(10, 30) for b in range(10, 25))
"""As many problems as the app measures at once, which takes a minute."""

REFUSALS = {"x" * 10_000: "10,000 characters", "x" * 5_000: "room for", "": "is empty"}
"""For each question that cannot be answered, part of the advice."""


STRANGE = f"{HOSTILE} <img src=x onerror='window.hacked=1'> 🥥💭 ñ 你好 \u202e"
"""A script, an image, templates, characters of several bytes, and one that turns the direction of writing."""


def write_problems(folder: Path) -> list[Path]:
    """Writes the files of problems that the app offers: ``sums.json``, ``graphs.json`` and ``long.json``."""
    paths = []
    for name, problems in (("sums", SUMS), ("graphs", (SWAPPED, GRAPH)), ("long", LONG)):
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps([one.as_dict() for one in problems]), encoding="utf-8")
    return paths
