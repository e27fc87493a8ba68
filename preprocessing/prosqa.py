"""Writes ProsQA files: ``python preprocessing/prosqa.py [--out data] [--seed 0] [--sizes 17886 300 500]``.

Writes prosqa_train.json, prosqa_valid.json and prosqa_test.json; no graph occurs twice in them. Existing files with
other content are replaced only with ``--overwrite``. With
``--stats FILE...`` it prints statistics of graph files side by side instead. The generator is `coconut_ds.data.prosqa`,
the statistics are computed by `coconut_ds.data.graph_stats`, and `prosqa.bash` downloads the published files.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run as a file: put the root of the checkout on the path instead of this folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from coconut_ds.cli.streams import prepare_streams
from coconut_ds.data.graph_stats import graph_stats, stats_table
from coconut_ds.data.problem import Problem, load_problems
from coconut_ds.data.prosqa import generate_split
from coconut_ds.data.writing import Outputs
from coconut_ds.errors import DataError

SPLITS = ("train", "valid", "test")
LOG_S = 10.0
"""Seconds between two reports on the progress where standard error is not a terminal."""


def generate_splits(seed: int, sizes: dict[str, int]) -> Iterator[tuple[str, Problem]]:
    """Yields (split, problem), test first, so that the size of a split does not change the splits before it."""
    taken: set[str] = set()
    # In a log, the bar is written rarely.
    seconds = 0.1 if sys.stderr.isatty() else LOG_S
    with tqdm(total=sum(sizes.values()), unit=" problems", mininterval=seconds, miniters=1, delay=seconds) as bar:
        for split in reversed(SPLITS):
            for problem, fingerprint in generate_split(seed, split, sizes[split], taken):
                taken.add(fingerprint)
                yield split, problem
                bar.update()


def write_files(out: Path, seed: int, sizes: dict[str, int], overwrite: bool = False) -> str:
    """Writes the three files and their manifest. Returns a summary of the files."""
    with Outputs(out, "prosqa", overwrite, seed=seed, sizes=sizes) as outputs:
        files = {split: outputs.open(f"prosqa_{split}.json") for split in SPLITS}
        for split, problem in generate_splits(seed, sizes):
            files[split].write(problem)
    return outputs.summary()


def _size(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number of problems, at least 0")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 2 for an error that the user can fix."""
    prepare_streams()
    parser = argparse.ArgumentParser(description="Write ProsQA files, or print statistics of graph files.")
    parser.add_argument("--out", type=Path, default=Path("data"), help="output folder (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the generator; the same seed gives the same files (%(default)s)"
    )
    parser.add_argument(
        "--sizes",
        type=_size,
        nargs=3,
        default=[17886, 300, 500],
        metavar=("TRAIN", "VALID", "TEST"),
        help="numbers of problems per split (17886 300 500, as published)",
    )
    parser.add_argument(
        "--stats", type=Path, nargs="+", metavar="FILE", help="print statistics of these files and write nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files with other content")
    options = parser.parse_args(arguments)
    if options.stats:
        try:
            print(stats_table({str(path): graph_stats(load_problems(path), str(path)) for path in options.stats}))
        except DataError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    try:
        sizes = dict(zip(SPLITS, options.sizes, strict=True))
        print(write_files(options.out, options.seed, sizes, options.overwrite))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
