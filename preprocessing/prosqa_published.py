"""Copies the published ProsQA files, which `prosqa.bash` downloads, to the data folder.

``python preprocessing/prosqa_published.py [--raw data/prosqa_raw] [--out data] [--counts LIST] [--overwrite]``.
Existing files with other content, such as those of the generator, are replaced only with ``--overwrite``.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run as a file: put the root of the checkout on the path instead of this folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from coconut_ds.cli.streams import prepare_streams
from coconut_ds.data.downloads import check_count, downloaded, expected_counts
from coconut_ds.data.problem import load_problems
from coconut_ds.data.writing import Outputs
from coconut_ds.errors import DataError
from coconut_ds.files import fingerprint

NAMES = ("prosqa_train.json", "prosqa_valid.json", "prosqa_test.json")


def install(raw: Path, out: Path, counts: Mapping[str, int], overwrite: bool) -> str:
    """Copies the three files and writes their manifest. Returns a summary of the files.

    Raises:
        DataError: a file is invalid or has another number of problems than ``counts`` says, or it would replace a file
            with other content although ``overwrite`` is not set.
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
    if others and not overwrite:
        raise DataError(
            f"{', '.join(others)}: found other content than the published, and changed nothing; "
            "to replace it: bash preprocessing/prosqa.bash --overwrite"
        )
    with Outputs(out, "prosqa", overwrite, published=True) as outputs:
        for name, number in numbers.items():
            outputs.copy(raw / name, number)
    return outputs.summary()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 2 for an error that the user can fix."""
    prepare_streams()
    parser = argparse.ArgumentParser(description="Copy the published ProsQA files to the data folder.")
    parser.add_argument(
        "--raw", type=Path, default=Path("data/prosqa_raw"), help="folder of the downloaded files (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="output folder (%(default)s)")
    parser.add_argument("--counts", type=Path, metavar="LIST", help="check the numbers of problems against this list")
    # --force is the earlier name of this option.
    parser.add_argument("--overwrite", "--force", action="store_true", help="replace existing files with other content")
    options = parser.parse_args(arguments)
    try:
        counts = expected_counts(options.counts) if options.counts else {}
        print(install(options.raw, options.out, counts, options.overwrite))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
