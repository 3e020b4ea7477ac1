"""docs/plugins.md leads where it says: every block is run, in its order, and prints what is shown."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tokenzoo import evidence, hookspecs, testing

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tokenzoo-energy"
TEXT = (ROOT / "docs" / "plugins.md").read_text()

# Runs all blocks of Python in one process and says what each has printed, the error included.
RUN = """
import contextlib, io, json, sys

said, names = [], {"__name__": "blocks"}
sys.modules["blocks"] = type(sys)("blocks")       # dataclasses look up the module of a class
for text in json.loads(sys.stdin.read()):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            exec(text, names)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    said.append(printed.getvalue())
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Block:
    """A block of the document: the file that it is (or ""), its text, what is shown after it."""

    language: str
    file: str
    text: str
    shown: str


def blocks():
    fence = re.compile(r"(?:<!-- file: (\S+) -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    found = [(language, file or "", text) for file, language, text in fence.findall(TEXT)]
    assert len(found) == TEXT.count("```") // 2
    for block, following in zip(found, [*found[1:], ("", "", "")], strict=True):
        if block[0] != "text":
            yield Block(*block, following[2] if following[0] == "text" else "")


def shows(shown, printed):
    """Whether this was printed: line by line, where "..." stands for anything."""
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    pattern = r"\s*".join(re.escape(line).replace(r"\.\.\.", r"[\s\S]*?") for line in lines)
    return re.fullmatch(pattern, "\n".join(" ".join(line.split()) for line in printed.splitlines()))


@pytest.fixture(scope="module")
def printed(make_place):
    """What each block prints, in a place that was empty."""
    place = make_place()
    found = {}
    for block in blocks():
        if block.file:
            (place.folder / block.file).write_text(block.text)
        elif block.language == "sh":
            result = place.run(block.text)
            assert result.returncode == 0, result.stdout
            found[block] = result.stdout
    python = [block for block in blocks() if block.language == "python" and not block.file]
    (place.folder / "run.py").write_text(RUN)
    result = place.run("python run.py", stdin=json.dumps([block.text for block in python]))
    assert result.returncode == 0, result.stdout
    said = json.loads(result.stdout.splitlines()[-1])
    return found | dict(zip(python, said, strict=True))


@pytest.mark.parametrize("block", [b for b in blocks() if not b.file], ids=lambda b: b.text[:40])
def test_a_block_prints_what_is_shown(block, printed):
    assert block.language in ("python", "sh")
    assert shows(block.shown, printed[block]), printed[block]


def test_the_files_are_those_of_the_example():
    files = {block.file: block.text for block in blocks() if block.file}  # the last version counts
    for name, path in {
        "tokenzoo_energy.py": "tokenzoo_energy.py",
        "pyproject.toml": "pyproject.toml",
        "test_energy.py": "tests/test_energy.py",
    }.items():
        assert files[name] == (EXAMPLE / path).read_text(), name


def test_every_hook_is_there_with_its_signature():
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("tokenzoo_")}
    assert len(hooks) == 7
    for name, hook in hooks.items():
        signature = str(inspect.signature(hook)).replace("'", "")
        assert f"| `{name}{signature}` |" in TEXT


def test_every_need_and_every_check_is_there():
    table = TEXT.partition("## What a part may look at")[2].partition("\n\n```")[0]
    for name in evidence.NAMES:
        assert f"`{name}`" in table, name
    checks = [name for name in testing.__all__ if name.startswith("check_")]
    assert len(checks) == 6
    for name in checks:
        assert f"`{name}`" in TEXT, name


def test_what_is_shown_can_be_wrong():
    assert shows("a ...\nb", "a 1\nb\n")
    assert shows("...\nb\n", "a\nc\nb\n")
    assert not shows("a\nb", "a\nc\n")
    assert not shows("", "UnknownNameError: no\n")
