"""Members of Adapter and BlockPath by the names that they had: they work, and warn with the new name."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tokenzoo_adapters.hf.vlm.packed_tower import HFPackedTower, find_packed_tower
from torch import Tensor

import tokenzoo
from tests.adapters.hf.vlm import test_packed_tower as packed_tower
from tests.hooks.test_groups import Grouped, Tower, image
from tokenzoo import plugins
from tokenzoo.adapter import OLD_NAMES, Adapter, BlockPath
from tokenzoo.hookspecs import hookimpl
from tokenzoo.packed import PackedAdapter


def test_a_block_path_takes_and_gives_the_old_names() -> None:
    new = BlockPath("blocks.0", "attn", "norm2", "mlp", "norm1")
    with pytest.warns(DeprecationWarning, match="is called") as warned:
        old: Any = BlockPath("blocks.0", "attn", second="norm2", last="mlp", first="norm1")
    assert old == new
    found = " ".join(str(one.message) for one in warned)
    for name, other in (("first", "branch1_in"), ("second", "branch2_in"), ("last", "branch2_out")):
        assert f"BlockPath.{name} is called BlockPath.{other}" in found
    with pytest.warns(DeprecationWarning, match=r"branch2_out"):
        assert old.last == "mlp"
    with pytest.warns(DeprecationWarning, match=r"branch1_in"):
        assert replace(old, first="").branch1_in == ""


@pytest.fixture
def old() -> type[Adapter]:
    """An adapter as it was written for the last version."""
    with pytest.warns(DeprecationWarning, match="is called") as warned:

        @dataclass(frozen=True, eq=False)
        class Old(Adapter):
            model: Any
            hidden: int = 8

            stages = frozenset({"block"})
            provides = Grouped.provides
            width, group = 8, 4
            grid, tokens = Grouped.grid, Grouped.tokens

            prefix = property(lambda self: self.model.prefix)
            positional = property(lambda self: self.model.rotary)

            scale = "scale"
            blocks = Grouped.blocks

            def followers(self) -> tuple[str, ...]:
                return ("norm",)

            def follow(self, extra: Any, options: Any, places: Tensor | None) -> Any:
                super().follow(extra, {}, places)
                return Grouped.adapt_block_inputs(self, extra, options, places)

            def trial(self, index: int) -> Any:
                assert super().trial(index) == (8, {})
                return Grouped.probe_inputs(self, index)

            def shows(self, stage: str) -> frozenset[str]:
                return super().shows(stage) - {"values"}

    found = " ".join(str(one.message) for one in warned)
    for name in ("followers", "follow", "trial", "shows", "hidden"):
        assert f"Old.{name} is called Old.{OLD_NAMES[name]}" in found
    return Old


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_an_adapter_with_the_old_names_does_what_the_new_one_does(old: Any) -> None:
    outs: list[Tensor] = []
    for kind in (old, Grouped):

        class Plugin:
            @hookimpl
            def tokenzoo_adapter(self, model: Any, kind: Any = kind) -> Adapter:
                return kind(model)

        model = Tower(1, True)
        with (
            plugins.registered(Plugin()),
            tokenzoo.build("evoprune", keep=5).attach(model) as attached,
        ):
            outs.append(model(image()))
            budget = attached.plan()
            assert budget.hidden == 8
    assert torch.equal(outs[0], outs[1])
    assert "values" not in old(model).provides_at("block")
    assert old(model).mlp_dim == 8


def test_reading_an_old_name_warns() -> None:
    adapter: Any = Grouped(Tower(1, False))
    for name, value in (("hidden", 8), ("watched", False), ("reaching", 0)):
        with pytest.warns(DeprecationWarning, match=f"Adapter.{name} is called Adapter."):
            assert getattr(adapter, name) == value
    with pytest.warns(DeprecationWarning, match="passthrough_modules"):
        assert adapter.followers() == ("norm",)


@torch.no_grad()
def test_a_packed_adapter_of_the_last_version_still_packs() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"PackedAdapter is tokenzoo\.Adapter with layout_class"
    ):

        class Old(HFPackedTower, PackedAdapter):
            patches = 4
            layout, group = PackedAdapter.layout, PackedAdapter.group

    class Plugin:
        @hookimpl
        def tokenzoo_adapter(self, model: Any) -> Adapter:
            known = find_packed_tower(model)
            assert known is not None
            return Old(known.tower, known.names, known.rows)

    model = packed_tower.tower("qwen2_5_vl")
    x = packed_tower.pixels(model, packed_tower.MIXED)
    outs: list[Tensor] = []
    for mine in ((), (Plugin(),)):
        with ExitStack() as stack:
            for plugin in mine:
                stack.enter_context(plugins.registered(plugin))
            attached = stack.enter_context(tokenzoo.build("evoprune", keep=0.4).attach(model))
            assert isinstance(attached.adapter, Old) == bool(mine)
            outs.append(packed_tower.run(model, x, packed_tower.MIXED))
    assert torch.equal(*outs)
