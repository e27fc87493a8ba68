"""Entry point ``coconut-runs``: lists, shows, compares, prunes and verifies runs on the disk.

Runs are searched for under ``--root``. Name an attempt by its id, the signature or the name of its run, an unambiguous
beginning of one of them, or a path. Exit codes: 0 success; 1 runs differ, or a checkpoint is damaged; 2 an error in the
command.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from coconut_ds.cli.parser import Parser
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.errors import CoconutError, ConfigError, paths_checked
from coconut_ds.files import damage, shell_word
from coconut_ds.runs.catalogue import Attempt, Checkpoint, NotFoundError, find_attempts, folder_bytes
from coconut_ds.runs.edits import accept, changing, edits_of, how_to_accept
from coconut_ds.runs.fencing import Fence, left_over_parts
from coconut_ds.runs.folder import CHECKPOINT
from coconut_ds.runs.identity import differences, read_ingredients
from coconut_ds.runs.lock import FILE, RunLock
from coconut_ds.runs.pickles import convert_pickles, pickles_of
from coconut_ds.runs.pruning import superfluous
from coconut_ds.runs.report import (
    attempt_values,
    attempts_text,
    coloured,
    difference_text,
    difference_values,
    finite,
    show_text,
    show_values,
    size,
)
from coconut_ds.runs.selection import select, select_one


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    prepare_streams()
    options = _parser().parse_program(sys.argv[1:] if argv is None else argv, "coconut-runs")
    try:
        with paths_checked():
            code: int = options.command(options)
        sys.stdout.flush()
    except CoconutError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except BrokenPipeError:
        # The reader (head, for example) closed the pipe; flushing the rest of the buffer at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _parser() -> Parser:
    # As long as there are commands and options: one statement for each.
    parser = Parser(prog="coconut-runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Parser(add_help=False)
    root.add_argument("--root", type=Path, default=Path("outputs"), help="the save_path of the runs (%(default)s)")
    as_json = Parser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON document")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    one = commands.add_parser(
        "list", parents=[root, as_json], help="a table of attempts, the most recently active last"
    )
    one.add_argument("--name", help="only the runs of this name")
    one.set_defaults(command=_list)

    one = commands.add_parser("show", parents=[root, as_json], help="everything that is known of an attempt")
    one.add_argument("attempt", metavar="ATTEMPT")
    one.set_defaults(command=_show)

    one = commands.add_parser(
        "diff", parents=[root, as_json], help="the ingredients in which the signatures of two runs differ"
    )
    one.add_argument("left", metavar="A")
    one.add_argument("right", metavar="B")
    one.set_defaults(command=_diff)

    one = commands.add_parser(
        "prune", parents=[root], help="remove checkpoints that need not be kept, and temporary files of killed launches"
    )
    one.add_argument("attempts", nargs="*", metavar="ATTEMPT", help="default: all under --root")
    keep_last = "number of newest checkpoints to keep; default: the run's training.keep_last"
    one.add_argument("--keep-last", type=_positive, metavar="N", help=keep_last)
    one.add_argument(
        "--keep-best", action=argparse.BooleanOptionalAction, default=True, help="keep the best checkpoint too"
    )
    one.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    one.set_defaults(command=_prune)

    one = commands.add_parser(
        "verify", parents=[root, as_json], help="compare every file of every checkpoint with its hash"
    )
    one.add_argument(
        "attempts", nargs="*", metavar="ATTEMPT", help="an attempt or a checkpoint; default: all under --root"
    )
    one.set_defaults(command=_verify)

    one = commands.add_parser(
        "accept",
        help="show the edited text files of a checkpoint, such as coconut.json, and accept their changes; convert the "
        "pickles of an earlier version",
    )
    one.add_argument("folder", type=Path, metavar="CHECKPOINT", help="the folder of a checkpoint, or a copy of it")
    one.add_argument("--dry-run", action="store_true", help="only show what changed")
    one.set_defaults(command=_accept)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1; the newest complete checkpoint always stays")
    return value


def _list(options: argparse.Namespace) -> int:
    attempts = find_attempts(options.root)
    if options.name is not None:
        names = sorted({attempt.name for attempt in attempts})
        if options.name not in names:
            there = f"there are {', '.join(names)}" if names else "there are no runs"
            raise NotFoundError(f"--name {options.name}: no run under {options.root} has this name; {there}")
        attempts = [attempt for attempt in attempts if attempt.name == options.name]
    if options.json:
        _print_json([attempt_values(attempt) for attempt in attempts])
    else:
        sys.stdout.write(attempts_text(attempts) if attempts else f"no runs under {options.root}\n")
    return 0


def _show(options: argparse.Namespace) -> int:
    attempt = select_one(options.root, options.attempt)
    if options.json:
        _print_json(show_values(attempt))
    else:
        sys.stdout.write(show_text(attempt))
    return 0


def _diff(options: argparse.Namespace) -> int:
    left, right = (_run_folder(options.root, text) for text in (options.left, options.right))
    found = differences(read_ingredients(left), read_ingredients(right))
    if options.json:
        _print_json({"left": str(left), "right": str(right), "differences": difference_values(found)})
    else:
        sys.stdout.write(difference_text(found, options.left, options.right))
    return 1 if found else 0


def _run_folder(root: Path, text: str) -> Path:
    """The folder of a run's signature, which may no longer contain an attempt."""
    if text and (Path(text) / "signature.json").is_file():
        return Path(text)
    folders = sorted({attempt.path.parent for attempt in select(root, text)})
    if len(folders) > 1:
        raise NotFoundError(f"{text}: matches {len(folders)} runs: {', '.join(map(shell_word, folders))}")
    return folders[0]


def _prune(options: argparse.Namespace) -> int:
    freed, seen = 0, set[Path]()
    for attempt in _selected(options):
        with ExitStack() as stack:
            lock = None
            try:
                if attempt.is_alive:
                    raise ConfigError("running")
                if not options.dry_run:
                    # Keeps launches from starting while checkpoints are being removed.
                    lock = stack.enter_context(RunLock(attempt.path.parent, print))
            except ConfigError:
                print(f"{shell_word(attempt.path)}: {coloured('running')}, skipped")
                continue
            freed += _prune_one(attempt, options, seen, lock)
    print(f"{'would free' if options.dry_run else 'freed'} {size(freed)}")
    return 0


def _prune_one(attempt: Attempt, options: argparse.Namespace, seen: set[Path], lock: RunLock | None) -> int:
    """Prunes one attempt; returns the number of bytes that were freed, or would be under ``--dry-run``.

    ``seen``: receives what was removed; attempts of one run share what killed launches have left. ``lock``: of the run;
    None under ``--dry-run``.
    """
    run, keep_last = attempt.path.parent, attempt.keep_last if options.keep_last is None else options.keep_last
    left = attempt.folder.left_overs()
    # A launch may be working on another attempt of the run; without --dry-run, the lock rules that out.
    if not options.dry_run or not (run / FILE).exists():
        left += left_over_parts(run)
    doomed = {path: folder_bytes(path) for path in left if path not in seen}
    # Removes what killed launches have left, and keeps a launch that was only suspended from changing the run.
    fence = None if lock is None else Fence(run, lock)
    try:
        found = superfluous(attempt, keep_last, options.keep_best)
        doomed |= {checkpoint.path: folder_bytes(checkpoint.path) for checkpoint in found}
        for path, count in doomed.items():
            seen.add(path)
            if fence is not None:
                _remove(path, fence)
            print(f"{'would remove' if fence is None else 'removed'} {shell_word(path)} ({size(count)})", flush=True)
    finally:
        if fence is not None:
            fence.close()
    return sum(doomed.values())


def _remove(path: Path, fence: Fence) -> None:
    try:
        if path.exists():
            fence.discard(path)
    except OSError as error:
        raise CoconutError(f"{path}: cannot be removed ({error}); everything listed above was removed") from error


def _verify(options: argparse.Namespace) -> int:
    checkpoints = _checkpoints(options)
    total = sum(checkpoint.bytes for checkpoint in checkpoints)
    found: dict[str, list[str]] = {}
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        for checkpoint in checkpoints:
            problems = damage(checkpoint.path, hashes=True)
            bar.update(checkpoint.bytes)
            # A running launch may have removed it in the meantime.
            if checkpoint.path.is_dir():
                found[str(checkpoint.path)] = problems
    damaged = {path: problems for path, problems in found.items() if problems}
    if options.json:
        values = [{"path": path, "problems": problems} for path, problems in found.items()]
        _print_json({"checkpoints": values, "damaged": len(damaged), "bytes": total})
    else:
        for path, problems in damaged.items():
            lines = [*problems, *filter(None, [how_to_accept(Path(path))])]
            print(f"{coloured('damaged')} {shell_word(path)}", *(f"  {line}" for line in lines), sep="\n")
        state = f"{len(damaged)} damaged" if damaged else "all intact" if found else "nothing to verify"
        print(f"{len(found)} checkpoints, {size(total)}: {state}")
    return 1 if damaged else 0


def _accept(options: argparse.Namespace) -> int:
    edits = edits_of(options.folder)
    for edit in edits:
        sys.stdout.write(edit.as_text())
    if edits and not options.dry_run:
        with changing(options.folder) as write:
            accept(options.folder, edits, write)
    count = f"{len(edits)} edited file{'' if len(edits) == 1 else 's'}"
    print(f"{'would accept' if options.dry_run else 'accepted'} {count}" if edits else "no text file was edited")
    if pickles := pickles_of(options.folder):
        for path in pickles:
            print(f"{'would convert' if options.dry_run else 'converting'} {shell_word(path)}")
        if not options.dry_run:
            with changing(options.folder):
                convert_pickles(options.folder)
    return 0


def _checkpoints(options: argparse.Namespace) -> list[Checkpoint]:
    found: dict[Path, Checkpoint] = {}
    for text in options.attempts or [None]:
        path = Path(os.path.abspath(text)) if text else None
        if path is not None and path.is_dir() and CHECKPOINT.fullmatch(path.name):
            found[path] = Checkpoint.read(path)
            continue
        attempts = find_attempts(options.root) if text is None else select(options.root, text)
        found |= {Path(os.path.abspath(one.path)): one for attempt in attempts for one in attempt.checkpoints}
    return list(found.values())


def _selected(options: argparse.Namespace) -> list[Attempt]:
    """The attempts that the command line names, each once; all under the root if it names none."""
    if not options.attempts:
        return find_attempts(options.root)
    found = {os.path.abspath(one.path): one for text in options.attempts for one in select(options.root, text)}
    return list(found.values())


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
