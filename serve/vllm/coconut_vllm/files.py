"""Finds the files of a checkpoint, in a folder or a repository on the Hugging Face hub.

A file that is missing is told from one that cannot be asked about: without ``coconut.json``, vLLM would serve a model
that thinks as one that does not.
"""

from functools import cache
from pathlib import Path

import huggingface_hub
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from vllm import envs
from vllm.transformers_utils.repo_utils import file_or_path_exists

from coconut_vllm.errors import CannotTell, NotSupported

CACHED = "models--"
"""How the names of the folders of cached repositories begin."""


def located(model: str, name: str, revision: str | None, token: str | bool | None = None) -> Path | None:
    """A file of a checkpoint; None if there is certainly no such file.

    Args:
        model: a folder, or the name of a repository. Names of other kinds have no such file.
        name: the path of the file in it.
        revision: of the repository; None: the latest.
        token: for the hub; None: the one that is stored.

    Raises:
        CannotTell: whether the file exists is not known.
        NotSupported: it exists where the plugin cannot read it.
    """
    place = Path(model)
    if not place.exists():
        return _on_hub(model, name, revision, token)
    path = place / name
    if path.is_file():
        return path
    # Offline, vLLM replaces the name of a repository by the folder of its files in the local cache, which may have only
    # some of them.
    repository = place.parent.parent.name
    if place.parent.name != "snapshots" or not repository.startswith(CACHED):
        return None
    name_on_hub = repository.removeprefix(CACHED).replace("--", "/")
    return _on_hub(name_on_hub, name, place.name, token, place.parents[2])


@cache
def _on_hub(
    model: str, name: str, revision: str | None, token: str | bool | None, cached_in: Path | None = None
) -> Path | None:
    """See ``located``. The hub is asked once in each process.

    Args:
        model: the name of the repository.
        name: see ``located``, as for ``revision`` and ``token``.
        revision: of the repository.
        token: for the hub.
        cached_in: the folder of all cached repositories, if the repository is known to be among them; None: the usual.
    """
    if getattr(envs, "VLLM_USE_MODELSCOPE", False) and cached_in is None:
        if file_or_path_exists(model, name, revision):
            raise NotSupported(f"{model}: has {name} on ModelScope; download the repository, and serve its folder")
        return None
    try:
        return Path(hf_hub_download(model, name, revision=revision, token=token, cache_dir=cached_in))
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:
        is_no_repository = isinstance(error, (HFValidationError, RepositoryNotFoundError))
        if is_no_repository and not isinstance(error, GatedRepoError) and cached_in is None:
            return None
        if not isinstance(error, HFValidationError) and _is_known_to_be_missing(model, name, revision, cached_in):
            return None
        raise _unknown(model, name, error) from error


def _is_known_to_be_missing(model: str, name: str, revision: str | None, cached_in: Path | None) -> bool:
    """Whether the local cache says that a repository has no such file."""
    found = try_to_load_from_cache(model, name, revision=revision, cache_dir=cached_in)
    if found is huggingface_hub._CACHED_NO_EXIST:
        return True
    # Older versions do not keep the list of a repository's files.
    listing = getattr(huggingface_hub, "get_cached_repo_tree", None)
    if listing is None:
        return False
    try:
        return name not in {file.path for file in listing(model, revision=revision, cache_dir=cached_in)}
    except huggingface_hub.errors.CachedRepoTreeNotFoundError:
        return False


def _unknown(model: str, name: str, error: Exception) -> CannotTell:
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CannotTell(
        f"{model}: cannot find out whether it has {name} ({type(error).__name__}: {cause}). With that file a model "
        "reasons in continuous thoughts, and without thoughts its answers would be wrong. Download the whole "
        "repository and serve its folder, or connect to the hub with access to the repository; for an ordinary model, "
        "set VLLM_PLUGINS= (empty), which leaves this plugin out"
    )
