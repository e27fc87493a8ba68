"""Statistics of graph problems (ProsQA's format), and a table of them for one or several files side by side.

Measures sizes, shortest paths and in-degrees, and the accuracy of two shortcuts that do not follow any path: choosing
the option with more ancestors, and choosing the option that is mentioned less often. A claim that a model searches such
graphs requires an accuracy above both. The text of a problem is used only for the order of its two options.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coconut_ds.data.graphs import Graph, GraphQuestion
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.strict_json import printable, shown

GRAPH_KEYS = ("idx_to_symbol", "edges", "root", "target", "neg_target")


def question_of(problem: Problem, where: str = "problem") -> GraphQuestion:
    """The graph question in a problem's ``extra`` keys; ``where`` names the problem in errors.

    Raises:
        DataError: a key is missing or has a value of another form, an index is not that of a node, the edges form a
            cycle, or the target cannot be reached from the root.
    """
    for key in GRAPH_KEYS:
        if key not in problem.extra:
            found = printable(", ".join(sorted(problem.extra))) or "none"
            raise DataError(
                f"{where}: key '{key}' is missing; found the keys {found}, expected a graph ({', '.join(GRAPH_KEYS)}); "
                "make such a file with: python preprocessing/prosqa.py"
            )
    symbols, edges = problem.extra["idx_to_symbol"], problem.extra["edges"]
    if not isinstance(symbols, list) or not all(_is_word(symbol) for symbol in symbols):
        raise DataError(f"{where}, key 'idx_to_symbol': found {shown(symbols)}, expected a list of words, one per node")
    if len(set(symbols)) < len(symbols):
        raise DataError(f"{where}, key 'idx_to_symbol': found a word twice, expected another one for each node")
    if not isinstance(edges, list):
        raise DataError(f"{where}, key 'edges': found {shown(edges)}, expected a list of pairs of nodes")
    root, target, distractor = ends = [problem.extra[key] for key in GRAPH_KEYS[2:]]
    nodes = range(len(symbols))
    for pair in (*edges, ends[:2], ends[1:]):
        # type() rather than isinstance(), because True is an instance of int.
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or any(type(node) is not int or node not in nodes for node in pair)
        ):
            raise DataError(
                f"{where}: found {shown(pair)} among edges, (root, target) and (target, neg_target), expected two of "
                f"the indices 0 to {len(symbols) - 1} of idx_to_symbol"
            )
    graph = Graph(len(symbols), tuple((parent, child) for parent, child in edges))
    if not graph.is_acyclic:
        raise DataError(f"{where}, key 'edges': the edges form a cycle, expected a graph without one")
    if root not in (0, 1) or target == root or target not in graph.distances(root):
        raise DataError(
            f"{where}: found root {root} and target {target}, expected root 0 or 1 and a path to the target"
        )
    return GraphQuestion(graph, root, target, distractor)


def _is_word(symbol: object) -> bool:
    return isinstance(symbol, str) and len(symbol.split()) == 1 and symbol == symbol.strip()


@dataclass(frozen=True)
class GraphStats:
    """Means over the problems of a file, and shares of values (which sum to 1)."""

    num_problems: int
    nodes: float
    edges: float
    path_length: float
    """Mean length of the shortest path from root to target, in edges."""
    path_lengths: Mapping[int, float]
    """Share of problems for each of these lengths."""
    num_shortest_paths: float
    """Mean number of shortest paths from root to target."""
    in_degrees: Mapping[int, float]
    """Share of nodes for each number of parents, without nodes 0 and 1, the two roots."""
    answer_first: float
    """Share of questions that name the answer before the distractor."""
    distractor_depth: float
    """Mean distance of the distractor from the other root, over the problems where it can be reached; nan if none."""
    sources: float
    """Mean number of nodes without parents."""
    more_ancestors: float
    """Accuracy of choosing the option with more ancestors; a tie counts 0.5."""
    mentioned_less: float
    """Accuracy of choosing the option that occurs in fewer sentences; a tie counts 0.5."""


def graph_stats(problems: Sequence[Problem], where: str = "problems") -> GraphStats:
    """The statistics of problems; ``where`` names them in errors.

    Raises:
        DataError: there are no problems, or one has no graph.
    """
    if not problems:
        raise DataError(f"{where}: found no problems, expected at least one")
    questions = [question_of(problem, f"{where}: item {index}") for index, problem in enumerate(problems)]
    graphs = [question.graph for question in questions]
    lengths = [q.graph.distances(q.root)[q.target] for q in questions]
    points = [shortcut_points(question) for question in questions]
    depths = [q.graph.distances(1 - q.root).get(q.distractor) for q in questions]
    return GraphStats(
        num_problems=len(problems),
        nodes=_mean([graph.num_nodes for graph in graphs]),
        edges=_mean([len(graph.edges) for graph in graphs]),
        path_length=_mean(lengths),
        path_lengths=_shares(lengths),
        num_shortest_paths=_mean([q.graph.shortest_path_counts(q.root)[q.target] for q in questions]),
        in_degrees=_shares([len(parents) for graph in graphs for parents in graph.parents[2:]]),
        answer_first=_mean([_answer_first(p, q) for p, q in zip(problems, questions, strict=True)]),
        distractor_depth=_mean([depth for depth in depths if depth is not None]),
        sources=_mean([len(graph.sources) for graph in graphs]),
        more_ancestors=_mean([one["more_ancestors"] for one in points]),
        mentioned_less=_mean([one["mentioned_less"] for one in points]),
    )


def shortcut_points(question: GraphQuestion) -> dict[str, float]:
    """The score of each shortcut of `GraphStats` on one question: 1 correct, 0 wrong, 0.5 for a tie."""
    graph, target, distractor = question.graph, question.target, question.distractor
    return {
        "more_ancestors": _points(len(graph.ancestors(target)), len(graph.ancestors(distractor))),
        "mentioned_less": _points(-_mentions(graph, target), -_mentions(graph, distractor)),
    }


def _points(target: int, distractor: int) -> float:
    return 0.5 if target == distractor else float(target > distractor)


def _mentions(graph: Graph, node: int) -> int:
    return len(graph.parents[node]) + len(graph.children[node])


def _answer_first(problem: Problem, question: GraphQuestion) -> bool:
    words = problem.question.rstrip("?").split()
    # "… Is Eva a felpus or rempus?", or "… [Q] 5 4 [R] 3".
    options = words[-4:-2] if "[R]" in words[-2:] else words[-3::2]
    return options[:1] == [problem.extra["idx_to_symbol"][question.target]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _shares(values: Sequence[int]) -> dict[int, float]:
    return {value: count / len(values) for value, count in sorted(Counter(values).items())}


def stats_table(stats: Mapping[str, GraphStats]) -> str:
    """A text table with one row per statistic and one column per file, in the given order."""
    lengths = sorted({length for one in stats.values() for length in one.path_lengths})
    degrees = sorted({degree for one in stats.values() for degree in one.in_degrees})
    columns = [_cells(one, lengths, degrees) for one in stats.values()]
    rows = [["", *stats]] + [[label, *(column[label] for column in columns)] for label in columns[0]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns) + 1)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line) for line in lines)


def _cells(one: GraphStats, lengths: Sequence[int], degrees: Sequence[int]) -> dict[str, str]:
    return {
        "problems": str(one.num_problems),
        "nodes": f"{one.nodes:.2f}",
        "edges": f"{one.edges:.2f}",
        "sources": f"{one.sources:.2f}",
        "shortest path": f"{one.path_length:.2f}",
        **{f"  {length} steps": f"{one.path_lengths.get(length, 0):.1%}" for length in lengths},
        "number of shortest paths": f"{one.num_shortest_paths:.2f}",
        **{f"in-degree {degree}": f"{one.in_degrees.get(degree, 0):.1%}" for degree in degrees},
        "depth of the distractor": f"{one.distractor_depth:.2f}",
        "answer named first": f"{one.answer_first:.1%}",
        "shortcut: more ancestors": f"{one.more_ancestors:.1%}",
        "shortcut: mentioned less": f"{one.mentioned_less:.1%}",
    }
