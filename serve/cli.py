"""``python -m serve api`` (``coconut-serve``) and ``python -m serve app``: the command line."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coconut_ds.cli.parser import Parser
from coconut_ds.errors import CoconutError, ConfigError
from serve.limits import EngineSettings, Limits

KEY_VARIABLE = "COCONUT_API_KEY"
RUNS = "outputs"
"""Where runs lie, if nothing else is said."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def main(argv: Sequence[str] | None = None) -> int:
    """Serves. Returns the exit code: 2 for an error to mend."""
    arguments = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        _serve(arguments)
    except CoconutError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def api_main() -> int:
    """``coconut-serve``, which has one command."""
    return main(["api", *sys.argv[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m serve", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    api = commands.add_parser("api", help="the HTTP API")
    add_checkpoints(api, "--checkpoint", required=True)
    api.add_argument("--app", action="store_true", help="the app too, at /app")
    api.add_argument(
        "--api-key-file", type=Path, help="the key that clients send; else COCONUT_API_KEY of the environment"
    )
    add_options(api, port=8000)
    app = commands.add_parser("app", help="the app, for a browser; the HTTP API beside it")
    add_checkpoints(app, "--runs")
    app.set_defaults(app=True)
    app.add_argument(
        "--login",
        type=Path,
        metavar="FILE",
        dest="api_key_file",
        help="holds the password that visitors type, with any name; else COCONUT_API_KEY of the environment",
    )
    add_options(app, port=7860)
    return parser


def add_checkpoints(parser: argparse.ArgumentParser, name: str, **more: Any) -> None:
    """The option that says what is served."""
    parser.add_argument(
        name,
        action="append",
        dest="checkpoint",
        metavar="[NAME=]PATH",
        help="a model folder, a run's folder or a folder with runs; may be given several times",
        **more,
    )


def add_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Options of a server, with its usual port."""
    limits, settings = Limits(), EngineSettings()
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=port)
    add("--data", type=Path, action="append", default=[], metavar="FILE", help="problems that the app offers")
    add("--no-key", action="store_true", help="serve other machines without a key")
    add("--dtype", default=settings.dtype, choices=("float32", "bfloat16", "float16"))
    add("--device", help="default: the accelerator where there is one")
    add("--slots", type=int, default=settings.slots, help="completions that run at a time, a model")
    add("--max-positions", type=int, default=settings.max_positions, help="prompt, thoughts and text of a completion")
    add("--threads", type=int, help="CPU threads of a pass; default: torch's")
    add("--memory-gb", type=float, help="weights and caches of all loaded models; default: half of what there is")
    add(
        "--load",
        action="store_true",
        help="load the first checkpoint before any request; with the app, the one it shows",
    )
    for name, what in LIMITS.items():
        kind = type(getattr(limits, name))
        add(f"--{name.replace('_', '-')}", type=kind, default=getattr(limits, name), help=what)


LIMITS = {
    "body_bytes": "longest body",
    "max_prompts": "prompts a request",
    "max_prompt_tokens": "longest prompt",
    "max_new_tokens": "longest text",
    "max_samples": "greatest n",
    "max_completions": "prompts times n",
    "max_thoughts": "most thoughts",
    "max_waiting": "completions that wait, a model; more are answered 429",
    "request_s": "seconds a request may take, waiting included",
    "drain_s": "seconds running requests may take once the server was told to stop",
}
"""Limits that can be set, and what they are."""


def _serve(arguments: argparse.Namespace) -> None:
    arguments.checkpoint = arguments.checkpoint or [RUNS]
    settings, limits = settings_of(arguments)
    key = read_key(arguments.api_key_file)
    check_host(arguments.host, key, arguments.no_key)
    # Imported here, so that a wrong command line is refused before torch is loaded.
    from serve.launch import start

    start(arguments, settings, limits, key)


def settings_of(arguments: argparse.Namespace) -> tuple[EngineSettings, Limits]:
    """What the options say.

    Raises:
        ConfigError: a number makes no sense.
    """
    settings = EngineSettings(arguments.slots, arguments.max_positions, arguments.dtype, arguments.device)
    limits = Limits(**{name: getattr(arguments, name) for name in LIMITS})
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads {arguments.threads}: expected 1 or more")
    return settings, limits


def read_key(file: Path | None) -> str | None:
    """The API key: of a file, else of the environment; None: there is none.

    Raises:
        ConfigError: the file cannot be read, or holds nothing.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--api-key-file {file}: cannot be read ({error})") from error
    if not key:
        raise ConfigError(f"--api-key-file {file}: is empty; expected a key")
    return key


def check_host(host: str, key: str | None, no_key: bool) -> None:
    """Refuses to serve other machines without a key, unless that is what is wanted.

    Raises:
        ConfigError: says what to set.
    """
    if host not in LOOPBACK and key is None and not no_key:
        raise ConfigError(
            f"--host {host}: other machines can reach this server; set COCONUT_API_KEY or --api-key-file, or --no-key"
        )
