"""The formats in which other projects publish models that think, and how to recognise them.

======================  ==============================================================================================
``reference``           facebookresearch/coconut: a state dict, its names with the prefix ``base_causallm.`` (models
                        that think) or without
``sim_cot``             internlm/SIM_COT-*: the same with an auxiliary decoder (on Coconut), or CODI's with one
``codi``                zen-E/CODI-*: a state dict of a model with LoRA (``codi.``) and a projection (``prj.``)
``latent_tts``          ModalityDance/latent-tts-coconut, latent-tts-codi, slpo-*: a Hugging Face folder whose tokenizer
                        has the markers; CODI's projection is in ``prj.pt`` or in the model's weights
``svp``                 jihwan1205/svp-*: the same for Coconut; for CODI a merged folder with ``projector.pt``
======================  ==============================================================================================
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from coconut_ds.errors import CheckpointError
from coconut_ds.files import SEAL
from coconut_ds.model.card import CARD
from coconut_ds.model.folder_files import read_object

FormatName = Literal["reference", "sim_cot", "codi", "latent_tts", "svp"]
Kind = Literal["coconut_state", "codi_state", "folder"]
"""How a format is read: a state dict of Coconut's model or of CODI's, or a Hugging Face folder."""
COCONUT_PREFIX, CODI_PREFIX = "base_causallm.", "codi."
COCONUT_DECODER, CODI_DECODER = "expainable_llm.", "decoder."
"""What precedes the names of SIM-CoT's auxiliary decoder, which takes part in training only; the first is spelled as in
its files."""
PROJECTIONS = ("prj.pt", "projector.pt")
"""Files with CODI's projection beside a Hugging Face folder: of LatentTTS, and of SVP's conversion."""
OWN_CLASSES = ("COCONUTGPT2", "CODIGPT2")
"""The classes that LatentTTS's configurations name."""


@dataclass(frozen=True)
class Published:
    """What a file or folder was recognised as."""

    format: FormatName
    kind: Kind
    thinks: bool = True
    """False: a state dict without Coconut's prefix, whose method cannot be told."""
    n_thoughts: int | None = 6
    """The number of thoughts with which the authors of such checkpoints evaluate them; None: it differs."""
    classes: tuple[str, ...] = ()
    """The classes of the model that a folder's ``config.json`` names."""


def recognised(place: Path, names: Iterable[str], wanted: str = "auto") -> Published:
    """What a published checkpoint is.

    Args:
        place: the file or folder.
        names: the names of its tensors.
        wanted: the format that the user gave; ``auto``: not known.

    Raises:
        CheckpointError: it is none of the formats, or not the wanted one.
    """
    found = _recognised(place, list(names))
    # The two formats have the same files where the model is a Coconut.
    is_either = found.kind == "folder" and not any((place / name).is_file() for name in PROJECTIONS)
    if is_either and wanted in ("latent_tts", "svp"):
        return replace(found, format="svp" if wanted == "svp" else "latent_tts")
    if wanted not in ("auto", found.format):
        raise CheckpointError(
            f"{place}: is not in the format {wanted}; its files look like {found.format}: leave --format out"
        )
    return found


def _recognised(place: Path, names: list[str]) -> Published:
    if place.is_dir() and (place / CARD).is_file():
        raise CheckpointError(f"{place}: is a model folder of this project ({CARD}) already; use it as it is")
    if any(name.startswith(CODI_PREFIX) for name in names):
        decoder = any(name.startswith(CODI_DECODER) for name in names)
        return Published("sim_cot" if decoder else "codi", "codi_state")
    if any(name.startswith(COCONUT_PREFIX) for name in names):
        if any(name.startswith(COCONUT_DECODER) for name in names):
            # Its authors evaluate with c_thought 2 and max_latent_stage 5, at a later stage (InternLM/SIM-CoT#14).
            return Published("sim_cot", "coconut_state", n_thoughts=10)
        return Published("reference", "coconut_state", n_thoughts=None)
    if place.is_dir() and (place / "config.json").is_file() and (place / "config.json").stat().st_size:
        classes = read_object(place / "config.json").get("architectures") or []
        is_own = (place / PROJECTIONS[0]).is_file() or any(name in OWN_CLASSES for name in classes)
        return Published("latent_tts" if is_own else "svp", "folder", classes=tuple(map(str, classes)))
    if place.is_dir() and (place / SEAL).is_file():
        raise CheckpointError(f"{place}: config.json is missing; copy or download the folder again")
    return Published("reference", "coconut_state", thinks=False, n_thoughts=None)
