"""Writes ProsQA files: ``python preprocessing/prosqa.py [--out data] [--seed 0] [--sizes 17886 300 500]``.

Makes prosqa_train.json, prosqa_valid.json and prosqa_test.json; no graph stands twice in them. ``--stats FILE...``
prints statistics of graph files side by side instead. Not here: the generator (`coconut_ds.data.prosqa`) and the
statistics (`coconut_ds.data.graph_stats`).
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run as a file: the checkout takes the place of this folder, whose file names are no modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from coconut_ds.data.graph_stats import graph_stats, table
from coconut_ds.data.problem import Problem, load_problems
from coconut_ds.data.prosqa import generate_split
from coconut_ds.errors import DataError

SPLITS = ("train", "valid", "test")


def generate(seed: int, sizes: dict[str, int]) -> dict[str, list[Problem]]:
    """The three splits; test first, so that the size of one does not change those before it."""
    splits: dict[str, list[Problem]] = {}
    taken: set[str] = set()
    with tqdm(total=sum(sizes.values()), unit=" problems", disable=not sys.stderr.isatty()) as bar:
        for split in reversed(SPLITS):
            splits[split] = []
            for problem, fingerprint in generate_split(seed, split, sizes[split], taken):
                splits[split].append(problem)
                taken.add(fingerprint)
                bar.update()
    return splits


def write(path: Path, problems: Sequence[Problem]) -> None:
    """Writes a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps([problem.as_dict() for problem in problems]), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _size(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number of problems, at least 0")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Make ProsQA files, or print statistics of graph files.")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of the files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (%(default)s)")
    parser.add_argument(
        "--sizes",
        type=_size,
        nargs=3,
        default=[17886, 300, 500],
        metavar=("TRAIN", "VALID", "TEST"),
        help="problems of each split (17886 300 500, as published)",
    )
    parser.add_argument("--stats", type=Path, nargs="+", metavar="FILE", help="print statistics and write nothing")
    options = parser.parse_args(arguments)
    if options.stats:
        try:
            print(table({str(path): graph_stats(load_problems(path), str(path)) for path in options.stats}))
        except DataError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    splits = generate(options.seed, dict(zip(SPLITS, options.sizes, strict=True)))
    options.out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        path = options.out / f"prosqa_{split}.json"
        write(path, splits[split])
        print(f"{path}: {len(splits[split])} problems")
    return 0


if __name__ == "__main__":
    sys.exit(main())
