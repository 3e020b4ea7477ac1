"""Bad calls, each with the error that says what was wrong, what is allowed and what to do.

One table: a name, the call, the error, and words that its message must have. Whatever was called,
nothing is half-attached afterwards.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

import tokenzoo
from tests.adapters.models import DINO_REG, GAP, RELPOS, SIGLIP, VIT, images, traces
from tokenzoo import Plan, Recipe, Stage, Step, errors
from tokenzoo.errors import (
    AttachError,
    BadArgumentError,
    BudgetError,
    MissingDependencyError,
    MissingEvidenceError,
    PluginError,
    TokenzooError,
    UnknownNameError,
    UnsupportedModelError,
)
from tokenzoo.matchers import (
    Bipartite,
    Drop,
    Every,
    Nearest,
    Parity,
    Protect,
    SelectAssign,
    Then,
    TopK,
)
from tokenzoo.measure import interleaved
from tokenzoo.mergers import Keep, TargetPlusMean, WeightedMean
from tokenzoo.plugins import registered
from tokenzoo.schedules import Explicit, First, Once, Skip
from tokenzoo.scorers import (
    CLSAttention,
    Diversity,
    FeatureNorm,
    Random,
    ReceivedAttention,
    Similarity,
    TextRelevance,
)
from tokenzoo.viz import merged_groups, shrunk_image

build = tokenzoo.build
cosine, length = Similarity("x"), FeatureNorm()
X = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.zeros(3, 28, 28)


def step(matcher: Any = None, schedule: Any = None, stage: Stage = Stage.BLOCK) -> Step:
    return Step(stage, schedule or Skip(), matcher or Bipartite(cosine), WeightedMean())


def topk(scorer: Any) -> SelectAssign:
    return SelectAssign(TopK(scorer), Drop())


def loaded(content: str) -> Callable[[Path], object]:
    """Load a recipe file with this content."""

    def call(folder: Path) -> object:
        path = folder / "recipe.json"
        path.write_text(content)
        return tokenzoo.load(path)

    return call


def saved(**change: Any) -> Callable[[Path], object]:
    """Load a saved recipe of two parts with some of it changed."""

    def call(folder: Path) -> object:
        path = folder / "recipe.json"
        build(Recipe(step(Bipartite(cosine)), keep=0.5)).save(path)
        content = json.loads(path.read_text())
        content.update(change)
        path.write_text(json.dumps(content))
        return tokenzoo.load(path)

    return call


def part(kind: str, name: str, **options: Any) -> dict[str, Any]:
    return {"part": [kind, name], "options": options}


def named(matcher: Any) -> list[Any]:
    """The steps of a file, with this for a matcher."""
    schedule = part("schedules", "skip", start=1, every=2)
    merger = part("mergers", "weighted_mean")
    stage = {"stage": "block", "layer": None}
    return [{"step": {"stage": stage, "schedule": schedule, "matcher": matcher, "merger": merger}}]


def plugin(**functions: Any) -> Any:
    """A module whose functions are hook implementations."""
    kind = type(sys)
    module = kind("tokenzoo_test_plugin")
    for name, function in functions.items():
        function.__name__ = name
        setattr(module, name, tokenzoo.hookimpl(function))
    return module


def with_plugin(module: Any) -> None:
    with registered(module, "bad"):
        pass


def second_attach(model: Any) -> None:
    first = build("tome").attach(model)
    try:
        build("evoprune").attach(model)
    finally:
        assert traces(model) != []  # the first is still there, whole
        first.detach()


def lost_state(model: Any) -> None:
    with build("tome").attach(model):
        features = model.forward_features(images(model))
        model.forward_head(features * 1.0)


def masked(model: Any) -> None:
    with build("tome").attach(model):
        model(images(model), attn_mask=torch.zeros(197, 197))


def unfused(model: Any) -> None:
    for block in model.blocks:
        block.attn.fused_attn = False
    try:
        build("evoprune").attach(model)
    finally:
        for block in model.blocks:
            block.attn.fused_attn = True


def never_ran(name: str, model: Any) -> None:
    with build("tome").attach(model) as attached:
        getattr(attached, name)


def no_trace(model: Any) -> None:
    with build("tome").attach(model) as attached:
        model(images(model))
        attached.record  # noqa: B018


def maps(model: Any) -> None:
    with build("tome").attach(model):
        model.forward_intermediates(images(model))


def bad_image(model: Any) -> None:
    x = images(model)
    x[1, :, 40, 40] = torch.nan
    with build("tome", keep=0.5).attach(model, debug=True):
        model(x)


def without_sklearn() -> None:
    hidden = {
        name: sys.modules.pop(name) for name in list(sys.modules) if "tokenzoo.digits" in name
    }
    sys.modules["sklearn.datasets"] = None  # type: ignore[assignment]
    try:
        from tokenzoo import digits

        digits.splits()
    finally:
        del sys.modules["sklearn.datasets"]
        sys.modules.update(hidden)


# Calls that have to do with no model. Those with an argument are given an empty folder.
CALLS: dict[str, tuple[Callable[..., object], type[TokenzooError], tuple[str, ...]]] = {
    # names
    "recipe": (
        lambda: build("evoprun"),
        UnknownNameError,
        ("'evoprun'", "did you mean 'evoprune'"),
    ),
    "recipe type": (lambda: build(3), BadArgumentError, ("build(3)", "name of a recipe")),
    "option": (lambda: build("evoprune", crt=0.1), UnknownNameError, ("'crt'", "'ctr'")),
    "option of a recipe by hand": (
        lambda: build(Recipe(step()), r=3),
        UnknownNameError,
        ("'r'", "keep"),
    ),
    "describe": (lambda: tokenzoo.describe("zzz"), UnknownNameError, ("'zzz'",)),
    "stage": (lambda: Stage("blok"), BadArgumentError, ("'blok'", "block")),
    "layer": (lambda: Stage("llm", 1.5), BadArgumentError, ("layer=1.5", "int")),
    "layer of image": (lambda: Stage.IMAGE(3), BadArgumentError, ("'image'", "no layers")),
    # keep and flops
    "keep 0": (lambda: build("tome", keep=0), BadArgumentError, ("keep=0", "int >= 1", "0.25")),
    "keep negative": (lambda: build("tome", keep=-3), BadArgumentError, ("keep=-3",)),
    "keep 1.5": (lambda: build("tome", keep=1.5), BadArgumentError, ("keep=1.5", "(0, 1]")),
    "keep 0.0": (lambda: build("evoprune", keep=0.0), BadArgumentError, ("keep=0.0",)),
    "keep True": (
        lambda: build("evoprune", keep=True),
        BadArgumentError,
        ("keep=True", "int >= 1"),
    ),
    "keep text": (lambda: build("evoprune", keep="64"), BadArgumentError, ("keep='64'",)),
    "keep nan": (lambda: build("evoprune", keep=float("nan")), BadArgumentError, ("keep=nan",)),
    "keep numpy": (lambda: build("evoprune", keep=np.int64(8)), BadArgumentError, ("keep=", "8")),
    "keep None": (lambda: build("evoprune", keep=None), BadArgumentError, ("keep=None",)),
    "keep and r": (lambda: build("tome", keep=0.5, r=3), BadArgumentError, ("keep", "r")),
    "keep and flops": (
        lambda: build("evoprune", keep=0.5, flops=0.5),
        BadArgumentError,
        ("flops=0.5", "keep=0.5", "one of them"),
    ),
    "flops 0": (lambda: build("evoprune", flops=0), BadArgumentError, ("flops=0", "(0, 1]")),
    "flops 2": (lambda: build("evoprune", flops=2), BadArgumentError, ("flops=2", "(0, 1]")),
    "flops True": (lambda: build("evoprune", flops=True), BadArgumentError, ("flops=True",)),
    "flops with r": (lambda: build("tome", r=3, flops=0.5), BadArgumentError, ("flops=0.5",)),
    "flops on tensors": (
        lambda: build("evoprune", flops=0.5).reduce(X),
        BadArgumentError,
        ("flops=0.5", "pass keep="),
    ),
    "flops out of reach": (
        lambda: build("evoprune", flops=0.1).plan(tokens=196, depth=12),
        BudgetError,
        ("flops=0.1", "out of reach", "196"),
    ),
    "plan out of reach": (
        lambda: build("evoprune", keep=1).plan(tokens=729, depth=4),
        BudgetError,
        ("keep=1", "729", "fewest possible is 183"),
    ),
    "plan tokens": (lambda: build("tome").plan(0, 12), BadArgumentError, ("tokens=0", "int >= 1")),
    "plan depth": (lambda: build("tome").plan(9, 1.5), BadArgumentError, ("depth=1.5",)),
    "plan prefix": (lambda: build("tome").plan(9, 2, prefix=-1), BadArgumentError, ("prefix=-1",)),
    # parts
    "ctr": (lambda: build("evoprune", ctr=1.5), BadArgumentError, ("1.5", "[0, 1]")),
    "k": (lambda: build("evoprune", k=0), BadArgumentError, ("k=0", "int >= 1")),
    "tau": (lambda: build("evoprune", tau=-1.0), BadArgumentError, ("tau=-1.0",)),
    "tau text": (lambda: Diversity(tau="imag"), BadArgumentError, ("tau='imag'", "image")),
    "lam": (lambda: build("evoprune", lam=-0.1), BadArgumentError, ("lam=-0.1",)),
    "features": (lambda: build("evoprune", features="key"), BadArgumentError, ("'key'", "keys")),
    "curve": (lambda: Similarity(curve="log"), BadArgumentError, ("curve='log'", "cosine")),
    "merger": (lambda: build("evoprune", merger="sum"), BadArgumentError, ("'sum'", "mean")),
    "seed": (lambda: Random(1.5), BadArgumentError, ("seed=1.5",)),
    "share": (lambda: Protect(length, 2), BadArgumentError, ("share=2",)),
    "split": (lambda: Every(1), BadArgumentError, ("k=1", ">= 2")),
    "protect by parity": (
        lambda: Bipartite(cosine, split=Parity(), protect=Protect(length)),
        BadArgumentError,
        ("Alternate()",),
    ),
    "pairs": (lambda: Bipartite(length), BadArgumentError, ("pairs=", "PairScorer")),
    "scorer": (lambda: TopK(cosine), BadArgumentError, ("scorer=Similarity", "Scorer")),
    "assigner": (lambda: SelectAssign(TopK(length), Keep()), BadArgumentError, ("Assigner",)),
    "then": (lambda: Then((1.5, TopK(length))), BadArgumentError, ("1.5",)),
    "scores multiplied": (lambda: length * cosine, BadArgumentError, ("discount(lam)",)),
    "scores added": (lambda: length + length, BadArgumentError, ("normalized",)),
    "normalized": (lambda: length.normalized("max"), BadArgumentError, ("how='max'", "minmax")),
    "step": (
        lambda: Step(Stage.BLOCK, Keep(), Bipartite(cosine), Keep()),
        BadArgumentError,
        ("schedule=",),
    ),
    "recipe without steps": (lambda: Recipe(), BadArgumentError, ("one or more",)),
    "steps out of order": (
        lambda: Recipe(step(stage=Stage.FEATURES), step()),
        BadArgumentError,
        ("later", "image, embedded, block"),
    ),
    "proportional": (
        lambda: Recipe(step(), proportional_attention=1),
        BadArgumentError,
        ("proportional_attention=1", "True or False"),
    ),
    "explicit": (
        lambda: build(Recipe(step(schedule=Explicit((3,) * 13)), keep=None)).plan(196, 12),
        BadArgumentError,
        ("(3, 3", "depth of 12", "at most 12"),
    ),
    "once": (
        lambda: build(Recipe(step(schedule=Once(20)), keep=0.5)).plan(196, 12),
        BadArgumentError,
        ("20", "12"),
    ),
    "first": (lambda: First(0), BadArgumentError, ("0",)),
    "skip": (lambda: Skip(-1), BadArgumentError, ("start=-1",)),
    # tensors
    "x 2-d": (lambda: build("divprune").reduce(X[0]), BadArgumentError, ("(10, 4)", "x[None]")),
    "x a list": (lambda: build("divprune").reduce([1.0]), BadArgumentError, ("list",)),
    "x empty": (lambda: build("divprune").reduce(X[:, :0]), BadArgumentError, ("(2, 0, 4)",)),
    "keys": (
        lambda: build("tome", keep=5).reduce(X, keys=X[:, :7]),
        BadArgumentError,
        ("keys", "(2, 7, 4)", "10"),
    ),
    "keys missing": (
        lambda: build("tome", keep=5).reduce(X),
        MissingEvidenceError,
        ("needs keys", "pass keys=..."),
    ),
    "cls_attention missing": (
        lambda: build("visionzip", keep=5).reduce(X, keys=X),
        MissingEvidenceError,
        ("cls_attention",),
    ),
    "text": (
        lambda: build(Recipe(step(topk(TextRelevance()), Once(), Stage.PROJECTED), keep=3)).reduce(
            X
        ),
        MissingEvidenceError,
        ("text",),
    ),
    "grid": (
        lambda: build("pool", keep=4).reduce(X, grid=(3, 4)),
        BadArgumentError,
        ("grid", "(3, 4)", "10"),
    ),
    "frames": (
        lambda: build("divprune", keep=4).reduce(X, frames=3),
        BadArgumentError,
        ("frames=3",),
    ),
    "mass shape": (
        lambda: build("divprune", keep=4).reduce(X, mass=torch.ones(2, 9)),
        BadArgumentError,
        ("mass", "(2, 9)", "(2, 10)"),
    ),
    "mass 0": (
        lambda: build("divprune", keep=4).reduce(X, mass=torch.zeros(2, 10)),
        BadArgumentError,
        ("mass", "positive"),
    ),
    "prefix": (
        lambda: build("divprune").reduce(X, prefix=10),
        BadArgumentError,
        ("prefix=10", "0 to 9"),
    ),
    "protected": (
        lambda: build("divprune", keep=4).reduce(X, protected=torch.ones(2, 10)),
        BadArgumentError,
        ("protected", "torch.bool"),
    ),
    "too few for one step": (
        lambda: build("tome", keep=2).reduce(X, keys=X),
        BudgetError,
        ("keep=2", "goes down to 5"),
    ),
    "too many protected": (
        lambda: build("divprune", keep=4).reduce(X, protected=torch.ones(2, 10, dtype=torch.bool)),
        BudgetError,
        ("keep=4", "10 of them protected"),
    ),
    "two steps on tensors": (
        lambda: build(Recipe(step(), step(stage=Stage.FEATURES))).reduce(X),
        BadArgumentError,
        ("2 steps",),
    ),
    "unmerge": (
        lambda: build("divprune", keep=4).reduce(X).unmerge(X),
        BadArgumentError,
        ("(2, 10, 4)", "4 tokens"),
    ),
    "plan that contradicts itself": (
        lambda: Plan(torch.tensor([[0, 1]]), torch.tensor([[1, 0]])).check(),
        BadArgumentError,
        ("dst[keep[i]]",),
    ),
    "plan out of range": (
        lambda: Plan(torch.tensor([[0, 9]]), torch.tensor([[0, 1]])).check(),
        BadArgumentError,
        ("keep", "-1 .. 1"),
    ),
    "plans of other lengths": (
        lambda: Plan.identity(1, 5).then(Plan.identity(1, 4)),
        BadArgumentError,
        ("5", "4"),
    ),
    # files
    "no file": (
        lambda folder: tokenzoo.load(folder / "none.json"),
        BadArgumentError,
        ("none.json",),
    ),
    "not JSON": (loaded("steps:"), BadArgumentError, ("not a saved recipe",)),
    "empty file": (loaded(""), BadArgumentError, ("not a saved recipe",)),
    "cut off": (loaded('{"tokenzoo": 1, "reci'), BadArgumentError, ("not a saved recipe",)),
    "a list": (loaded("[1, 2]"), BadArgumentError, ("not a saved recipe",)),
    "no format": (loaded("{}"), BadArgumentError, ("format None", "reads 1")),
    "newer": (saved(tokenzoo=99), BadArgumentError, ("format 99", "upgrade tokenzoo")),
    "no steps": (loaded('{"tokenzoo": 1}'), BadArgumentError, ("not a saved recipe",)),
    "steps a number": (saved(steps=3), BadArgumentError, ("not a saved recipe",)),
    "bad keep": (saved(keep=0), BadArgumentError, ("keep=0",)),
    "unknown recipe in a file": (
        loaded('{"tokenzoo": 1, "recipe": "zzz", "options": {}}'),
        UnknownNameError,
        ("'zzz'",),
    ),
    "unknown option in a file": (
        loaded('{"tokenzoo": 1, "recipe": "tome", "options": {"x": 1}}'),
        UnknownNameError,
        ("'x'",),
    ),
    "code for a part": (
        saved(steps=named(part("matchers", "os.system", command="true"))),
        UnknownNameError,
        ("'os.system'",),
    ),
    "builtins for a part": (
        saved(steps=named(part("matchers", "__import__", module="os"))),
        UnknownNameError,
        ("'__import__'",),
    ),
    "kind that does not exist": (
        saved(steps=named(part("modules", "os"))),
        TokenzooError,
        ("modules",),
    ),
    "combination that does not exist": (
        saved(steps=named(part("combined", "eval"))),
        BadArgumentError,
        ("eval",),
    ),
    "option that is not the part's": (
        saved(steps=named(part("matchers", "bipartite", code="import os"))),
        BadArgumentError,
        ("not a saved recipe", "code"),
    ),
    "a text for a part": (saved(steps=["import os"]), BadArgumentError, ("import os",)),
    "a part without a name": (
        lambda folder: build(Recipe(step(topk(_Mine())))).save(folder / "mine.json"),
        BadArgumentError,
        ("not registered", "plugin"),
    ),
    # plugins
    "misspelt hook": (
        lambda: with_plugin(plugin(tokenzoo_scorer=lambda: {})),
        PluginError,
        ("'bad'", "tokenzoo_scorer"),
    ),
    "no mapping": (
        lambda: with_plugin(plugin(tokenzoo_scorers=lambda: [1])),
        PluginError,
        ("'bad'", "mapping of names to factories"),
    ),
    "no factory": (
        lambda: with_plugin(plugin(tokenzoo_scorers=lambda: {"a": 3})),
        PluginError,
        ("'bad'", "'a'"),
    ),
    "name taken": (
        lambda: with_plugin(plugin(tokenzoo_scorers=lambda: {"random": Random})),
        PluginError,
        ("'random'", "both"),
    ),
    "plugin that raises": (
        lambda: with_plugin(plugin(tokenzoo_scorers=lambda: 1 / 0)),
        PluginError,
        ("'bad'", "ZeroDivisionError"),
    ),
    "nothing to say": (lambda: with_plugin(plugin()), PluginError, ("hookimpl",)),
    # tools
    "no rounds": (
        lambda: interleaved({"a": list}, rounds=0, baseline="a"),
        BadArgumentError,
        ("rounds=0",),
    ),
    "no such baseline": (
        lambda: interleaved({"a": list}, rounds=1, baseline="b"),
        BadArgumentError,
        ("baseline='b'", "a"),
    ),
    "picture of another grid": (
        lambda: merged_groups(IMAGE, Plan.identity(1, 10), (2, 4), 1),
        BadArgumentError,
        ("10 tokens", "2 x 4"),
    ),
    "picture of no image": (
        lambda: shrunk_image(IMAGE[0], (2, 2)),
        BadArgumentError,
        ("(28, 28)",),
    ),
    "no scikit-learn": (
        without_sklearn,
        MissingDependencyError,
        ("scikit-learn", "tokenzoo[demo]"),
    ),
}

# Calls with a model. After each the model is bare, bit for bit.
NEW = Recipe(
    Step(Stage.BLOCK, Once(3), SelectAssign(TopK(length), Nearest(cosine)), TargetPlusMean())
)
MODELS: dict[str, tuple[Any, Callable[[Any], object], type[TokenzooError], tuple[str, ...]]] = {
    "second attach": (VIT, second_attach, AttachError, ("attached already", "replace=True")),
    "when": (
        VIT,
        lambda m: build("tome").attach(m, when="test"),
        BadArgumentError,
        ("when='test'", "eval"),
    ),
    "trace": (VIT, lambda m: build("tome").attach(m, trace=1), BadArgumentError, ("trace=1",)),
    "restore": (
        VIT,
        lambda m: build("tome").attach(m, restore="yes"),
        BadArgumentError,
        ("restore='yes'",),
    ),
    "debug": (
        VIT,
        lambda m: build("tome").attach(m, debug=None),
        BadArgumentError,
        ("debug=None",),
    ),
    "on_reduce": (
        VIT,
        lambda m: build("tome").attach(m, on_reduce=3),
        BadArgumentError,
        ("on_reduce=3",),
    ),
    "stage of a model": (
        VIT,
        build("divprune").attach,
        AttachError,
        ("Stage.PROJECTED", "block", "zoo.reduce"),
    ),
    "two steps": (
        VIT,
        build(Recipe(step(stage=Stage.IMAGE), step())).attach,
        AttachError,
        ("one step",),
    ),
    "a block's number": (
        VIT,
        build(Recipe(step(stage=Stage.BLOCK(3)))).attach,
        AttachError,
        ("schedule",),
    ),
    "no CLS": (
        GAP,
        build(Recipe(step(topk(CLSAttention())))).attach,
        MissingEvidenceError,
        ("needs cls_attention", "received_attention"),
    ),
    "no text": (
        VIT,
        build(Recipe(step(topk(TextRelevance())))).attach,
        MissingEvidenceError,
        ("needs text",),
    ),
    "other layer": (
        VIT,
        build(Recipe(step(topk(ReceivedAttention(layer=-2))))).attach,
        MissingEvidenceError,
        ("received_attention@-2",),
    ),
    "keep out of reach": (VIT, build("evoprune", keep=1).attach, BudgetError, ("keep=1", "fewest")),
    "flops out of reach of a model": (
        VIT,
        build("evoprune", flops=0.2).attach,
        BudgetError,
        ("0.2",),
    ),
    "no rectangle": (VIT, build("downsample", keep=97).attach, BudgetError, ("96 and 98",)),
    "smaller images": (RELPOS, build("downsample").attach, AttachError, ("Stage.IMAGE",)),
    "attention off": (VIT, unfused, AttachError, ("fused_attn",)),
    "lost state": (VIT, lost_state, AttachError, ("do not carry the state", "pooling")),
    "lost state, pooled": (SIGLIP, lost_state, AttachError, ("do not carry the state",)),
    "mask": (VIT, masked, AttachError, ("attention mask",)),
    "no pass yet": (
        VIT,
        partial(never_ran, "counts"),
        AttachError,
        ("has not run in this thread",),
    ),
    "no pass yet, mass": (VIT, partial(never_ran, "mass"), AttachError, ("has not run",)),
    "no trace": (VIT, no_trace, AttachError, ("trace=True",)),
    "maps": (DINO_REG, maps, AttachError, ("restore=True",)),
    "NaN in debugging": (VIT, bad_image, AttachError, ("NaN", "image 1")),
}

# What is no model that anybody knows.
NONE: dict[str, tuple[Callable[[], Any], type[TokenzooError], tuple[str, ...]]] = {
    "None": (lambda: None, UnsupportedModelError, ("None", "torch.nn.Module")),
    "a name": (lambda: "vit_base_patch16_224", UnsupportedModelError, ("torch.nn.Module",)),
    "a function": (lambda: torch.relu, UnsupportedModelError, ("torch.nn.Module",)),
    "no transformer": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        UnsupportedModelError,
        ("no adapter knows", "timm", "reduce()"),
    ),
    "compiled": (
        lambda: torch.compile(VIT.build(depth=2), backend="eager"),
        AttachError,
        ("compiled", "attach first"),
    ),
    "no weights": (lambda: VIT.build(depth=4).to("meta"), AttachError, ("meta device",)),
}


class _Mine(tokenzoo.Scorer):
    """Of nobody's plugin."""

    def score(self, evidence: Any) -> torch.Tensor:
        return evidence.x.sum(-1)


def _held(
    error: pytest.ExceptionInfo[Any], kind: type[TokenzooError], words: tuple[str, ...]
) -> None:
    assert type(error.value) is kind or kind is TokenzooError, repr(error.value)
    for word in words:
        assert word in str(error.value), str(error.value)
    assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call(name: str, tmp_path: Path) -> None:
    call, kind, words = CALLS[name]
    wants_folder = call.__code__.co_argcount > 0
    with pytest.raises(TokenzooError) as error:
        call(tmp_path) if wants_folder else call()
    _held(error, kind, words)


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_call_with_a_model(name: str) -> None:
    make, call, kind, words = MODELS[name]
    model = make.build(depth=6)
    x = images(model, batch=1)
    with torch.no_grad():
        bare = model(x)
    state = {key: id(value) for key, value in vars(model).items()}
    with pytest.raises(TokenzooError) as error:
        call(model)
    _held(error, kind, words)
    assert traces(model) == []
    assert {key: id(value) for key, value in vars(model).items()} == state
    with torch.no_grad():
        assert torch.equal(model(x), bare)


@pytest.mark.parametrize("name", NONE)
def test_no_model(name: str) -> None:
    make, kind, words = NONE[name]
    with pytest.raises(TokenzooError) as error:
        build("tome").attach(make())
    _held(error, kind, words)


def test_the_table_is_long_and_every_error_is_in_it() -> None:
    kinds = [row[1] for row in CALLS.values()]
    kinds += [row[2] for row in MODELS.values()] + [row[1] for row in NONE.values()]
    assert len(kinds) >= 130
    public = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    assert public - {TokenzooError} <= set(kinds)
