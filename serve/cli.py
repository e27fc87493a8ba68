"""The command line: ``python -m serve api`` (also ``coconut-serve``) and ``python -m serve app``."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coconut_ds.cli.parser import Parser
from coconut_ds.errors import CoconutError, ConfigError, paths_checked
from coconut_ds.packages import needs
from serve.api.prefix import root_path_of
from serve.limits import EngineSettings, Limits

KEY_VARIABLE = "COCONUT_API_KEY"
RUNS = "outputs"
"""Default folder of runs."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until the process gets a signal. Returns the exit code, which is 2 for an error that the user can fix."""
    arguments = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        with paths_checked():
            _serve(arguments)
    except CoconutError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def api_main() -> int:
    """Entry point of ``coconut-serve``: ``python -m serve api``."""
    return main(["api", *sys.argv[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m serve", description="Serves checkpoints: over HTTP, or in a browser app.")
    commands = parser.add_subparsers(dest="command", required=True)
    api = commands.add_parser("api", help="serve the HTTP API")
    add_checkpoints(api, "--checkpoint", required=True)
    api.add_argument("--app", action="store_true", help="also serve the browser app, at /app")
    api.add_argument(
        "--api-key-file",
        type=Path,
        help="file with the API key that clients must send; default: the environment variable COCONUT_API_KEY",
    )
    add_options(api, port=8000)
    app = commands.add_parser("app", help="serve the browser app, and the HTTP API with it")
    add_checkpoints(app, "--runs")
    app.set_defaults(app=True)
    app.add_argument(
        "--login",
        type=Path,
        metavar="FILE",
        dest="api_key_file",
        help="file with the password that visitors must type, with any user name; default: the environment variable "
        "COCONUT_API_KEY",
    )
    add_options(app, port=7860)
    return parser


def add_checkpoints(parser: argparse.ArgumentParser, name: str, **more: Any) -> None:
    """Adds the option that names the checkpoints to serve."""
    parser.add_argument(
        name,
        action="append",
        dest="checkpoint",
        metavar="[NAME=]PATH",
        help="a model folder, a run's folder or a folder that contains runs; may be given several times",
        **more,
    )


def add_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Adds the options that both commands share; ``port`` is the default port."""
    limits, settings = Limits(), EngineSettings()
    # As long as there are options: one statement for each.
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=port, help="port to listen on; 0 chooses a free one")
    add(
        "--root-path",
        metavar="PATH",
        help="path under which a reverse proxy offers the server, such as /models; default: what the proxy sends as "
        "X-Forwarded-Prefix, which '/' makes the server ignore",
    )
    add(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="file of problems that the app offers; may be given several times",
    )
    add("--no-key", action="store_true", help="allow other machines to connect without a key")
    add(
        "--dtype",
        default=settings.dtype,
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the weights and the key/value cache",
    )
    add(
        "--tf32",
        action="store_true",
        help="on CUDA, multiply fp32 matrices in TF32, with 10 bits of mantissa instead of 23; an A100 then multiplies "
        "at most 156 instead of 19.5 TFLOP/s",
    )
    add("--device", help="torch device that models run on; default: the accelerator if there is one, else the CPU")
    add("--slots", type=int, default=settings.slots, help="completions per model that run at the same time")
    add(
        "--max-positions",
        type=int,
        default=settings.max_positions,
        help="maximum length of a completion in positions: prompt, thoughts and text together",
    )
    add("--threads", type=int, help="CPU threads of a forward pass; default: torch's default")
    add(
        "--memory-gb",
        type=float,
        help="memory for the weights and caches of all loaded models, in GB (1e9 bytes); default: 0.8 of the memory of "
        "a CUDA device, otherwise 0.5 of the machine's memory",
    )
    add(
        "--load",
        action="store_true",
        help="load the first checkpoint at startup (with the app: the one that it selects initially) and exit with an "
        "error if that fails",
    )
    for name, what in LIMITS.items():
        kind = type(getattr(limits, name))
        add(f"--{name.replace('_', '-')}", type=kind, default=getattr(limits, name), help=what)


LIMITS = {
    "body_bytes": "maximum size of a request's body in bytes",
    "max_prompts": "maximum number of prompts per request",
    "max_prompt_tokens": "maximum length of a prompt in tokens",
    "max_new_tokens": "maximum number of generated tokens per completion",
    "max_samples": "maximum n (completions per prompt)",
    "max_completions": "maximum number of completions per request (prompts times n)",
    "max_thoughts": "maximum number of thoughts per completion",
    "max_waiting": "maximum number of completions per model that wait for a slot; further requests get status 429",
    "request_s": "maximum duration of a request in seconds, including waiting",
    "drain_s": "seconds that running requests may still take after the server is asked to stop",
}
"""Limits that can be set on the command line, and their help texts."""


def _serve(arguments: argparse.Namespace) -> None:
    arguments.checkpoint = arguments.checkpoint or [RUNS]
    settings, limits = settings_of(arguments)
    if arguments.root_path is not None:
        arguments.root_path = root_path_of(arguments.root_path)
    key = read_key(arguments.api_key_file)
    check_host(arguments.host, key, arguments.no_key)
    # Imported here so that an invalid command line is refused before torch is loaded.
    with needs("serve"):
        from serve.launch import start

    start(arguments, settings, limits, key)


def settings_of(arguments: argparse.Namespace) -> tuple[EngineSettings, Limits]:
    """The engine settings and limits that the options specify.

    Raises:
        ConfigError: a number is out of range.
    """
    settings = EngineSettings(
        arguments.slots, arguments.max_positions, arguments.dtype, arguments.device, arguments.tf32
    )
    limits = Limits(**{name: getattr(arguments, name) for name in LIMITS})
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads {arguments.threads}: expected 1 or more")
    return settings, limits


def read_key(file: Path | None) -> str | None:
    """Reads the API key from a file, or from the environment if ``file`` is None. Returns None if there is no key.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"key file {file}: cannot be read ({error})") from error
    if not key:
        raise ConfigError(f"key file {file}: is empty; expected the API key or password")
    return key


def check_host(host: str, key: str | None, no_key: bool) -> None:
    """Refuses to listen on other interfaces than loopback without a key, unless ``no_key`` allows it.

    Raises:
        ConfigError: the host is not a loopback address, there is no key, and ``no_key`` is False.
    """
    if host not in LOOPBACK and key is None and not no_key:
        raise ConfigError(
            f"--host {host}: other machines could use this server without a key; set COCONUT_API_KEY or give a key "
            "file (--api-key-file, or --login for the app), or pass --no-key to allow it"
        )
