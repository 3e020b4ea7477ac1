"""Bad calls, each with the error that says what was wrong, what is allowed and what to do.

Tables: a name, the call, the error, and the argument or value that its message must name. Whatever was
called, nothing is half-attached afterwards.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from typer.testing import CliRunner

import tokenzoo
from tests.adapters.models import DINO_REG, GAP, RELPOS, SIGLIP, VIT, images, traces
from tokenzoo import Recipe, Stage, Step, TokenMap, errors
from tokenzoo.cli import app
from tokenzoo.errors import (
    AttachError,
    BadArgumentError,
    BudgetError,
    ExportError,
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
from tokenzoo.mergers import Identity, TargetPlusMean, WeightedMean
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
from tokenzoo.tools import digits
from tokenzoo.tools.model_loading import create
from tokenzoo.tools.timing import interleaved
from tokenzoo.tools.viz import Panel, gallery, merged_groups, shrunk_image

# With an older click the runner mixes stdout and stderr unless it is told not to.
SEPARATE = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}

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


def passing(recipe: Recipe, model: Any) -> None:
    with build(recipe).attach(model):
        model(images(model, batch=1))


def planning(tokens: Any, model: Any) -> None:
    with build("tome").attach(model) as attached:
        attached.plan(196)
        attached.plan(tokens)


def block_alone(model: Any) -> None:
    with build("tome").attach(model):
        model.blocks[1](torch.randn(1, 197, 48))


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
    name = "sklearn.datasets"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        digits.splits.__wrapped__()  # another test may have filled its cache
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def typed(*arguments: str) -> None:
    """Call the command line, and raise the error that it has told."""
    told = CliRunner(**SEPARATE).invoke(app, list(arguments))
    assert told.exit_code == 2
    assert "Traceback" not in told.output
    error: BaseException | None = told.exc_info[1] if told.exc_info else None
    while error is not None and not isinstance(error, TokenzooError):
        error = error.__cause__ or error.__context__
    assert error is not None
    assert told.stderr.strip() == f"tokenzoo: {error}"
    raise error


def recipe_of_another_kind() -> None:
    with registered(plugin(tokenzoo_recipes=lambda: {"odd": lambda: 3}), "bad"):
        build("odd")


def adapter_of_another_kind() -> None:
    with registered(plugin(tokenzoo_adapter=lambda model: 3), "bad"):
        build("tome").attach(nn.Identity())


class _Scores(tokenzoo.Scorer):
    """One number too few."""

    def score(self, evidence: Any) -> torch.Tensor:
        return evidence.x.sum(-1)[:, 1:]


class _Counts(tokenzoo.Schedule):
    """What it is told to give."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def counts(self, tokens: int, sites: int, keep: int, fewest: Any) -> Any:
        return self.given


class _Keeps(tokenzoo.Matcher):
    """What it is told to give, whatever is asked."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        return 1

    def match(self, evidence: Any, keep: int) -> Any:
        return self.plan


BAD, UNKNOWN, EVIDENCE = BadArgumentError, UnknownNameError, MissingEvidenceError
BUDGET, ATTACH, PLUGIN = BudgetError, AttachError, PluginError
UNSUPPORTED, DEPENDENCY = UnsupportedModelError, MissingDependencyError

# Calls that have to do with no model. Those with an argument are given an empty folder.
CALLS: dict[str, tuple[Callable[..., object], type[TokenzooError], str]] = {
    # names
    "recipe": (lambda: build("evoprun"), UNKNOWN, "'evoprun'"),
    "recipe type": (lambda: build(3), BAD, "build(3)"),
    "option": (lambda: build("evoprune", crt=0.1), UNKNOWN, "'crt'"),
    "option of a recipe by hand": (lambda: build(Recipe(step()), r=3), UNKNOWN, "'r'"),
    "describe": (lambda: tokenzoo.describe("zzz"), UNKNOWN, "'zzz'"),
    "stage": (lambda: Stage("blok"), BAD, "'blok'"),
    "layer": (lambda: Stage("llm", 1.5), BAD, "layer=1.5"),
    "layer of image": (lambda: Stage.IMAGE(3), BAD, "'image'"),
    # keep and flops
    "keep 0": (lambda: build("tome", keep=0), BAD, "keep=0"),
    "keep negative": (lambda: build("tome", keep=-3), BAD, "keep=-3"),
    "keep 1.5": (lambda: build("tome", keep=1.5), BAD, "keep=1.5"),
    "keep 0.0": (lambda: build("evoprune", keep=0.0), BAD, "keep=0.0"),
    "keep True": (lambda: build("evoprune", keep=True), BAD, "keep=True"),
    "keep text": (lambda: build("evoprune", keep="64"), BAD, "keep='64'"),
    "keep nan": (lambda: build("evoprune", keep=float("nan")), BAD, "keep=nan"),
    "keep numpy": (lambda: build("evoprune", keep=np.int64(8)), BAD, "keep="),
    "keep None": (lambda: build("evoprune", keep=None), BAD, "keep=None"),
    "keep and r": (lambda: build("tome", keep=0.5, r=3), BAD, "keep"),
    "keep and flops": (lambda: build("evoprune", keep=0.5, flops=0.5), BAD, "flops=0.5"),
    "flops 0": (lambda: build("evoprune", flops=0), BAD, "flops=0"),
    "flops 2": (lambda: build("evoprune", flops=2), BAD, "flops=2"),
    "flops True": (lambda: build("evoprune", flops=True), BAD, "flops=True"),
    "flops with r": (lambda: build("tome", r=3, flops=0.5), BAD, "flops=0.5"),
    "flops on tensors": (lambda: build("evoprune", flops=0.5).reduce(X), BAD, "flops=0.5"),
    "flops out of reach": (
        lambda: build("evoprune", flops=0.1).plan(tokens=196, depth=12),
        BUDGET,
        "flops=0.1",
    ),
    "plan out of reach": (
        lambda: build("evoprune", keep=1).plan(tokens=729, depth=4),
        BUDGET,
        "keep=1",
    ),
    "plan tokens": (lambda: build("tome").plan(0, 12), BAD, "tokens=0"),
    "plan depth": (lambda: build("tome").plan(9, 1.5), BAD, "depth=1.5"),
    "plan prefix": (lambda: build("tome").plan(9, 2, prefix=-1), BAD, "prefix=-1"),
    # parts
    "ctr": (lambda: build("evoprune", ctr=1.5), BAD, "1.5"),
    "k": (lambda: build("evoprune", k=0), BAD, "k=0"),
    "tau": (lambda: build("evoprune", tau=-1.0), BAD, "tau=-1.0"),
    "tau text": (lambda: Diversity(tau="imag"), BAD, "tau='imag'"),
    "lam": (lambda: build("evoprune", lam=-0.1), BAD, "lam=-0.1"),
    "features": (lambda: build("evoprune", features="key"), BAD, "'key'"),
    "curve": (lambda: Similarity(curve="log"), BAD, "curve='log'"),
    "merger": (lambda: build("evoprune", merger="sum"), BAD, "'sum'"),
    "seed": (lambda: Random(1.5), BAD, "seed=1.5"),
    "share": (lambda: Protect(length, 2), BAD, "share=2"),
    "split": (lambda: Every(1), BAD, "k=1"),
    "protect by parity": (
        lambda: Bipartite(cosine, split=Parity(), protect=Protect(length)),
        BAD,
        "Alternate()",
    ),
    "pairs": (lambda: Bipartite(length), BAD, "pairs="),
    "scorer": (lambda: TopK(cosine), BAD, "scorer=Similarity"),
    "assigner": (lambda: SelectAssign(TopK(length), Identity()), BAD, "Assigner"),
    "then": (lambda: Then((1.5, TopK(length))), BAD, "1.5"),
    "scores multiplied": (lambda: length * cosine, BAD, "discount(lam)"),
    "scores added": (lambda: length + length, BAD, "normalized"),
    "normalized": (lambda: length.normalized("max"), BAD, "how='max'"),
    "step": (
        lambda: Step(Stage.BLOCK, Identity(), Bipartite(cosine), Identity()),
        BAD,
        "schedule=",
    ),
    "recipe without steps": (lambda: Recipe(), BAD, "one or more"),
    "steps out of order": (lambda: Recipe(step(stage=Stage.FEATURES), step()), BAD, "later"),
    "proportional": (
        lambda: Recipe(step(), proportional_attention=1),
        BAD,
        "proportional_attention=1",
    ),
    "explicit": (
        lambda: build(Recipe(step(schedule=Explicit((3,) * 13)), keep=None)).plan(196, 12),
        BAD,
        "(3, 3",
    ),
    "once": (lambda: build(Recipe(step(schedule=Once(20)), keep=0.5)).plan(196, 12), BAD, "20"),
    "first": (lambda: First(0), BAD, "0"),
    "skip": (lambda: Skip(-1), BAD, "start=-1"),
    # tensors
    "x 2-d": (lambda: build("divprune").reduce(X[0]), BAD, "(10, 4)"),
    "x a list": (lambda: build("divprune").reduce([1.0]), BAD, "list"),
    "x empty": (lambda: build("divprune").reduce(X[:, :0]), BAD, "(2, 0, 4)"),
    "keys": (lambda: build("tome", keep=5).reduce(X, keys=X[:, :7]), BAD, "(2, 7, 4)"),
    "keys missing": (lambda: build("tome", keep=5).reduce(X), EVIDENCE, "pass keys=..."),
    "cls_attention missing": (
        lambda: build("visionzip", keep=5).reduce(X, keys=X),
        EVIDENCE,
        "cls_attention",
    ),
    "text": (
        lambda: build(Recipe(step(topk(TextRelevance()), Once(), Stage.PROJECTED), keep=3)).reduce(
            X
        ),
        EVIDENCE,
        "text",
    ),
    "grid": (lambda: build("pool", keep=4).reduce(X, grid=(3, 4)), BAD, "(3, 4)"),
    "frames": (lambda: build("divprune", keep=4).reduce(X, frames=3), BAD, "frames=3"),
    "mass shape": (
        lambda: build("divprune", keep=4).reduce(X, mass=torch.ones(2, 9)),
        BAD,
        "(2, 9)",
    ),
    "mass 0": (lambda: build("divprune", keep=4).reduce(X, mass=torch.zeros(2, 10)), BAD, "mass"),
    "prefix": (lambda: build("divprune").reduce(X, prefix=10), BAD, "prefix=10"),
    "protected": (
        lambda: build("divprune", keep=4).reduce(X, protected=torch.ones(2, 10)),
        BAD,
        "protected",
    ),
    "too few for one step": (lambda: build("tome", keep=2).reduce(X, keys=X), BUDGET, "keep=2"),
    "too many protected": (
        lambda: build("divprune", keep=4).reduce(X, protected=torch.ones(2, 10, dtype=torch.bool)),
        BUDGET,
        "keep=4",
    ),
    "two steps on tensors": (
        lambda: build(Recipe(step(), step(stage=Stage.FEATURES))).reduce(X),
        BAD,
        "2 steps",
    ),
    "unmerge": (lambda: build("divprune", keep=4).reduce(X).unmerge(X), BAD, "(2, 10, 4)"),
    "plan that contradicts itself": (
        lambda: TokenMap(torch.tensor([[0, 1]]), torch.tensor([[1, 0]])).check(),
        BAD,
        "dst[keep[i]]",
    ),
    "plan out of range": (
        lambda: TokenMap(torch.tensor([[0, 9]]), torch.tensor([[0, 1]])).check(),
        BAD,
        "-1 .. 1",
    ),
    "plans of other lengths": (
        lambda: TokenMap.identity(1, 5).then(TokenMap.identity(1, 4)),
        BAD,
        "5",
    ),
    # files
    "no file": (lambda folder: tokenzoo.load(folder / "none.json"), BAD, "none.json"),
    "not JSON": (loaded("steps:"), BAD, "not a saved recipe"),
    "empty file": (loaded(""), BAD, "not a saved recipe"),
    "cut off": (loaded('{"tokenzoo": 1, "reci'), BAD, "not a saved recipe"),
    "a list": (loaded("[1, 2]"), BAD, "not a saved recipe"),
    "no format": (loaded("{}"), BAD, "reads 1"),
    "newer": (saved(tokenzoo=99), BAD, "format 99"),
    "no steps": (loaded('{"tokenzoo": 1}'), BAD, "not a saved recipe"),
    "steps a number": (saved(steps=3), BAD, "not a saved recipe"),
    "bad keep": (saved(keep=0), BAD, "keep=0"),
    "unknown recipe in a file": (
        loaded('{"tokenzoo": 1, "recipe": "zzz", "options": {}}'),
        UNKNOWN,
        "'zzz'",
    ),
    "unknown option in a file": (
        loaded('{"tokenzoo": 1, "recipe": "tome", "options": {"x": 1}}'),
        UNKNOWN,
        "'x'",
    ),
    "code for a part": (
        saved(steps=named(part("matchers", "os.system", command="true"))),
        UNKNOWN,
        "'os.system'",
    ),
    "builtins for a part": (
        saved(steps=named(part("matchers", "__import__", module="os"))),
        UNKNOWN,
        "'__import__'",
    ),
    "kind that does not exist": (
        saved(steps=named(part("modules", "os"))),
        TokenzooError,
        "modules",
    ),
    "combination that does not exist": (saved(steps=named(part("combined", "eval"))), BAD, "eval"),
    "option that is not the part's": (
        saved(steps=named(part("matchers", "bipartite", code="import os"))),
        BAD,
        "not a saved recipe",
    ),
    "a text for a part": (saved(steps=["import os"]), BAD, "import os"),
    "a part without a name": (
        lambda folder: build(Recipe(step(topk(_Mine())))).save(folder / "mine.json"),
        BAD,
        "not registered",
    ),
    # plugins
    "misspelt hook": (
        lambda: with_plugin(plugin(tokenzoo_scorer=lambda: {"a": Random})),
        PLUGIN,
        "'bad'",
    ),
    "no mapping": (lambda: with_plugin(plugin(tokenzoo_scorers=lambda: [1])), PLUGIN, "'bad'"),
    "no factory": (lambda: with_plugin(plugin(tokenzoo_scorers=lambda: {"a": 3})), PLUGIN, "'bad'"),
    "name taken": (
        lambda: with_plugin(plugin(tokenzoo_scorers=lambda: {"random": Random})),
        PLUGIN,
        "'random'",
    ),
    "plugin that raises": (
        lambda: with_plugin(plugin(tokenzoo_scorers=lambda: 1 / 0)),
        PLUGIN,
        "'bad'",
    ),
    "nothing to say": (lambda: with_plugin(plugin()), PLUGIN, "hookimpl"),
    # tools
    "no rounds": (lambda: interleaved({"a": list}, rounds=0, baseline="a"), BAD, "rounds=0"),
    "no such baseline": (
        lambda: interleaved({"a": list}, rounds=1, baseline="b"),
        BAD,
        "baseline='b'",
    ),
    "picture of another grid": (
        lambda: merged_groups(IMAGE, TokenMap.identity(1, 10), (2, 4), 1),
        BAD,
        "10 tokens",
    ),
    "picture of no image": (lambda: shrunk_image(IMAGE[0], (2, 2)), BAD, "(28, 28)"),
    "no scikit-learn": (without_sklearn, DEPENDENCY, "scikit-learn"),
    "a time of what is no function": (
        lambda: interleaved({"a": 3}, rounds=1, baseline="a"),
        BAD,
        "a=3",
    ),
    "times without names": (lambda: interleaved([list], rounds=1, baseline="a"), BAD, "functions="),
    "between rounds": (
        lambda: interleaved({"a": list}, rounds=1, baseline="a", between=3),
        BAD,
        "between=3",
    ),
    "picture of a list": (
        lambda: merged_groups([[0.0]], TokenMap.identity(1, 5), (2, 2), 1),
        BAD,
        "float tensor [3, height, width]",
    ),
    "picture in bytes": (
        lambda: merged_groups(IMAGE.byte(), TokenMap.identity(1, 5), (2, 2), 1),
        BAD,
        "torch.uint8",
    ),
    "picture without a plan": (lambda: merged_groups(IMAGE, None, (2, 2), 1), BAD, "plan=None"),
    "picture of a number": (
        lambda: merged_groups(IMAGE, TokenMap.identity(1, 5), 4, 1),
        BAD,
        "grid=4",
    ),
    "picture of no such image": (
        lambda: merged_groups(IMAGE, TokenMap.identity(1, 5), (2, 2), 1, index=1),
        BAD,
        "index=1",
    ),
    "picture of half an image": (
        lambda: merged_groups(IMAGE, TokenMap.identity(1, 5), (2, 2), 1, index=0.5),
        BAD,
        "index=0.5",
    ),
    "see_through": (
        lambda: merged_groups(IMAGE, TokenMap.identity(1, 5), (2, 2), 1, see_through=2),
        BAD,
        "see_through=2",
    ),
    "gallery": (
        lambda folder: gallery([[Panel(IMAGE)]], [("a", ""), ("b", "")], folder / "a.png"),
        BAD,
        "rows of [1] panels",
    ),
    "gallery without panels": (
        lambda folder: gallery([[IMAGE]], [("a", "")], folder / "a.png"),
        BAD,
        "panel=",
    ),
    "gallery without details": (
        lambda folder: gallery([[Panel(IMAGE)]], ["a"], folder / "a.png"),
        BAD,
        "column='a'",
    ),
    # flags and options, under the name that the caller has used
    "sticky": (lambda: build("evoprune", sticky="yes"), BAD, "sticky='yes'"),
    "by_mass": (lambda: build("evoprune", by_mass=1), BAD, "by_mass=1"),
    "negated": (lambda: build("cdpruner", negated=0), BAD, "negated=0"),
    "proposers": (lambda: build("evoprune", proposers="b"), BAD, "proposers='b'"),
    "own name of ctr": (lambda: build("evoprune", ctr=-1), BAD, "ctr=-1"),
    "own name of density": (lambda: build("evoprune", density="y"), BAD, "density='y'"),
    "dominant": (lambda: build("visionzip", dominant=1.5), BAD, "dominant=1.5"),
    "inflection without r": (
        lambda: build("tome", inflection=0.5),
        BAD,
        "inflection=0.5 with r=None",
    ),
    "pattern": (lambda: tokenzoo.list_recipes(3), BAD, "pattern=3"),
    "scores subtracted": (lambda: length - length, BAD, "FeatureNorm - FeatureNorm"),
    "pair scores by a number": (lambda: 2 * cosine, BAD, "discount(lam)"),
    "weight of a score": (lambda: length.normalized() * float("nan"), BAD, "weight=nan"),
    "model's name": (lambda: create("vit_bas_patch16_224"), UNKNOWN, "'vit_bas_patch16_224'"),
    "model's library": (lambda: create("jax:vit"), UNKNOWN, "'jax'"),
    "model's option": (lambda: create("vit_tiny_patch16_224", colour=3), BAD, "{'colour': 3}"),
    "model's depth": (lambda: create("vit_tiny_patch16_224", depth=0), BAD, "depth=0"),
    "no model's name": (lambda: create(3), BAD, "name=3"),
    # other people's parts
    "scores of another shape": (
        lambda: build(Recipe(step(topk(_Scores())), keep=3)).reduce(X),
        BAD,
        "(2, 9)",
    ),
    "counts for fewer sites": (
        lambda: build(Recipe(step(schedule=_Counts(8, 5)), keep=5)).plan(10, 3),
        BAD,
        "(8, 5)",
    ),
    "counts for more sites": (
        lambda: build(Recipe(step(schedule=_Counts(8, 5, 5)), keep=5)).plan(10, 2),
        BAD,
        "(8, 5, 5)",
    ),
    "counts that rise": (
        lambda: build(Recipe(step(schedule=_Counts(5, 8)), keep=5)).plan(10, 2),
        BAD,
        "(5, 8)",
    ),
    "counts above all": (
        lambda: build(Recipe(step(schedule=_Counts(11, 5)), keep=5)).plan(10, 2),
        BAD,
        "(11, 5)",
    ),
    "counts of none": (
        lambda: build(Recipe(step(schedule=_Counts(5, 0)), keep=5)).plan(10, 2),
        BAD,
        "(5, 0)",
    ),
    "counts in floats": (
        lambda: build(Recipe(step(schedule=_Counts(5.0, 5.0)), keep=5)).plan(10, 2),
        BAD,
        "(5.0, 5.0)",
    ),
    "a plan with too many": (
        lambda: build(Recipe(step(_Keeps(TokenMap.identity(2, 10))), keep=5)).reduce(X),
        BAD,
        "from 10 tokens to 5",
    ),
    "a plan of other tokens": (
        lambda: build(Recipe(step(_Keeps(TokenMap.identity(2, 5))), keep=5)).reduce(X),
        BAD,
        "from 10 tokens to 5",
    ),
    "no plan": (
        lambda: build(Recipe(step(_Keeps(None)), keep=5)).reduce(X),
        BAD,
        "from 10 tokens to 5",
    ),
    "a recipe of another kind": (recipe_of_another_kind, PLUGIN, "'odd'"),
    "an adapter of another kind": (adapter_of_another_kind, PLUGIN, "returns 3"),
    # values that are no numbers, and tensors on another device
    "x in ints": (lambda: build("divprune").reduce(X.long()), BAD, "torch.int64"),
    "x complex": (lambda: build("divprune").reduce(X.cfloat()), BAD, "torch.complex64"),
    "keys in ints": (
        lambda: build("tome", keep=5).reduce(X, keys=X.long()),
        BAD,
        "keys has dtype torch.int64",
    ),
    "keys elsewhere": (lambda: build("tome", keep=5).reduce(X, keys=X.to("meta")), BAD, "keys"),
    "mass infinite": (
        lambda: build("divprune", keep=4).reduce(X, mass=torch.full((2, 10), torch.inf)),
        BAD,
        "mass",
    ),
    "text of another width": (
        lambda: build("cdpruner", keep=4).reduce(X, text=torch.ones(2, 3, 5)),
        BAD,
        "at=",
    ),
    "text in words": (
        lambda: build("cdpruner", keep=4).reduce(X, text="a dog"),
        BAD,
        "text has shape str",
    ),
    "another layer in a list": (
        lambda: build("divprune", keep=4).reduce(X, at=[X]),
        BAD,
        "{-2: {'cls_attention': ...}}",
    ),
    "unknown evidence of another layer": (
        lambda: build("divprune", keep=4).reduce(X, at={-2: {"colour": X}}),
        BAD,
        "colour",
    ),
    "another layer missing": (
        lambda: build("cdpruner", keep=4, relevance="clip").reduce(X, text=torch.ones(2, 1, 4)),
        EVIDENCE,
        "at={'clip': {'x': ...}}",
    ),
    "grid with protected ones": (
        lambda: build("pool", keep=4).reduce(
            X, grid=(2, 5), protected=torch.eye(10, dtype=torch.bool)[:2]
        ),
        EVIDENCE,
        "without protected=",
    ),
    "r on tensors": (lambda: build("tome", r=2).reduce(X, keys=X), BAD, "keep=None"),
    "unmerge of a list": (
        lambda: build("divprune", keep=4).reduce(X).unmerge([1.0]),
        BAD,
        "[2, 4, ...]",
    ),
    "unmerge with a fill of another length": (
        lambda: build("divprune", keep=4).reduce(X).unmerge(X[:, :4], fill=X[:, :3]),
        BAD,
        "(2, 3, 4)",
    ),
    "unmerge with words": (
        lambda: build("divprune", keep=4).reduce(X).unmerge(X[:, :4], fill="grey"),
        BAD,
        "fill",
    ),
    "sums of another length": (
        lambda: TokenMap.identity(1, 5).sum(torch.ones(1, 4)),
        BAD,
        "(1, 4)",
    ),
    "then nothing": (lambda: TokenMap.identity(1, 5).then(None), BAD, "later=None"),
    "plan in floats": (
        lambda: TokenMap(torch.zeros(1, 1), torch.zeros(1, 1)).check(),
        BAD,
        "torch.float32",
    ),
    "plan without a batch": (
        lambda: TokenMap(torch.tensor([0]), torch.tensor([0])).check(),
        BAD,
        "keep has shape (1,)",
    ),
    "plan that keeps twice": (
        lambda: TokenMap(torch.tensor([[0, 0]]), torch.tensor([[0, 1]])).check(),
        BAD,
        "its own slot",
    ),
    "plan of other images": (
        lambda: TokenMap(torch.tensor([[0]]), torch.tensor([[0], [0]])).check(),
        BAD,
        "keep is for 1 images, dst for 2",
    ),
    # damaged files
    "nested without end": (loaded("[" * 100000), BAD, "not a saved recipe"),
    "a key at the wrong place": (
        loaded('{"tokenzoo": 1, "recipe": "tome", "options": {}, "keep": 4}'),
        BAD,
        "'keep' is not one of tokenzoo, recipe, options",
    ),
    "code next to the steps": (saved(code="import os"), BAD, "'code'"),
    "a recipe for an option": (
        loaded('{"tokenzoo": 1, "recipe": "tome", "options": {"recipe": "os.system"}}'),
        BAD,
        "'recipe' is not an option",
    ),
    "a number for a recipe": (
        loaded('{"tokenzoo": 1, "recipe": 3, "options": {}}'),
        BAD,
        "build(3)",
    ),
    "kind that asks plugins": (saved(steps=named(part("adapter", "timm"))), BAD, "'adapter'"),
    "scorer for a matcher": (saved(steps=named(part("scorers", "random"))), BAD, "matcher=Random"),
    "keep and flops in a file": (saved(flops=0.5), BAD, "flops=0.5"),
    "a number for a path": (lambda: tokenzoo.load(3), BAD, "3 is not a saved"),
    "no folder to save in": (
        lambda folder: build("tome").save(folder / "none" / "a.json"),
        BAD,
        "none",
    ),
    "a folder to save to": (lambda folder: build("tome").save(folder), BAD, "cannot be written"),
    # the command line
    "typed kind": (lambda: typed("list", "planets"), UNKNOWN, "'planets'"),
    "typed recipe": (lambda: typed("describe", "evoprun"), UNKNOWN, "'evoprun'"),
    "typed keep": (lambda: typed("doctor", "vit_tiny_patch16_224", "--keep", "0"), BAD, "keep '0'"),
    "typed model": (
        lambda: typed("doctor", "vit_bas_patch16_224"),
        UNKNOWN,
        "'vit_bas_patch16_224'",
    ),
    "typed image": (lambda: typed("viz", "nothing.png", "--out", "nothing.out"), BAD, "nothing"),
    "typed part": (lambda: typed("check", "nobody:part"), BAD, "'nobody'"),
}

# Calls with a model. After each the model is bare, bit for bit.
NEW = Recipe(
    Step(Stage.BLOCK, Once(3), SelectAssign(TopK(length), Nearest(cosine)), TargetPlusMean())
)
MODELS: dict[str, tuple[Any, Callable[[Any], object], type[TokenzooError], str]] = {
    "second attach": (VIT, second_attach, ATTACH, "replace=True"),
    "when": (VIT, lambda m: build("tome").attach(m, when="test"), BAD, "when='test'"),
    "trace": (VIT, lambda m: build("tome").attach(m, trace=1), BAD, "trace=1"),
    "restore": (VIT, lambda m: build("tome").attach(m, restore="yes"), BAD, "restore='yes'"),
    "debug": (VIT, lambda m: build("tome").attach(m, debug=None), BAD, "debug=None"),
    "on_reduce": (VIT, lambda m: build("tome").attach(m, on_reduce=3), BAD, "on_reduce=3"),
    "stage of a model": (VIT, build("divprune").attach, ATTACH, "Stage.PROJECTED"),
    "two steps": (
        VIT,
        build(Recipe(step(stage=Stage.IMAGE), step())).attach,
        ATTACH,
        "stage 'image' must be the only step",
    ),
    "a block's number": (VIT, build(Recipe(step(stage=Stage.BLOCK(3)))).attach, ATTACH, "schedule"),
    "no CLS": (
        GAP,
        build(Recipe(step(topk(CLSAttention())))).attach,
        EVIDENCE,
        "needs cls_attention",
    ),
    "no text": (VIT, build(Recipe(step(topk(TextRelevance())))).attach, EVIDENCE, "needs text"),
    "other layer": (
        VIT,
        build(Recipe(step(topk(ReceivedAttention(layer=-2))))).attach,
        EVIDENCE,
        "received_attention@-2",
    ),
    "keep out of reach": (VIT, build("evoprune", keep=1).attach, BUDGET, "keep=1"),
    "flops out of reach of a model": (VIT, build("evoprune", flops=0.2).attach, BUDGET, "0.2"),
    "no rectangle": (VIT, build("downsample", keep=97).attach, BUDGET, "96 and 98"),
    "smaller images": (RELPOS, build("downsample").attach, ATTACH, "Stage.IMAGE"),
    "attention off": (VIT, unfused, ATTACH, "fused_attn"),
    "lost state": (VIT, lost_state, ATTACH, "do not carry the state"),
    "lost state, pooled": (SIGLIP, lost_state, ATTACH, "do not carry the state"),
    "mask": (VIT, masked, ATTACH, "attention mask"),
    "no pass yet": (VIT, partial(never_ran, "counts"), ATTACH, "has not run in this thread"),
    "replace": (VIT, lambda m: build("tome").attach(m, replace=None), BAD, "replace="),
    "schedule for other depths": (
        VIT,
        build("evoprune", schedule=First(7)).attach,
        BAD,
        "First(n=7)",
    ),
    "removals for other depths": (VIT, build("tome", r=[1] * 7).attach, BAD, "depth of 6"),
    "block that is not there": (VIT, build("uniform", at=6).attach, BAD, "at=6"),
    "counts of somebody's schedule": (
        VIT,
        build(Recipe(step(schedule=_Counts(196, 100)), keep=100)).attach,
        BAD,
        "(196, 100)",
    ),
    "plan of somebody's matcher": (
        VIT,
        partial(passing, Recipe(step(_Keeps(TokenMap.identity(1, 196))), keep=100)),
        BAD,
        "from 196 to 196",
    ),
    "scores of somebody's scorer": (
        VIT,
        partial(passing, Recipe(step(topk(_Scores())), keep=100)),
        BAD,
        "(1, 195)",
    ),
    "plan of no tokens": (VIT, partial(planning, 0), BAD, "tokens=0"),
    "plan of half a token": (VIT, partial(planning, 0.5), BAD, "tokens=0.5"),
    "plan of a list": (VIT, partial(planning, [196]), BAD, "tokens=[196]"),
    "plan of a number that was asked for": (VIT, partial(planning, 196.0), BAD, "tokens=196.0"),
    "a block by itself": (VIT, block_alone, ATTACH, "blocks.1"),
    "no pass yet, mass": (VIT, partial(never_ran, "mass"), ATTACH, "has not run"),
    "no trace": (VIT, no_trace, ATTACH, "trace=True"),
    "maps": (DINO_REG, maps, ATTACH, "restore=True"),
    "NaN in debugging": (VIT, bad_image, ATTACH, "image 1"),
}


def _compiled_in_place() -> Any:
    model = VIT.build(depth=2)
    model.blocks[1].compile(backend="eager")
    return model


# What is no model that anybody knows.
NONE: dict[str, tuple[Callable[[], Any], type[TokenzooError], str]] = {
    "None": (lambda: None, UNSUPPORTED, "None"),
    "a name": (lambda: "vit_base_patch16_224", UNSUPPORTED, "pass the model itself"),
    "a class": (lambda: type(VIT.build(depth=1)), UNSUPPORTED, "torch.nn.Module"),
    "its blocks": (lambda: VIT.build(depth=2).blocks, UNSUPPORTED, "Sequential"),
    "a function": (lambda: torch.relu, UNSUPPORTED, "torch.nn.Module"),
    "no transformer": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        UNSUPPORTED,
        "reduce()",
    ),
    "compiled": (lambda: torch.compile(VIT.build(depth=2), backend="eager"), ATTACH, "compiled"),
    "compiled in place": (_compiled_in_place, ATTACH, "compiled"),
    "no weights": (lambda: VIT.build(depth=4).to("meta"), ATTACH, "meta device"),
}


class _Mine(tokenzoo.Scorer):
    """Of nobody's plugin."""

    def score(self, evidence: Any) -> torch.Tensor:
        return evidence.x.sum(-1)


def _held(error: pytest.ExceptionInfo[Any], kind: type[TokenzooError], word: str) -> None:
    assert type(error.value) is kind or kind is TokenzooError, repr(error.value)
    assert word in str(error.value), str(error.value)
    assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call(name: str, tmp_path: Path) -> None:
    call, kind, word = CALLS[name]
    wants_folder = call.__code__.co_argcount > 0
    with pytest.raises(TokenzooError) as error:
        call(tmp_path) if wants_folder else call()
    _held(error, kind, word)


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_call_with_a_model(name: str) -> None:
    make, call, kind, word = MODELS[name]
    model = make.build(depth=6)
    x = images(model, batch=1)
    with torch.no_grad():
        bare = model(x)
    state = {key: id(value) for key, value in vars(model).items()}
    with pytest.raises(TokenzooError) as error:
        call(model)
    _held(error, kind, word)
    assert traces(model) == []
    assert {key: id(value) for key, value in vars(model).items()} == state
    with torch.no_grad():
        assert torch.equal(model(x), bare)


@pytest.mark.parametrize("name", NONE)
def test_no_model(name: str) -> None:
    make, kind, word = NONE[name]
    model = make()
    with pytest.raises(TokenzooError) as error:
        build("tome").attach(model)
    _held(error, kind, word)
    if isinstance(model, nn.Module):
        assert traces(model) == []


def test_what_cannot_be_pickled_is_refused_and_stays_attached() -> None:
    """Attached models can be pickled; a lambda cannot, and pickle says so."""
    model = VIT.build(depth=6)
    x = images(model, batch=1)
    with torch.no_grad():
        bare = model(x)
        with build("tome").attach(model, on_reduce=lambda event: None):
            expected, left = model(x), traces(model)
            with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
                pickle.dumps(model)
            assert traces(model) == left
            assert torch.equal(model(x), expected)
        assert traces(model) == []
        assert torch.equal(model(x), bare)


def test_the_table_is_long_and_every_error_is_in_it() -> None:
    kinds = [row[1] for row in CALLS.values()]
    kinds += [row[2] for row in MODELS.values()] + [row[1] for row in NONE.values()]
    assert len(kinds) >= 220
    public = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    # A file that cannot be is made, and refused, in test_exporting.
    assert public - {TokenzooError, ExportError} <= set(kinds)
