"""A server of vLLM on loopback, with a recipe or without one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenzoo_adapters.vllm.recipe import VARIABLE

from tests.vllm.checkpoints import LENGTH, Answer, Question

START = 300
"""Seconds until a server must answer."""

QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""It asks nobody, and listens on loopback alone."""

SHARED = (
    *("--model-impl", "transformers", "--dtype", "float32", "--enforce-eager"),
    *("--max-model-len", "512", "--max-num-seqs", "4", "--host", "127.0.0.1"),
    *("--served-model-name", "tiny", "--enable-prefix-caching"),
)
CHUNKS = ("--enable-chunked-prefill", "--max-num-batched-tokens", "24")
"""A prompt is read in parts that end within images."""


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str

    def answer(self, question: Question) -> Answer:
        """Answer greedily."""
        body = {"model": "tiny", "messages": question.messages, "temperature": 0}
        body |= {"max_tokens": LENGTH, "ignore_eos": True, "logprobs": True}
        body |= {"add_generation_prompt": False}
        found = self.ask(body)
        chosen = found["choices"][0]["logprobs"]["content"]
        words = tuple(one["token"].strip() for one in chosen)
        return Answer(
            words, tuple(one["logprob"] for one in chosen), found["usage"]["prompt_tokens"]
        )

    def ask(self, body: dict[str, Any]) -> Any:
        """Post a request for a chat; raises for an error of the server."""
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)


def command(folder: str, port: int, options: tuple[str, ...]) -> list[str]:
    """The command that starts a server."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder),
        *("--port", str(port), *options),
    ]


def environment(recipe: Path | None) -> dict[str, str]:
    """Of a server, and of all its processes."""
    found = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return found | QUIET | ({} if recipe is None else {VARIABLE: str(recipe)})


@contextmanager
def serving(
    folder: str, recipe: Path | None, log: Path, options: tuple[str, ...] = (*SHARED, *CHUNKS)
) -> Generator[Server]:
    """Start a server, and stop it at the end; its output goes to `log`."""
    port = _free_port()
    with log.open("w") as file:
        process = subprocess.Popen(
            command(folder, port, options),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(recipe),
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        yield Server(url)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def failing(folder: str, recipe: Path, options: tuple[str, ...]) -> str:
    """What a server that must not start says."""
    done = subprocess.run(
        command(folder, _free_port(), options),
        capture_output=True,
        text=True,
        env=environment(recipe),
        timeout=START,
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the server does not answer:\n{log.read_text()[-4000:]}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
