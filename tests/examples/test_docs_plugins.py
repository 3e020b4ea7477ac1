"""docs/plugins.md leads where it says: every block is run, in its order, and prints what is shown.

What it builds is the example of a plugin, which is then looked at as a stranger has it: installed by pip,
found, attached, checked, and gone.
"""

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

# Runs all texts of Python in one process and says what each has printed, the error included. A few examples
# do: whether parts have the properties of their kind is the business of tests/properties.
RUN = """
import contextlib, functools, io, json, sys
from tokenzoo import testing

for check in ("scorer", "matcher", "merger", "schedule"):
    given = functools.partial(getattr(testing, f"check_{check}"), examples=10)
    setattr(testing, f"check_{check}", given)
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


# What is asked of the installed plugin, before the blocks are run in the same process.
USE = """
import json, sys
from importlib.metadata import entry_points

import timm, torch
import tokenzoo

(entry,) = entry_points(group="tokenzoo", name="energy")
said = {"value": entry.value, "distribution": entry.dist.name, "requires": entry.dist.requires}
said["imported before"] = "tokenzoo_energy" in sys.modules
said["scorers"] = tokenzoo.list_scorers("energ*")
said["recipes"] = tokenzoo.list_recipes("energ*")
said["file"] = sys.modules["tokenzoo_energy"].__file__

torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224", depth=4, embed_dim=48, num_heads=2, num_classes=3).eval()
images = torch.randn(2, 3, 224, 224)
bare = vit(images)
zoo = tokenzoo.build("energetic", keep=50, power=1.0)
with zoo.attach(vit) as attached:
    reduced = vit(images)
    said["counts"], said["planned"] = attached.counts, attached.plan().blocks
    said["finite"] = bool(reduced.isfinite().all())
    said["another result"] = not torch.equal(reduced, bare)
    said["needs"] = sorted(zoo.recipe.needs)
said["bare again"] = torch.equal(vit(images), bare)

for name, saved in {"by name": zoo, "by hand": tokenzoo.build(zoo.recipe)}.items():
    saved.save(f"{name}.json")
    said[name] = tokenzoo.load(f"{name}.json").recipe == zoo.recipe
print(json.dumps(said))
"""

GONE = """
import json
import tokenzoo

said = {"scorers": tokenzoo.list_scorers("energ*"), "recipes": tokenzoo.list_recipes("energ*")}
for name in ("by name", "by hand"):
    try:
        tokenzoo.load(f"{name}.json")
    except tokenzoo.TokenzooError as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""

BROKEN = """
from tokenzoo_energy import Energy

class Louder(Energy):
    def score(self, evidence):
        score = super().score(evidence)
        return score - score.mean(0)          # over the batch: looks at other images
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
def printed(place):
    """What each block prints, in a place that was empty, and what `USE` does: by its text."""
    found = {}
    for block in blocks():
        if block.file:
            (place.folder / block.file).write_text(block.text)
        elif block.language == "sh":
            result = place.run(block.text)
            assert result.returncode == 0, result.stdout
            found[block] = result.stdout
    python = [block for block in blocks() if block.language == "python" and not block.file]
    elsewhere = place.folder / "elsewhere"  # where the module is the installed one
    elsewhere.mkdir()
    (elsewhere / "run.py").write_text(RUN)
    result = place.run(
        "python elsewhere/run.py", stdin=json.dumps([USE, *(block.text for block in python)])
    )
    assert result.returncode == 0, result.stdout
    said = json.loads(result.stdout.splitlines()[-1])
    return found | dict(zip([USE, *python], said, strict=True))


@pytest.mark.parametrize("block", [b for b in blocks() if not b.file], ids=lambda b: b.text[:40])
def test_a_block_prints_what_is_shown(block, printed):
    assert block.language in ("python", "sh")
    assert shows(block.shown, printed[block]), printed[block]


def test_the_files_are_those_of_the_example():
    files = {block.file: block.text for block in blocks() if block.file}  # the last version counts
    for name in ("tokenzoo_energy.py", "pyproject.toml", "test_energy.py"):
        path = EXAMPLE / ("tests" if name == "test_energy.py" else "") / name
        assert files[name] == path.read_text(), name


def test_every_hook_is_there_with_its_signature():
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("tokenzoo_")}
    assert len(hooks) == 7
    for name, hook in hooks.items():
        signature = str(inspect.signature(hook)).replace("'", "")
        assert f"| `{name}{signature}` |" in TEXT


def test_every_need_and_every_check_is_there():
    table = TEXT.partition("## Evidence")[2].partition("\n\n```")[0]
    checks = [name for name in testing.__all__ if name.startswith("check_")]
    assert len(checks) == 6
    assert [name for name in evidence.NAMES if f"`{name}`" not in table] == []
    assert [name for name in checks if f"`{name}`" not in TEXT] == []


def test_what_is_shown_can_be_wrong():
    assert shows("a ...\nb", "a 1\nb\n")
    assert shows("...\nb\n", "a\nc\nb\n")
    assert not shows("a\nb", "a\nc\n")
    assert not shows("", "UnknownNameError: no\n")


def test_the_module_is_small():
    lines = (EXAMPLE / "tokenzoo_energy.py").read_text().splitlines()
    code = [line for line in lines if line and '"""' not in line]
    assert 15 < len(code) < 30


def test_it_is_found_by_its_entry_point_and_used_on_a_model(place, printed):
    said = json.loads(printed[USE].splitlines()[-1])
    assert Path(said.pop("file")).is_relative_to(place.environment)
    assert said.pop("requires")[0] == "tokenzoo>=0.1"
    assert said == {
        "value": "tokenzoo_energy",
        "distribution": "tokenzoo-energy",
        "imported before": False,
        "scorers": ["energy"],
        "recipes": ["energetic"],
        "counts": [196, 123, 123, 50],
        "planned": [196, 123, 123, 50],
        "needs": [],
        **dict.fromkeys(("finite", "another result", "bare again", "by name", "by hand"), True),
    }


@pytest.mark.usefixtures("printed")
def test_a_broken_part_is_told_what_is_wrong(place):
    (place.folder / "louder.py").write_text(BROKEN)
    result = place.run("tokenzoo check louder:Louder --examples 5")
    assert result.returncode == 1, result.stdout
    assert "violates the property 'batch_independent'" in result.stdout
    for part in ("expected: ", "found: ", "smallest example:", "read: "):
        assert f"\n  {part}" in result.stdout


@pytest.mark.usefixtures("printed")
def test_it_goes_without_a_trace(place):
    result = place.run("pip uninstall --quiet --yes tokenzoo-energy 2>&1 && python -", stdin=GONE)
    assert result.returncode == 0, result.stdout
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["scorers"] == said["recipes"] == []
    assert said["by name"].startswith("UnknownNameError: no recipe 'energetic'; ")
    assert said["by hand"].startswith("UnknownNameError: no scorer 'energy'; ")
