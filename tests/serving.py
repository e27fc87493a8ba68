"""A real server process over tiny checkpoints, for tests and scripts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from launching import Process, start
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from coconut_ds.model.backbone import build_backbone
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.checkpoint import save_model
from coconut_ds.settings import ModelConfig

ROOT = Path(__file__).resolve().parent.parent
POSITIONS = 256
SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "initializer_range": 0.2}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte and a few words, so that characters beyond ASCII are several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", *alphabet])}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def thirteen_tokens() -> PreTrainedTokenizerFast:
    """A word-level tokenizer which, with the three markers, makes a vocabulary of 13 tokens."""
    words = ["<|endoftext|>", "[UNK]", *"abcdefgh"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="[UNK]")


def save_checkpoint(
    folder: Path,
    method: str = "coconut",
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    positions: int = POSITIONS,
    **changes: float,
) -> Path:
    """Saves a model with random weights that produces two thoughts per question; its default tokens are bytes.

    ``changes``: entries of the model's configuration that differ from ``SHAPE``.
    """
    torch.manual_seed(seed)
    shape = {**SHAPE, "n_positions": positions, **changes}
    settings = ModelConfig(model_id="gpt2", model_init="scratch", tokenizer="dataset", model_config_overrides=shape)
    backbone = build_backbone(settings, tokenizer or byte_tokenizer())
    card = ModelCard(method, 1, 2 if method.startswith("coconut") else 0, 2, 1, marker_table(backbone.markers))
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, card)
    return folder


def copy_checkpoint(checkpoint: Path, folder: Path) -> Path:
    """Copies a checkpoint without its seal, so that its files may be changed."""
    shutil.copytree(checkpoint, folder)
    (folder / "manifest.json").unlink()
    return folder


def change_json(path: Path, **values: object) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class ServerProcess:
    """A running ``python -m serve api``."""

    def __init__(self, process: Process, key: str | None) -> None:
        self.process, self.key = process, key
        self.lines: list[str] = []
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"running on (http://[\d.]+:\d+)", line):
                self.url = found[1]

    @property
    def log(self) -> str:
        """Everything the server has written to standard error."""
        return "".join(self.lines)

    def client(self, **options: object) -> httpx.Client:
        """An HTTP client for this server, with its key. It loads no certificates, which takes 25 ms of CPU."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=False, **options)

    def metric(self, name: str, **labels: str) -> float:
        """A value of ``/metrics``, summed over all labels that are not given."""
        with self.client() as client:
            text = client.get("/metrics").text
        total = 0.0
        for line in text.splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == f"coconut:{name}" and all(f'{k}="{v}"' in head for k, v in labels.items()):
                total += float(value)
        return total

    def wait_until_ready(self, limit_s: float = 180.0) -> None:
        """Waits until ``/health`` answers 200."""
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            assert self.process.poll() is None, self.log
            if self.url:
                try:
                    if httpx.get(self.url + "/health", timeout=5, verify=False).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
            time.sleep(0.02)
        raise AssertionError(f"not ready within {limit_s} s: {self.log}")

    def stop(self, sig: int = signal.SIGTERM, limit_s: float = 30.0) -> int:
        """Sends a signal, waits for the process to end, and returns its exit code."""
        self.process.send_signal(sig)
        code = self.process.wait(limit_s)
        self._reader.join(5)
        return code


@contextmanager
def serving(*checkpoints: Path | str, **options: Any) -> Iterator[ServerProcess]:
    """A server that is ready; arguments: see ``starting``."""
    with starting(*checkpoints, **options) as server:
        server.wait_until_ready()
        yield server


@contextmanager
def starting(
    *checkpoints: Path | str,
    key: str | None = None,
    options: tuple[str, ...] = (),
    real: bool = False,
    program: tuple[str, ...] = ("-m", "serve"),
    descriptors: int | None = None,
) -> Iterator[ServerProcess]:
    """A server that has just been started. It is killed at the end, if it still runs.

    Args:
        checkpoints: what it serves.
        key: the API key that it requires.
        options: further options of the command line.
        real: whether it is a fresh process instead of a forked one; also if ``descriptors`` is given.
        program: what is run, if not the server itself.
        descriptors: number of files that it may open.
    """
    command = [*program, "api", "--port", "0", "--threads", "1", *options]
    for checkpoint in checkpoints:
        command += ["--checkpoint", str(checkpoint)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("COCONUT_API_KEY", None)
    if key is not None:
        environment["COCONUT_API_KEY"] = key
    if real or descriptors is not None:
        command = [sys.executable, *command]
        if descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        process: Process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    else:
        process = start(command, environment, cwd=ROOT, stderr=subprocess.PIPE)
    server = ServerProcess(process, key)
    try:
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        server._reader.join(5)
        assert process.stderr is not None
        process.stderr.close()
