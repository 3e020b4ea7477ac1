"""What tests of the examples share: an example is run as it is, with --tiny and without a network."""

from __future__ import annotations

import re
import runpy
import socket
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run an example with some arguments; its text comes back. Nothing can be downloaded."""

    def refuse(*args: object) -> None:
        raise OSError("a test may not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as for `python examples/llava.py`

    def running(name: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [str(EXAMPLES / name), "--tiny", *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return running


def lengths(text: str) -> tuple[int, int]:
    """Tokens of the prompt that the language model reads, and of the whole one."""
    found = re.search(r"reads a prompt of (\d+) tokens instead of (\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def blocks(document: str) -> list[str]:
    """The Python of a document, block by block."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
