"""Puts the published ProsQA files that `prosqa.bash` downloaded into the data folder, byte by byte.

``python preprocessing/prosqa_published.py [--raw data/prosqa_raw] [--out data] [--counts LIST] [--force]``. Files of
the same name with other content, such as the generator's, are replaced only with ``--force``.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run as a file: the checkout takes the place of this folder, whose file names are no modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from coconut_ds.data.downloads import check_count, downloaded, expected_counts
from coconut_ds.data.problem import load_problems
from coconut_ds.data.writing import Outputs, fingerprint
from coconut_ds.errors import DataError

NAMES = ("prosqa_train.json", "prosqa_valid.json", "prosqa_test.json")


def install(raw: Path, out: Path, counts: Mapping[str, int], force: bool) -> str:
    """Copies the three files and writes their manifest; returns a summary of them.

    Raises:
        DataError: a file is no list of as many problems as ``counts`` says, or would replace another one unasked.
    """
    numbers = {}
    for name in NAMES:
        with downloaded(raw / name, counts):
            numbers[name] = len(load_problems(raw / name))
            check_count(raw / name, numbers[name], counts)
    others = [
        str(out / name)
        for name in NAMES
        if (out / name).exists() and fingerprint(out / name) != fingerprint(raw / name)
    ]
    if others and not force:
        raise DataError(
            f"{', '.join(others)}: found other content than the published, and left all as it is; "
            "to replace it: bash preprocessing/prosqa.bash --force"
        )
    with Outputs(out, "prosqa", published=True) as outputs:
        for name, number in numbers.items():
            outputs.copy(raw / name, number)
    return outputs.summary()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Put the published ProsQA files into the data folder.")
    parser.add_argument("--raw", type=Path, default=Path("data/prosqa_raw"), help="downloaded files (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of the files (%(default)s)")
    parser.add_argument(
        "--counts", type=Path, metavar="LIST", help="refuse other numbers of problems than in this list"
    )
    parser.add_argument("--force", action="store_true", help="replace files of other content")
    options = parser.parse_args(arguments)
    try:
        counts = expected_counts(options.counts) if options.counts else {}
        print(install(options.raw, options.out, counts, options.force))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
