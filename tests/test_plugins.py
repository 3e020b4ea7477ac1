"""Plugins: a third party's part works like ours, and whatever is wrong names the plugin."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import tokenzoo
from tokenzoo import Recipe, Stage, Step, hookspecs, plugins
from tokenzoo.errors import PluginError, TokenzooError, UnknownNameError
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


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A plugin manager that is not loaded yet; the one of the other tests comes back afterwards."""
    monkeypatch.setattr(plugins, "_manager", None)
    monkeypatch.delenv("TOKENZOO_PLUGINS", raising=False)
    return monkeypatch


# ------------------------------------------------------------------------- a third party's part


def test_a_third_partys_scorer_is_one_of_ours(tmp_path: Path) -> None:
    ours = plugin(
        tokenzoo_scorers=lambda: {"energy": Energy}, tokenzoo_recipes=lambda: {"energetic": energy}
    )
    x = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    with plugins.registered(ours):
        assert "energy" in tokenzoo.list_scorers()
        assert tokenzoo.list_recipes("energ*") == ["energetic"]
        assert "power = 2.0" in tokenzoo.describe("energetic")
        assert "The mean power of the features." in tokenzoo.describe("energy")
        zoo = tokenzoo.build("energetic", keep=4, power=1.0)
        reduced = zoo.reduce(x)
        expected = x.abs().mean(-1).topk(4).indices.sort().values
        assert torch.equal(reduced.plan.keep, expected)
        for saved in (zoo, tokenzoo.build(zoo.recipe)):  # by name, by parts
            saved.save(tmp_path / "energy.json")
            assert tokenzoo.load(tmp_path / "energy.json").recipe == zoo.recipe
    # Gone with the block: nothing of it is left.
    assert "energy" not in tokenzoo.list_scorers()
    with pytest.raises(UnknownNameError, match="'energetic'"):
        tokenzoo.build("energetic")
    with pytest.raises(UnknownNameError, match="'energy'"):
        tokenzoo.load(tmp_path / "energy.json")


def test_a_third_partys_scorer_keeps_the_laws() -> None:
    found = check(Energy(1.5), examples=5, max_tokens=12)
    assert found is None


def test_a_plugin_goes_when_its_block_fails() -> None:
    ours = plugin(tokenzoo_scorers=lambda: {"energy": Energy})
    with pytest.raises(ZeroDivisionError), plugins.registered(ours):  # noqa: PT012
        assert "energy" in tokenzoo.list_scorers()
        raise ZeroDivisionError
    assert "energy" not in tokenzoo.list_scorers()


def test_an_adapter_is_asked_and_an_attach_is_told() -> None:
    asked: list[object] = []

    def adapter(model: object) -> object:
        asked.append(model)
        return "mine" if model == "a model" else None

    with plugins.registered(plugin(tokenzoo_adapter=adapter), "mine"):
        assert "mine" in tokenzoo.list_adapters()
        hook = plugins.manager().hook
        assert hook.tokenzoo_adapter(model="a model") == "mine"
    assert asked == ["a model"]
    assert "mine" not in tokenzoo.list_adapters()


# ---------------------------------------------------------------------------- what can be wrong


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_a_name_is_taken_once(kind: plugins.Kind) -> None:
    name = plugins.names(kind)[0]
    clash = plugin(**{f"tokenzoo_{kind}": lambda: {name: Energy}})
    with pytest.raises(PluginError) as caught, plugins.registered(clash, "clashing"):
        pass
    message = str(caught.value)
    assert isinstance(caught.value, TokenzooError)
    assert f"tokenzoo.{kind}" in message
    assert "'clashing'" in message
    assert f"{kind[:-1]} {name!r}" in message
    assert plugins.find(kind, name) is not Energy  # and it left nothing registered


def test_two_files_cannot_register_the_same_recipe() -> None:
    known = plugins.find("recipes", "tome")
    assert register_recipe(known) is known  # its own file may be loaded again

    def tome() -> Recipe:
        raise NotImplementedError

    with pytest.raises(PluginError, match=r"'tome' of .* tokenzoo\.recipes\.tome: rename"):
        register_recipe(tome)
    assert plugins.find("recipes", "tome") is known


def test_two_plugins_can_clash_with_each_other() -> None:
    one = plugin(tokenzoo_scorers=lambda: {"energy": Energy})
    other = plugin(tokenzoo_scorers=lambda: {"energy": Energy})
    with (
        plugins.registered(one, "one"),
        pytest.raises(PluginError, match=r"'one' .* 'other' .* both provide scorer 'energy'"),
        plugins.registered(other, "other"),
    ):
        pass
    assert "energy" not in tokenzoo.list_scorers()


def nothing() -> Mapping[str, Any]:
    return {}


def impossible() -> Mapping[str, Any]:
    raise ZeroDivisionError("no scorers today")


@pytest.mark.parametrize(
    ("hooks", "named"),
    [
        ({"tokenzoo_scorer": nothing}, ["tokenzoo_scorer", "tokenzoo_scorers, tokenzoo_matchers"]),
        ({"tokenzoo_adapter": lambda vit: None}, ["tokenzoo_adapter", "vit"]),
        ({}, ["implements no hook", "@tokenzoo.hookimpl"]),
        ({"tokenzoo_scorers": lambda: None}, ["tokenzoo_scorers", "mapping"]),
        ({"tokenzoo_scorers": lambda: ["energy"]}, ["tokenzoo_scorers", "mapping"]),
        ({"tokenzoo_scorers": lambda: {"energy": 3}}, ["'energy'", "3"]),
        ({"tokenzoo_scorers": impossible}, ["tokenzoo_scorers", "no scorers today"]),
    ],
    ids=["misspelt", "signature", "nothing", "none", "list", "no factory", "raises"],
)
def test_a_plugin_that_is_not_understood(hooks: dict[str, Any], named: list[str]) -> None:
    before = tokenzoo.list_scorers()
    with pytest.raises(PluginError) as caught, plugins.registered(plugin(**hooks), "odd"):
        tokenzoo.list_scorers()
    assert "'odd'" in str(caught.value)
    assert all(part in str(caught.value) for part in named), str(caught.value)
    assert tokenzoo.list_scorers() == before


def test_a_function_without_the_mark_says_nothing() -> None:
    module = ModuleType("unmarked")
    module.tokenzoo_scorers = lambda: {"energy": Energy}  # pyright: ignore[reportAttributeAccessIssue]
    with (
        pytest.raises(PluginError, match=r"'odd'.*implements no hook"),
        plugins.registered(module, "odd"),
    ):
        pass


def test_a_plugin_is_registered_once() -> None:
    ours = plugin(tokenzoo_scorers=lambda: {"energy": Energy})
    with plugins.registered(ours, "one"):
        for name in ("one", "other"):
            with pytest.raises(PluginError, match=f"'{name}'"), plugins.registered(ours, name):
                pass
        assert "energy" in tokenzoo.list_scorers()  # the first is still there


# --------------------------------------------------------------------------------- entry points


def entry(name: str, value: str, distribution: str | None = "someones-plugin") -> Any:
    """An entry point of a distribution that is not installed."""
    found = SimpleNamespace(name=name, value=value, group="tokenzoo")
    found.dist = None if distribution is None else SimpleNamespace(name=distribution)
    found.load = EntryPoint(name, value, "tokenzoo").load
    return found


def installed(monkeypatch: pytest.MonkeyPatch, *entries: Any) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: list(entries))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write an importable module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    return write


GOOD = """
import tokenzoo
from tokenzoo.scorers import FeatureNorm

@tokenzoo.hookimpl
def tokenzoo_scorers():
    return {"%s": FeatureNorm}
"""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_an_entry_point_that_does_not_import(
    text: str, why: str, fresh: pytest.MonkeyPatch, module: Callable[[str, str], None]
) -> None:
    module("tokenzoo_does_not_import", text)
    installed(fresh, entry("broken", "tokenzoo_does_not_import"))
    for _ in range(2):  # nothing half-loaded is left: the next call raises the same error
        with pytest.raises(PluginError) as caught:
            tokenzoo.list_scorers()
        message = str(caught.value)
        assert "'broken'" in message
        assert "'someones-plugin'" in message
        assert "tokenzoo_does_not_import" in message
        assert why in message
        assert "TOKENZOO_PLUGINS" in message
        assert caught.value.__cause__ is not None
    # And it is as the message says: left out, the others work.
    fresh.setenv("TOKENZOO_PLUGINS", "")
    assert "feature_norm" in tokenzoo.list_scorers()


def test_an_entry_point_that_is_not_there(fresh: pytest.MonkeyPatch) -> None:
    installed(fresh, entry("gone", "tokenzoo_was_uninstalled:plugin", None))
    with pytest.raises(PluginError, match=r"'gone' of the distribution 'unknown'"):
        tokenzoo.list_scorers()


def test_an_entry_point_that_is_not_understood(
    fresh: pytest.MonkeyPatch, module: Callable[[str, str], None]
) -> None:
    module("tokenzoo_misspelt", GOOD.replace("tokenzoo_scorers", "tokenzoo_scores") % "energy")
    installed(fresh, entry("misspelt", "tokenzoo_misspelt"))
    with pytest.raises(PluginError) as caught:
        tokenzoo.list_scorers()
    assert "'misspelt'" in str(caught.value)
    assert "'someones-plugin'" in str(caught.value)
    assert "tokenzoo_scores" in str(caught.value)
    assert "tokenzoo_scorers" in str(caught.value)


def test_entry_points_are_loaded_at_the_first_look_up_only(
    fresh: pytest.MonkeyPatch, module: Callable[[str, str], None]
) -> None:
    module("tokenzoo_counts", "import builtins\nbuiltins.tokenzoo_loaded += 1\n" + GOOD % "counted")
    import builtins

    fresh.setattr(builtins, "tokenzoo_loaded", 0, raising=False)
    installed(fresh, entry("counts", "tokenzoo_counts"))
    assert "counted" in tokenzoo.list_scorers()
    assert "counted" in tokenzoo.list_scorers()
    assert builtins.tokenzoo_loaded == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_environment_restricts_what_loads(
    fresh: pytest.MonkeyPatch, module: Callable[[str, str], None]
) -> None:
    for name in ("first", "second"):
        module(f"tokenzoo_{name}", GOOD % name)
    module("tokenzoo_third", "1 / 0")
    module("tokenzoo_own", GOOD % "own")
    entries = [entry(name, f"tokenzoo_{name}") for name in ("first", "second", "third")]
    installed(fresh, *entries, entry("own", "tokenzoo_own", "tokenzoo"))

    def scorers(wanted: str) -> set[str]:
        fresh.setenv("TOKENZOO_PLUGINS", wanted)
        fresh.setattr(plugins, "_manager", None)
        return set(tokenzoo.list_scorers()) & {"first", "second", "own"}

    assert scorers("first, second") == {"first", "second", "own"}
    assert scorers("second") == {"second", "own"}  # what is ours always loads
    assert scorers("") == scorers(" , ") == {"own"}
    with pytest.raises(PluginError, match=r"'third' .*ZeroDivisionError"):
        scorers("third")
    with pytest.raises(PluginError) as caught:
        scorers("first,nobody,forth")
    assert "TOKENZOO_PLUGINS names forth, nobody" in str(caught.value)
    assert "installed are first, own, second, third" in str(caught.value)


def test_two_distributions_can_take_the_same_name_of_an_entry_point(
    fresh: pytest.MonkeyPatch, module: Callable[[str, str], None]
) -> None:
    module("tokenzoo_one", GOOD % "one")
    module("tokenzoo_two", GOOD % "two")
    installed(
        fresh, entry("same", "tokenzoo_one", "dist-one"), entry("same", "tokenzoo_two", "dist-two")
    )
    with pytest.raises(PluginError) as caught:
        tokenzoo.list_scorers()
    assert "'same'" in str(caught.value)
    assert "'dist-two'" in str(caught.value)


def test_a_clash_names_the_distributions(
    fresh: pytest.MonkeyPatch, module: Callable[[str, str], None]
) -> None:
    for name in ("one", "two"):
        module(f"tokenzoo_clash_{name}", GOOD % "energy")
    entries = [entry(name, f"tokenzoo_clash_{name}", f"dist-{name}") for name in ("one", "two")]
    installed(fresh, *entries)
    with pytest.raises(PluginError, match="scorer 'energy'") as caught:
        tokenzoo.list_scorers()
    for named in ("'one'", "'dist-one'", "'two'", "'dist-two'"):
        assert named in str(caught.value)


# ---------------------------------------------------------------------------------- hookspecs


def test_every_hook_has_a_docstring_and_annotations() -> None:
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("tokenzoo_")}
    assert set(hooks) == {
        *(f"tokenzoo_{kind}" for kind in plugins.KINDS),
        *("tokenzoo_adapter", "tokenzoo_attached"),
    }
    for hook in hooks.values():
        assert (hook.__doc__ or "").strip().endswith(".")
        signature = inspect.signature(hook)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not p.empty for p in signature.parameters.values())


def test_what_is_built_in_comes_through_the_same_hooks() -> None:
    registered = [name for name, _ in plugins.manager().list_name_plugin()]
    assert {f"tokenzoo.{kind}" for kind in plugins.KINDS} <= set(registered)


def test_near_names_are_told() -> None:
    with pytest.raises(UnknownNameError) as caught:
        plugins.find("scorers", "similarty")
    assert "no scorer 'similarty'; did you mean 'similarity'? there are " in str(caught.value)
    assert plugins.unknown("thing", "a", ["b", "c"]) == "no thing 'a'; there are b, c"
