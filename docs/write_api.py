"""Writes ``docs/api.md``, the reference of what programs may import, from signatures and docstrings.

Usage: ``python docs/write_api.py``. It reads the source without importing it, so it takes no time; a test compares its
result with the file.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "api.md"
TOP = ("load_reasoner", "Reasoner", "Answer")
"""Names that the package itself offers."""
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "Load a model and ask it": {
        "coconut_ds.reasoner": ("load_reasoner", "Reasoner"),
        "coconut_ds.generation.answer": ("Answer",),
        "coconut_ds.generation.requests": ("Completion",),
        "coconut_ds.generation.decoding": ("DecodedThought", "decode_thoughts"),
        "coconut_ds.model.card": ("ModelCard",),
    },
    "Look inside": {
        "coconut_ds.probing.trace": ("trace_thoughts", "ThoughtTrace", "ThoughtView"),
        "coconut_ds.probing.cases": ("Sample",),
        "coconut_ds.model.thought_noise": ("NoiseSettings",),
        "coconut_ds.probing.intervene": ("intervene", "InterventionReport", "InterventionArm"),
        "coconut_ds.probing.interventions": ("Intervention", "Kind"),
    },
    "Configure, train and evaluate": {
        "coconut_ds.settings.compose": ("compose_config", "compose_eval_config", "compose_probe_config"),
        "coconut_ds.train": ("main",),
        "coconut_ds.evaluation.session": ("evaluate",),
        "coconut_ds.evaluation.prediction": ("Evaluation", "Prediction"),
        "coconut_ds.evaluation.paired": ("compare_predictions", "Comparison"),
    },
    "Data": {
        "coconut_ds.data.problem": ("Problem", "load_problems"),
        "coconut_ds.data.sources": ("Source", "open_source"),
    },
    "Extend": {
        "coconut_ds.methods.base": ("Method", "CurriculumSpec"),
        "coconut_ds.objectives.base": ("Objective",),
    },
    "Errors": {"coconut_ds.errors": ("CoconutError", "ConfigError", "DataError", "CheckpointError", "ModelError")},
}
"""What is described: by section and module, the names of functions and classes."""
HEAD = """\
# Python API

What programs may import, made from the docstrings by `python docs/write_api.py`. Names that are not listed here may
change in any version. Keys of configurations are described by `coconut-train --help=GROUP`, the HTTP API by
[serving](serving.md).
"""
PARTS = ("Args", "Returns", "Raises", "Yields")
"""Headings of the parts of a docstring."""


def main() -> None:
    """Writes the file."""
    OUT.write_text(render(), encoding="utf-8")


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, modules in SECTIONS.items():
        parts.append(f"## {title}\n")
        for module, names in modules.items():
            path = ROOT / f"{module.replace('.', '/')}.py"
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            for name in names:
                node = found[name]
                of = (
                    class_lines(node, module) if isinstance(node, ast.ClassDef) else function_lines(node, module, "###")
                )
                parts.append("\n".join(of))
    return "\n".join(parts)


def class_lines(node: ast.ClassDef, module: str) -> Iterator[str]:
    """A class with its documented fields, properties and methods."""
    yield f"### `{node.name}`\n"
    yield f"`from {'coconut_ds' if node.name in TOP else module} import {node.name}`\n"
    yield from text_lines(ast.get_docstring(node) or "")
    fields = list(field_lines(node))
    if fields:
        yield from ("| field | |", "|---|---|", *fields, "")
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
            yield from function_lines(inner, "", "####")


def field_lines(node: ast.ClassDef) -> Iterator[str]:
    """A row for each annotated field, each value of an enumeration and each property of a class."""
    for statement, after in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
        text = " ".join(after.value.value.split()) if is_text(after) else ""
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if not statement.target.id.startswith("_"):
                default = "" if statement.value is None else f" = {short(ast.unparse(statement.value))}"
                yield row(f"{statement.target.id}: {ast.unparse(statement.annotation)}{default}", text)
        elif isinstance(statement, ast.Assign) and text and isinstance(statement.targets[0], ast.Name):
            yield row(f"{statement.targets[0].id} = {ast.unparse(statement.value)}", text)


def row(code: str, text: str) -> str:
    """A row of a table. A vertical line would end its cell."""
    cell = code.replace("|", "\\|")
    return f"| `{cell}` | {plain(text)} |"


def function_lines(node: ast.FunctionDef, module: str, level: str) -> Iterator[str]:
    """A function or method with its signature."""
    kinds = {ast.unparse(one) for one in node.decorator_list}
    if "in_parts" in kinds and isinstance(node.returns, ast.Subscript):
        # The caller gets the result of the decorated function, not its parts.
        node.returns = node.returns.slice
    if kinds & {"property", "cached_property"}:
        result = f": {ast.unparse(node.returns)}" if node.returns is not None else ""
        yield f"{level} `{node.name}{result}`\n"
    else:
        yield f"{level} `{node.name}`\n"
        if module:
            yield f"`from {'coconut_ds' if node.name in TOP else module} import {node.name}`\n"
        yield from ("```python", signature(node, "classmethod" in kinds or not module), "```", "")
    yield from text_lines(ast.get_docstring(node) or "")


def signature(node: ast.FunctionDef, is_method: bool) -> str:
    """The signature of a function on as many lines as it needs; a method is shown without ``self``."""
    arguments = node.args
    plain_ones = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(plain_ones) - len(arguments.defaults)) + list(arguments.defaults)
    words = [one_argument(one, default) for one, default in zip(plain_ones, defaults, strict=True)]
    words = words[1:] if is_method and plain_ones and plain_ones[0].arg in ("self", "cls") else words
    if arguments.vararg is not None:
        words.append(f"*{one_argument(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        words.append("*")
    words += [
        one_argument(one, default) for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg is not None:
        words.append(f"**{one_argument(arguments.kwarg, None)}")
    result = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    line = f"{node.name}({', '.join(words)}){result}"
    if len(line) <= 100:
        return line
    return "\n".join([f"{node.name}(", *(f"    {word}," for word in words), f"){result}"])


def one_argument(argument: ast.arg, default: ast.expr | None) -> str:
    """An argument with its type and default."""
    kind = "" if argument.annotation is None else f": {ast.unparse(argument.annotation)}"
    value = "" if default is None else f" = {ast.unparse(default)}" if kind else f"={ast.unparse(default)}"
    return f"{argument.arg}{kind}{value}"


def text_lines(docstring: str) -> Iterator[str]:
    """A docstring as Markdown: its parts, such as ``Args``, become lists."""
    part, entries = None, list[str]()
    for block in docstring.split("\n\n"):
        lines = block.split("\n")
        heading = lines[0].rstrip(":")
        if heading in PARTS and lines[0].endswith(":"):
            yield f"*{heading}*\n"
            part, entries = heading, textwrap.dedent("\n".join(lines[1:])).split("\n")
            yield from item_lines(part, entries)
        elif block.strip():
            yield f"{plain(' '.join(block.split())) if not block.lstrip().startswith('*') else plain(block)}\n"


def item_lines(part: str, entries: list[str]) -> Iterator[str]:
    """The entries of a part; lines that continue an entry are indented."""
    joined: list[str] = []
    for line in entries:
        if line.startswith(" ") and joined:
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line.strip())
    if part in ("Args", "Raises"):
        for entry in joined:
            name, _, text = entry.partition(": ")
            yield f"* `{name}`: {plain(text)}"
    else:
        yield plain(" ".join(joined))
    yield ""


def plain(text: str) -> str:
    """Text with the literals of docstrings as those of Markdown."""
    return re.sub(r"``(.+?)``", r"`\1`", text)


def short(text: str) -> str:
    """The code of a default value, unless it is long."""
    return text if len(text) <= 40 else "…"


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is the docstring of the field before it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


if __name__ == "__main__":
    main()
