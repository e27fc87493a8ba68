"""Entry point ``coconut-push FOLDER REPO``: uploads a checkpoint to the hub.

Everything that others need to load the model is uploaded: its weights, tokenizer, cards and feed. What only resumes a
run (``engine/``) and hidden files stay here. The token of ``hf auth login``, or of the variable HF_TOKEN, is used. Add
a licence to README.md before; edits of this file are kept.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from coconut_ds.cli.parser import Parser, exit_code
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.errors import CheckpointError
from coconut_ds.files import README, SEAL, damage, shell_word
from coconut_ds.runs.edits import advice_on_damage
from coconut_ds.runs.folder import ENGINE

LEFT_OUT = (f"{ENGINE}/*", ".*", "*/.*")
"""Patterns of the files that are not uploaded."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for an error that the user can fix."""
    prepare_streams()
    options = parser().parse_program(sys.argv[1:] if argv is None else argv, "coconut-push")
    return exit_code(lambda: _run(options))


def parser() -> Parser:
    """The parser of the command line."""
    made = Parser(prog="coconut-push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("folder", metavar="FOLDER", type=Path, help="a checkpoint of a run, or another model folder of this project")
    add("repo", metavar="REPO", help="the repository, ORG/NAME, or NAME for your own account; made if it is new")
    add("--private", action="store_true", help="make a new repository private")
    add("--revision", help="the branch to upload to; default: main")
    add("--message", default="Upload a checkpoint of coconut-ds", help="of the commit (%(default)s)")
    add("--pull-request", action="store_true", help="open a pull request instead")
    add("--dry-run", action="store_true", help="only list what would be uploaded")
    return made


def _run(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    files = files_to_push(folder)
    if options.dry_run:
        total = sum((folder / name).stat().st_size for name in files)
        sys.stdout.write("".join(f"{name}\n" for name in files) + f"{len(files)} files, {total:,} bytes\n")
        return
    url = push(
        folder,
        options.repo,
        private=options.private,
        revision=options.revision,
        message=options.message,
        pull_request=options.pull_request,
    )
    sys.stdout.write(f"uploaded {len(files)} files: {url}\n")


def files_to_push(folder: Path) -> list[str]:
    """The files of a checkpoint that are uploaded, by their paths there; writes its model card if it has none.

    Raises:
        CheckpointError: it is not a model folder of this project, or damaged.
    """
    # Imports torch.
    from huggingface_hub.utils import filter_repo_objects

    from coconut_ds.model.card import CARD, ModelCard
    from coconut_ds.model.folder_files import check_folder_files
    from coconut_ds.model.readme import write_readme

    card = ModelCard.read(folder) if folder.is_dir() else None
    if card is None:
        raise CheckpointError(f"{folder}: has no {CARD}, so it is no checkpoint of this project; name one")
    check_folder_files(folder)
    if (folder / SEAL).exists() and (found := damage(folder, hashes=True, without=ENGINE)):
        raise CheckpointError(f"{folder}: is damaged: {'; '.join(found[:3])}; {advice_on_damage(folder)}")
    if not (folder / README).exists():
        write_readme(folder, card)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return list(filter_repo_objects(names, ignore_patterns=list(LEFT_OUT)))


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "",
    pull_request: bool = False,
) -> str:
    """Uploads a checkpoint to a repository of the hub, which is made if it does not exist; returns its address.

    ``folder`` is one that ``files_to_push`` accepts; the other arguments are those of the command.

    Raises:
        CheckpointError: the hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import HfApi, constants

    from coconut_ds.hub import HTTP_FAULT, first_line, hub_reachable

    if not hub_reachable():
        raise CheckpointError(
            f"{repo}: the hub cannot be reached ({constants.ENDPOINT}); nothing was uploaded: unset HF_HUB_OFFLINE, or "
            "run the same command where there is a network"
        )
    api = HfApi()
    try:
        repo = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        info = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            ignore_patterns=list(LEFT_OUT),
            revision=revision,
            commit_message=message or None,
            create_pr=pull_request or None,
        )
    except (HTTP_FAULT, OSError, ValueError) as error:
        raise CheckpointError(
            f"{repo}: {shell_word(folder)} could not be uploaded ({first_line(error)}); log in with `hf auth login`, "
            "or set HF_TOKEN to a token that may write there"
        ) from error
    return str(info.pr_url or f"{api.endpoint}/{repo}")


if __name__ == "__main__":
    raise SystemExit(main())
