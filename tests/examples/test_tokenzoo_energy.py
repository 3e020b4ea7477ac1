"""The example of a plugin, as a stranger has it: installed by pip, found, attached, checked, and gone."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "tokenzoo-energy"

# One process for all that needs the installed plugin, torch and a model.
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

by_hand = tokenzoo.build(zoo.recipe)
for name, saved in {"by name": zoo, "by hand": by_hand}.items():
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


@pytest.fixture(scope="module")
def place(make_place):
    """Where the example is installed; the folder has nothing of it."""
    place = make_place()
    before = place.run("tokenzoo describe energy")
    assert before.returncode == 2, before.stdout
    assert "no recipe or part 'energy'" in before.stdout
    copy = shutil.copytree(EXAMPLE, place.folder.parent / "copy", dirs_exist_ok=True)
    installed = place.run(f"pip install --quiet '{copy}'")
    assert installed.returncode == 0, installed.stdout
    return place


def test_the_module_is_small():
    module = EXAMPLE / "tokenzoo_energy.py"
    lines = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            lines |= set(range(node.lineno, (body[0].lineno if body else node.end_lineno + 1)))
            lines |= {decorator.lineno for decorator in getattr(node, "decorator_list", [])}
    assert 15 < len(lines) < 30


def test_it_is_found_by_its_entry_point_and_used_on_a_model(place):
    result = place.run("python -", stdin=USE)
    assert result.returncode == 0, result.stdout
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["value"] == "tokenzoo_energy"
    assert said["distribution"] == "tokenzoo-energy"
    assert said["requires"][0] == "tokenzoo>=0.1"
    assert not said["imported before"]
    assert said["scorers"] == ["energy"]
    assert said["recipes"] == ["energetic"]
    assert Path(said["file"]).is_relative_to(place.environment)
    assert said["counts"] == said["planned"] == [196, 123, 123, 50]
    assert said["needs"] == []
    for fact in ("finite", "another result", "bare again", "by name", "by hand"):
        assert said[fact], fact


def test_the_commands_list_and_check_it(place):
    result = place.run("tokenzoo list; tokenzoo check tokenzoo_energy:Energy --examples 3")
    assert result.returncode == 0, result.stdout
    words = " ".join(result.stdout.split())
    assert "energetic block Drop the tokens with the least energy, a few in every second" in words
    assert "Energy(power=2.0), scorer: " in words
    assert "✗" not in result.stdout


def test_a_broken_part_is_told_what_is_wrong(place):
    (place.folder / "louder.py").write_text(BROKEN)
    result = place.run("tokenzoo check louder:Louder")
    assert result.returncode == 1, result.stdout
    assert "breaks the law 'batch_independent': An image alone has the result" in result.stdout
    for part in ("expected: ", "found: ", "smallest example:", "read: "):
        assert f"\n  {part}" in result.stdout


def test_it_goes_without_a_trace(place):
    result = place.run("pip uninstall --quiet --yes tokenzoo-energy 2>&1 && python -", stdin=GONE)
    assert result.returncode == 0, result.stdout
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["scorers"] == said["recipes"] == []
    assert said["by name"].startswith("UnknownNameError: no recipe 'energetic'; ")
    assert said["by hand"].startswith("UnknownNameError: no scorer 'energy'; ")
