"""Results on the disk belong to what they were made from, so that one result never replaces another in silence.

A result's *identity* is a flat table of everything that can change one of its numbers, as for runs
(``runs.identity``). It is stored next to the result in ``identity.json``, or inside a picture. A tool computes the
identity first. It may write to a folder or file that is free or that holds a result of the same identity; a result of
another identity is replaced only if the user asks for it with ``overwrite``.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coconut_ds.errors import ConfigError
from coconut_ds.files import faults_of, fingerprints, remove, write_whole
from coconut_ds.runs.identity import differences, signature
from coconut_ds.strict_json import parse_loosely
from coconut_ds.temporary import temporary_folder

FILE = "identity.json"
"""File with the identity of the results in its folder."""
FILES = "files"
"""Its key for the size and the SHA-256 of each file of the results."""
PNG_KEY = "coconut-ds"
"""Key of the PNG text that holds the identity of a picture."""
MOST_SHOWN, MOST_CHARACTERS = 6, 60
"""Limits of a message: number of keys that differ, and characters of a value."""


@dataclass(frozen=True)
class Identity:
    """What a result was made from."""

    values: Mapping[str, Any]
    """Everything that can change a number: dotted keys to plain values; paths are replaced by hashes of contents."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the user asked for, paths included. Only shown: it does not tell results apart."""

    @property
    def signature(self) -> str:
        """A hash (12 hexadecimal digits) of ``values``."""
        return signature(self.values)

    def is_of(self, other: "Identity | None") -> bool:
        """Whether both have the same signature."""
        return other is not None and other.signature == self.signature

    def as_dict(self) -> dict[str, Any]:
        """Signature, values and settings, ready for JSON."""
        return {"signature": self.signature, "identity": dict(self.values), "settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, values: Any) -> "Identity | None":
        """The identity that ``as_dict`` returned; None for anything else."""
        if not isinstance(values, dict) or not isinstance(values.get("identity"), dict):
            return None
        settings = values.get("settings")
        return cls(values["identity"], settings if isinstance(settings, dict) else {})


@dataclass(frozen=True)
class ResultFolder:
    """The folder of one result."""

    path: Path
    identity: Identity
    names: Sequence[str]
    """Glob patterns of the files and folders that a result may consist of, without ``identity.json``. The file of the
    last name is written last, so it marks a complete result."""
    overwrite: bool = False
    """Whether a result of another identity may be replaced, and one of this identity made again."""
    option: str = "out="
    """How the user sets the folder, for messages."""
    overwrite_option: str = "overwrite=true"

    def stored(self) -> Identity | None:
        """The identity of the results in the folder; None if there are none, or if they have no valid identity."""
        return Identity.from_dict(self._read())

    def _read(self) -> dict[str, Any]:
        """The content of ``identity.json``; empty if there is none, or no valid one."""
        try:
            values = parse_loosely((self.path / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    @property
    def is_own(self) -> bool:
        """Whether the folder belongs to a result of this identity, which may be incomplete."""
        return self.identity.is_of(self.stored())

    @property
    def is_free(self) -> bool:
        """Whether the folder holds no result, or does not exist."""
        return not any(self._found())

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds a complete result of this identity, and the user has not asked to make it again."""
        return not self.overwrite and self.is_own and (self.path / self.names[-1]).is_file()

    def damage(self) -> list[str]:
        """Describes each file of a complete result that is not as it was written. A version that stored no hashes has
        none to compare."""
        files = self._read().get(FILES)
        return faults_of(self.path, files) if isinstance(files, dict) else []

    def refuse_other(self) -> None:
        """Refuses a folder with a result of another identity, or of an unknown one (made by an earlier version).

        Raises:
            ConfigError: the folder holds such a result and ``overwrite`` is not set; says what differs, and what to
                type instead.
        """
        if not self.overwrite and not self.is_own and not self.is_free:
            found = ", ".join(sorted(path.name for path in self._found())[:3])
            other = _other(self.stored(), self.identity, f"holds results ({found})")
            raise ConfigError(
                f"{self.option}{self.path}: {other}; nothing was changed: set {self.option} to another folder, or add "
                f"{self.overwrite_option} to replace them"
            )

    def claim(self) -> None:
        """Creates the folder and stores the identity in it, unless it holds a result already.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.is_free:
                self._write_identity()
        except OSError as error:
            raise ConfigError(
                f"{self.option}{self.path}: cannot be created ({error.strerror}); set {self.option} to another folder"
            ) from error

    def take(self) -> None:
        """Creates the folder, removes the files of a result of another identity, and stores this identity.

        Raises:
            ConfigError: as ``refuse_other``.
        """
        self.refuse_other()
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.is_own:
            self._clear()
            self._write_identity()

    @contextmanager
    def replacing(self) -> Iterator[Path]:
        """A new folder for the files of the result; they are moved to the final folder when the block ends.

        Files of an earlier result are removed first. After an error, the final folder is as before.

        Raises:
            ConfigError: as ``refuse_other``.
        """
        self.refuse_other()
        self.path.mkdir(parents=True, exist_ok=True)
        with temporary_folder(self.path) as made:
            yield made
            self.refuse_other()
            files = fingerprints(made)
            self._clear()
            self._write_identity(files)
            for path in sorted(made.iterdir(), key=lambda path: path.name == self.names[-1]):
                os.replace(path, self.path / path.name)

    def _found(self) -> Iterator[Path]:
        return (path for name in (FILE, *self.names) for path in self.path.glob(name))

    def _clear(self) -> None:
        for path in list(self._found()):
            remove(path)

    def _write_identity(self, files: Mapping[str, Any] | None = None) -> None:
        values = self.identity.as_dict() | ({FILES: files} if files else {})
        write_whole(self.path / FILE, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def free_or_own(folder: ResultFolder, beside: Path | None = None) -> ResultFolder:
    """The folder if it is free or belongs to this identity, else another one whose name ends with the signature.

    Args:
        folder: the folder to use if possible.
        beside: the other folder, to whose name the signature is added; None: ``folder.path``.
    """
    if folder.is_own or folder.is_free:
        return folder
    other = beside or folder.path
    return replace(folder, path=other.with_name(f"{other.name}-{folder.identity.signature}"))


def places_to_read(results: ResultFolder, plain: Path) -> list[Path]:
    """Where a stored result may be: the folder, and ``plain`` if an earlier version wrote it, without an identity."""
    return [results.path, *([] if (plain / FILE).exists() or plain == results.path else [plain])]


def refuse_other_picture(path: Path, identity: Identity, option: str) -> None:
    """Refuses to replace a PNG file that was made from something else.

    Args:
        path: the file to write.
        identity: what the new picture is made from.
        option: the option that sets the path, for the message.

    Raises:
        ConfigError: the file exists and has another identity or none; says what differs, and what to type instead.
    """
    if not path.exists() or identity.is_of(stored := _picture_identity(path)):
        return
    raise ConfigError(
        f"{option} {path}: {_other(stored, identity, 'exists')}; it was not changed: set {option} to another file, or "
        "add --overwrite to replace it"
    )


def picture_metadata(identity: Identity) -> dict[str, str]:
    """The ``metadata`` argument of matplotlib's ``savefig`` that stores an identity in a PNG file."""
    # JSON escapes all characters outside of ASCII, since PNG text is Latin-1.
    return {PNG_KEY: json.dumps(identity.as_dict())}


def _picture_identity(path: Path) -> Identity | None:
    # Imported here because most callers write no picture. matplotlib depends on this package.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return Identity.from_dict(parse_loosely(image.info[PNG_KEY]))
    except (OSError, UnidentifiedImageError, KeyError, ValueError, TypeError):
        return None


def _other(stored: Identity | None, new: Identity, what: str) -> str:
    """Says that a result has another identity, and in which keys."""
    if stored is None:
        return f"{what}, and what it was made from is not stored (an earlier version or another program made it)"
    pairs = differences({**stored.settings, **stored.values}, {**new.settings, **new.values})
    shown = [f"{one.key} ({_short(one.left)} there, {_short(one.right)} now)" for one in pairs[:MOST_SHOWN]]
    more = [f"{len(pairs) - MOST_SHOWN} more keys"] if len(pairs) > MOST_SHOWN else []
    return f"{what} made from something else, which differs in {', '.join([*shown, *more])}"


def _short(value: Any) -> str:
    text = repr(value)
    if len(text) <= MOST_CHARACTERS:
        return text
    # Paths often differ only at their ends.
    ends = (MOST_CHARACTERS - 3) // 2
    return f"{text[:ends]}...{text[-ends:]}"
