"""The command line: ``python -m serve api`` (also ``coconut-serve``) and ``python -m serve app``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coconut_ds.cli.late_imports import late_imports
from coconut_ds.cli.parser import Parser, exit_code
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.errors import ConfigError
from coconut_ds.files import released_checkpoints
from coconut_ds.packages import needs
from serve.heap import use_one_heap
from serve.limits import EngineSettings, Limits
from serve.monitoring.logs import set_up_logging
from serve.network.stopping import leave_if_busy, stopping_at_once
from serve.options.access import access_of, add_access_options
from serve.options.logs import add_log_options
from serve.options.network import add_network_options, network_of

RUNS = "outputs"
"""Folder of runs that the app shows by default."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until the process gets a signal. Returns the exit code, which is 2 for an error that the user can fix."""
    prepare_streams(outlives_readers=True)
    use_one_heap()
    arguments = _parser().parse_program(sys.argv[1:] if argv is None else argv, "coconut-serve", subcommand="api")
    set_up_logging(arguments.log_json)
    with stopping_at_once():
        return exit_code(lambda: _serve(arguments))


def api_main() -> int:
    """Entry point of ``coconut-serve``: ``python -m serve api``."""
    return run(["api", *sys.argv[1:]])


def run(argv: Sequence[str] | None = None) -> int:
    """Like ``main``, for a process that does nothing else: it ends even if threads still compute."""
    code = main(argv)
    leave_if_busy(code)
    return code


def _parser() -> Parser:
    parser = Parser(prog="python -m serve", description="Serves checkpoints: over HTTP, or in a browser app.")
    commands = parser.add_subparsers(dest="command", required=True)
    api = commands.add_parser("api", help="serve the HTTP API")
    add_checkpoints(api, "--checkpoint", required=True)
    api.add_argument("--app", action="store_true", help="also serve the browser app, at /app")
    add_access_options(api, "--api-key-file", "file with the API key that clients must send, or with several")
    add_options(api, port=8000)
    app = commands.add_parser("app", help="serve the browser app, and the HTTP API with it")
    add_checkpoints(app, "--runs")
    app.set_defaults(app=True)
    login = "file with the password that visitors must type, with any user name, or with several"
    add_access_options(app, "--login", login, metavar="FILE")
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
    add_network_options(parser, port)
    add_log_options(parser)
    add(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="file of problems that the app offers; may be given several times",
    )
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
        "--spare-slots",
        type=int,
        help="further slots, for clients that hold less than an equal share while others hold all slots; default: an "
        "eighth of --slots, at least 1",
    )
    add(
        "--max-positions",
        type=int,
        default=settings.max_positions,
        help="maximum length of a completion in positions: prompt, thoughts and text together",
    )
    add(
        "--piece",
        type=int,
        help="positions of prompts that are encoded between two steps of a few running completions; longer prompts are "
        "encoded in several pieces; default: on a CPU 96 in float32 and 256 in other types, on a GPU 1024",
    )
    add("--threads", type=int, help="CPU threads of a forward pass; default: torch's default")
    add(
        "--memory-gb",
        type=float,
        help="memory for the weights and caches of all loaded models, in GB (1e9 bytes); default: 0.8 of the memory of "
        "a CUDA device, otherwise 0.5 of the machine's memory, or of its container's limit if that is smaller",
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
    "max_probabilities": "maximum number of probabilities in an answer: completions times tokens times (1 + logprobs), "
    "and completions times thoughts times thought_top_k",
    "max_waiting": "maximum number of completions per model that wait for a slot; further requests get status 429",
    "client_room": "number of completions per model that each client may have even if others fill the queue",
    "request_s": "maximum duration of a request in seconds, including waiting",
    "stream_comment_s": "seconds after which a stream that has nothing to send gets a comment line, so that proxies do "
    "not end it",
    "drain_s": "seconds that running requests may still take after the server is asked to stop",
}
"""Limits that can be set on the command line, and their help texts."""


def _serve(arguments: argparse.Namespace) -> None:
    # Of the places that it shows by default, one that cannot be served does not keep the others from visitors.
    arguments.skip_refused = not arguments.checkpoint
    arguments.checkpoint = arguments.checkpoint or default_checkpoints()
    settings, limits = settings_of(arguments)
    access, network = access_of(arguments), network_of(arguments)
    # Imported here so that an invalid command line is refused before torch is loaded.
    with needs("serve"), late_imports():
        from serve.launch import start

    start(arguments, settings, limits, access, network)


def default_checkpoints() -> list[str]:
    """What the app shows if the command line names nothing: the folder of runs, if any, and released checkpoints."""
    released = released_checkpoints()
    return [RUNS] * Path(RUNS).is_dir() + [str(released)] * released.is_dir() or [RUNS]


def settings_of(arguments: argparse.Namespace) -> tuple[EngineSettings, Limits]:
    """The engine settings and limits that the options specify.

    Raises:
        ConfigError: a number is out of range.
    """
    settings = EngineSettings(
        arguments.slots,
        arguments.max_positions,
        arguments.dtype,
        arguments.device,
        arguments.tf32,
        arguments.spare_slots,
        arguments.piece,
    )
    limits = Limits(**{name: getattr(arguments, name) for name in LIMITS})
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads {arguments.threads}: expected 1 or more")
    return settings, limits
