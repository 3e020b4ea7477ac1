"""Plugins: a third party's parts are as good as ours, and whatever is wrong names the plugin."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import tokenzoo
from tests.refusals import refused
from tokenzoo import Recipe, Stage, Step, hookspecs, plugins
from tokenzoo.errors import PluginError, UnknownNameError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipes import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.testing import check


@dataclass(frozen=True)
class Energy(tokenzoo.Scorer):
    """The mean power of the features."""

    power: float = 2.0

    def score(self, evidence: tokenzoo.Evidence) -> torch.Tensor:
        return evidence.x.float().abs().pow(self.power).mean(-1)  # [b, n]


def energy(*, keep: int | float = 0.25, power: float = 2.0) -> Recipe:
    """Keep the tokens with the most energy."""
    match = SelectAssign(TopK(Energy(power)), Drop())
    return Recipe(Step(Stage.FEATURES, Once(), match, Identity()), keep=keep)


def plugin(**hooks: Callable[..., Any]) -> ModuleType:
    """A module that says this."""
    module = ModuleType("throw_away")
    for name, hook in hooks.items():
        hook.__name__ = name
        setattr(module, name, tokenzoo.hookimpl(hook))
    return module


def scorer(name: str) -> ModuleType:
    return plugin(tokenzoo_scorers=lambda: {name: Energy})


def registering(module: ModuleType, name: str) -> Callable[[], None]:
    def call() -> None:
        with plugins.registered(module, name):
            pass

    return call


# ------------------------------------------------------------------------- a third party's part


def test_a_third_partys_scorer_is_one_of_ours(tmp_path: Path) -> None:
    ours = plugin(
        tokenzoo_scorers=lambda: {"energy": Energy}, tokenzoo_recipes=lambda: {"energetic": energy}
    )
    x = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    assert check(Energy(1.5), examples=5, max_tokens=12) is None
    with plugins.registered(ours):
        assert "energy" in tokenzoo.list_scorers()
        assert tokenzoo.list_recipes("energ*") == ["energetic"]
        assert "power = 2.0" in tokenzoo.describe("energetic")
        assert "The mean power of the features." in tokenzoo.describe("energy")
        zoo = tokenzoo.build("energetic", keep=4, power=1.0)
        expected = x.abs().mean(-1).topk(4).indices.sort().values
        assert torch.equal(zoo.reduce(x).plan.keep, expected)
        for saved in (zoo, tokenzoo.build(zoo.recipe)):  # by name, by parts
            saved.save(tmp_path / "energy.json")
            assert tokenzoo.load(tmp_path / "energy.json").recipe == zoo.recipe
    # Gone with the block: nothing of it is left.
    assert "energy" not in tokenzoo.list_scorers()
    refused(lambda: tokenzoo.build("energetic"), "'energetic'", kind=UnknownNameError)
    refused(lambda: tokenzoo.load(tmp_path / "energy.json"), "'energy'", kind=UnknownNameError)


def test_a_plugin_goes_when_its_block_fails() -> None:
    with pytest.raises(ZeroDivisionError), plugins.registered(scorer("energy")):  # noqa: PT012
        assert "energy" in tokenzoo.list_scorers()
        raise ZeroDivisionError
    assert "energy" not in tokenzoo.list_scorers()


def test_an_adapter_is_asked() -> None:
    mine = plugin(tokenzoo_adapter=lambda model: "mine" if model == "a model" else None)
    with plugins.registered(mine, "mine"):
        assert "mine" in tokenzoo.list_adapters()
        assert plugins.manager().hook.tokenzoo_adapter(model="a model") == "mine"
    assert "mine" not in tokenzoo.list_adapters()


# ---------------------------------------------------------------------------- what can be wrong


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_a_name_is_taken_once(kind: plugins.Kind) -> None:
    name = plugins.names(kind)[0]
    clash = plugin(**{f"tokenzoo_{kind}": lambda: {name: Energy}})
    words = f"tokenzoo.{kind}", "'clashing'", f"{kind[:-1]} {name!r}"
    refused(registering(clash, "clashing"), *words, kind=PluginError)
    assert plugins.find(kind, name) is not Energy  # and it left nothing registered


def test_two_files_cannot_register_the_same_recipe() -> None:
    known = plugins.find("recipes", "tome")
    assert register_recipe(known) is known  # its own file may be loaded again

    def tome() -> Recipe:
        raise NotImplementedError

    refused(lambda: register_recipe(tome), "'tome'", "tokenzoo.recipes.tome", kind=PluginError)
    assert plugins.find("recipes", "tome") is known


def test_two_plugins_clash_and_one_is_registered_once() -> None:
    one = scorer("energy")
    with plugins.registered(one, "one"):
        words = "'one'", "'other'", "scorer 'energy'"
        refused(registering(scorer("energy"), "other"), *words, kind=PluginError)
        for name in ("one", "other"):
            refused(registering(one, name), f"'{name}'", kind=PluginError)
        assert "energy" in tokenzoo.list_scorers()  # the first is still there
    assert "energy" not in tokenzoo.list_scorers()


UNMARKED = ModuleType("unmarked")
UNMARKED.tokenzoo_scorers = lambda: {"energy": Energy}  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (plugin(tokenzoo_scorer=lambda: None), ["tokenzoo_scorer'", "tokenzoo_scorers, "]),
        (plugin(tokenzoo_adapter=lambda vit: None), ["tokenzoo_adapter", "vit"]),
        (plugin(), ["implements no hook", "@tokenzoo.hookimpl"]),
        (UNMARKED, ["implements no hook"]),
        (plugin(tokenzoo_scorers=lambda: None), ["tokenzoo_scorers", "mapping"]),
        (plugin(tokenzoo_scorers=lambda: ["energy"]), ["tokenzoo_scorers", "mapping"]),
        (plugin(tokenzoo_scorers=lambda: {"energy": 3}), ["'energy'", "3"]),
        (plugin(tokenzoo_scorers=lambda: 1 / 0), ["tokenzoo_scorers", "division by zero"]),
    ],
)
def test_a_plugin_that_is_not_understood(module: ModuleType, words: list[str]) -> None:
    before = tokenzoo.list_scorers()
    refused(registering(module, "odd"), "'odd'", *words, kind=PluginError)
    assert tokenzoo.list_scorers() == before


# --------------------------------------------------------------------------------- entry points

GOOD = """
import tokenzoo
from tokenzoo.scorers import FeatureNorm

@tokenzoo.hookimpl
def tokenzoo_scorers():
    return {"%s": FeatureNorm}
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.MonkeyPatch]:
    """Install plugins by an entry point each, with nothing loaded yet.

    Each is its name, the text of its module (None: there is none) and its distribution, if it has one.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("TOKENZOO_PLUGINS", raising=False)
    monkeypatch.setattr(plugins, "_manager", None)

    def call(*several: tuple[str, str | None, str | None]) -> pytest.MonkeyPatch:
        entries: list[Any] = []
        for number, (name, text, distribution) in enumerate(several):
            module = f"tokenzoo_{tmp_path.name}_{number}"
            if text is not None:
                (tmp_path / f"{module}.py").write_text(text)
            dist = None if distribution is None else SimpleNamespace(name=distribution)
            load = EntryPoint(name, module, "tokenzoo").load
            entries.append(SimpleNamespace(name=name, value=module, dist=dist, load=load))
        monkeypatch.setattr(plugins, "entry_points", lambda group: entries)
        return monkeypatch

    return call


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(:", "SyntaxError"),
        (GOOD.replace("tokenzoo_scorers", "tokenzoo_scores"), "tokenzoo_scores"),
    ],
)
def test_an_entry_point_that_cannot_be_used(
    text: str, why: str, install: Callable[..., pytest.MonkeyPatch]
) -> None:
    environment = install(("broken", text, "someones-plugin"))
    words = ["'broken'", "'someones-plugin'", why]
    words += [] if "scores" in why else ["TOKENZOO_PLUGINS", "tokenzoo_test_an_entry"]
    for _ in range(2):  # nothing half-loaded is left: the next call raises the same error
        refused(tokenzoo.list_scorers, *words, kind=PluginError)
    # And it is as the message says: left out, the others work.
    environment.setenv("TOKENZOO_PLUGINS", "")
    assert "feature_norm" in tokenzoo.list_scorers()


def test_an_entry_point_that_is_not_there(install: Callable[..., pytest.MonkeyPatch]) -> None:
    install(("gone", None, None))
    refused(tokenzoo.list_scorers, "'gone' of the distribution 'unknown'", kind=PluginError)


def test_entry_points_are_loaded_at_the_first_look_up_only(
    install: Callable[..., pytest.MonkeyPatch],
) -> None:
    counted = "import sys\nsys.tokenzoo_loaded += 1\n" + GOOD % "counted"
    install(("counts", counted, "dist")).setattr("sys.tokenzoo_loaded", 0, raising=False)
    for _ in range(2):
        assert "counted" in tokenzoo.list_scorers()
        assert vars(sys)["tokenzoo_loaded"] == 1


def test_the_environment_restricts_what_loads(install: Callable[..., pytest.MonkeyPatch]) -> None:
    environment = install(
        *((name, GOOD % name, "dist") for name in ("first", "second")),
        ("third", "1 / 0", "dist"),
        ("own", GOOD % "own", "tokenzoo"),
    )

    def scorers(wanted: str) -> set[str]:
        environment.setenv("TOKENZOO_PLUGINS", wanted)
        environment.setattr(plugins, "_manager", None)
        return set(tokenzoo.list_scorers()) & {"first", "second", "own"}

    assert scorers("first, second") == {"first", "second", "own"}
    assert scorers("second") == {"second", "own"}  # what is ours always loads
    assert scorers("") == scorers(" , ") == {"own"}
    refused(lambda: scorers("third"), "'third'", "ZeroDivisionError", kind=PluginError)
    words = "TOKENZOO_PLUGINS names forth, nobody", "installed are first, own, second, third"
    refused(lambda: scorers("first,nobody,forth"), *words, kind=PluginError)


@pytest.mark.parametrize(
    ("names", "scorers", "words"),
    [
        (("same", "same"), ("one", "two"), ["'same'", "'dist-two'"]),
        (("one", "two"), ("energy",) * 2, ["'one'", "'dist-one'", "'two'", "'dist-two'"]),
    ],
)
def test_a_clash_names_the_distributions(
    names: tuple[str, str],
    scorers: tuple[str, str],
    words: list[str],
    install: Callable[..., pytest.MonkeyPatch],
) -> None:
    texts = (GOOD % name for name in scorers)
    install(*zip(names, texts, ("dist-one", "dist-two"), strict=True))
    refused(tokenzoo.list_scorers, *words, kind=PluginError)


# ---------------------------------------------------------------------------------- hookspecs


def test_every_hook_has_a_docstring_and_annotations() -> None:
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("tokenzoo_")}
    kinds = {f"tokenzoo_{kind}" for kind in plugins.KINDS}
    assert set(hooks) == kinds | {"tokenzoo_adapter", "tokenzoo_attached"}
    for hook in hooks.values():
        assert (hook.__doc__ or "").strip().endswith(".")
        signature = inspect.signature(hook)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not p.empty for p in signature.parameters.values())


def test_what_is_built_in_comes_through_the_same_hooks() -> None:
    registered = [name for name, _ in plugins.manager().list_name_plugin()]
    assert {f"tokenzoo.{kind}" for kind in plugins.KINDS} <= set(registered)


def test_near_names_are_told() -> None:
    words = "no scorer 'similarty'; did you mean 'similarity'? there are "
    refused(lambda: plugins.find("scorers", "similarty"), words, kind=UnknownNameError)
    assert plugins.unknown("thing", "a", ["b", "c"]) == "no thing 'a'; there are b, c"
