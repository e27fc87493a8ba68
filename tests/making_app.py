"""Questions and graphs that the tests of the app share, one of them hostile to HTML."""

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
