"""Golden files against tokenzoo: what to call for each method, and how the numbers are compared.

A golden file `METHOD.npz` holds what the authors' own code returned: `in/<inputs>/<name>`,
`out/<case>/<name>` (or `<case>/<name>`), and `meta_json`, which lists the cases with their parameters.
A mapping takes one case, does the same with tokenzoo and compares every output of the case.

A case may hold any number of images. One alone may come without a batch axis; several have one in every
input and output, and where they keep different counts, the shorter rows end in -1 (integers) or 0 (floats).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import tokenzoo
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import (
    Bipartite,
    Drop,
    Every,
    Halves,
    Parity,
    Protect,
    SelectAssign,
    TopK,
)
from tokenzoo.matchers.far_from_pivots import set_order
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Once
from tokenzoo.scorers import CLSAttention, FeatureNorm, GraphEnergy, Similarity
from tokenzoo.scorers.raters import raters
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, unit

# Largest absolute difference between two floats that count as equal.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
# Largest relative difference between the scores of two kept sets, where rounding decides who is kept.
SCORE_TOLERANCE = 1e-3

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One run of the authors' code.

    Attributes:
        label: file and case, for messages.
        meta: of the whole file.
        entry: of this case in the meta.
        inputs, outputs: by name; the float inputs are cast to float64 where the case says so.
    """

    label: str
    meta: Mapping[str, Any]
    entry: Mapping[str, Any]
    inputs: Outputs
    outputs: Outputs

    @property
    def params(self) -> Mapping[str, Any]:
        return self.entry["params"]

    @property
    def unstable(self) -> bool:
        """Whether the choice flips under rounding."""
        flags = ("stable_1e-6", "f64_index_equal")
        return any(self.entry.get(flag) is False for flag in flags)

    def batch(self, name: str, axes: int) -> Tensor:
        """An input with a batch axis, `axes` in all: of a single image it may be without."""
        value = self.inputs[name]
        return value if value.ndim == axes else value[None]

    def compare(self, ours: Outputs, score: Callable[[Outputs], Tensor] | None = None) -> None:
        """Compare every output: integers exactly, floats to `TOLERANCE`.

        An unstable case: the shapes, which hold the kept counts, and the `score [b]` of the kept sets.
        Ours have a batch axis; an output of the file without one holds for each image.
        """
        assert set(ours) == set(self.outputs), (
            f"{self.label}: the file has {sorted(self.outputs)}, the mapping gives {sorted(ours)}"
        )
        outputs = {
            name: theirs.expand(len(ours[name]), *theirs.shape)
            if theirs.ndim == ours[name].ndim - 1
            else theirs
            for name, theirs in self.outputs.items()
        }
        for name, theirs in outputs.items():
            assert ours[name].shape == theirs.shape, (
                f"{self.label}: {name} is {tuple(ours[name].shape)}, not {tuple(theirs.shape)}"
            )
            if not self.unstable:
                self.equal(name, ours[name], theirs)
        if self.unstable:
            assert score is not None, f"{self.label}: unstable, and its mapping has no score"
            got, wanted = score(ours), score(outputs)
            assert bool(((got - wanted).abs() <= SCORE_TOLERANCE * wanted.abs()).all()), (
                f"{self.label}: the kept set scores {got}, theirs {wanted}"
            )

    def equal(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Raise unless two tensors are equal; NaN equals nothing."""
        if not theirs.is_floating_point() or theirs.numel() == 0:
            assert torch.equal(ours.to(theirs.dtype), theirs), f"{self.label}: {name} differs"
            return
        gap = (ours.double() - theirs.double()).abs().amax()
        tolerance = TOLERANCE[theirs.dtype]
        assert bool(gap <= tolerance), (
            f"{self.label}: {name} differs by {float(gap):.2e} > {tolerance}"
        )


def one_of(*ways: Callable[[], None]) -> None:
    """Run comparisons until one of them passes; if none does, raise the error of the first.

    For files of several images: the authors' code mixes the images of a batch, and a file does not say
    whether it holds one call for all of them or one call for each.
    """
    first: AssertionError | None = None
    for way in ways:
        try:
            return way()
        except AssertionError as error:
            first = first or error
    assert first is not None
    raise first


def rows(tensors: Sequence[Tensor]) -> Tensor:
    """One row for each image, the shorter ones padded with -1 (integers) or 0 (floats)."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(list(tensors))
    fill = 0 if tensors[0].is_floating_point() else -1
    return pad_sequence(list(tensors), batch_first=True, padding_value=fill)


def read_meta(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file["meta_json"]))


def case_names(path: Path) -> list[str]:
    return [entry.get("case", entry.get("key")) for entry in read_meta(path)["cases"]]


def read_case(path: Path, name: str) -> Case:
    meta = read_meta(path)
    entry = meta["cases"][case_names(path).index(name)]
    double = entry.get("dtype") == "float64"

    def read(*folders: str) -> dict[str, Tensor]:
        found = {
            key.removeprefix(folder): torch.from_numpy(file[key])
            for folder in folders
            for key in file.files
            if key.startswith(folder)
        }
        return dict(sorted(found.items()))

    with np.load(path, allow_pickle=False) as file:
        inputs = read(f"in/{entry.get('inputs')}/")
        outputs = read(f"out/{name}/", f"{name}/")
    if double:
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    label = f"{path.stem} {name} {entry.get('params', '')}"
    assert outputs, f"{label}: the file has no outputs of this case"
    return Case(label, meta, entry, inputs, outputs)


def check(path: Path, name: str | None) -> None:
    """Compare one case of a file; `name` None: the file has no mapping or no case, which is an error."""
    mapping = MAPPINGS.get(path.stem)
    assert mapping is not None, (
        f"{path.name} has no mapping: write one into golden_mappings.MAPPINGS, or take the file away"
    )
    assert name is not None, f"{path.name} has no cases"
    with torch.no_grad():
        mapping(read_case(path, name))


# The mappings ----------------------------------------------------------------------------------------


def tome(case: Case) -> None:
    """Bipartite soft matching on bare tensors; `source` is the row of the output that each input is in."""
    x, metric = case.inputs["x"], case.inputs["metric"]
    prefix = int(case.params.get("class_token", 0)) + int(case.params.get("distill_token", 0))
    patches = x.shape[1] - prefix
    if "kth" in case.params:
        k = case.params["kth"]
        match = Bipartite(Similarity("keys"), split=Every(k), order="tome")
        step = Step(Stage.BLOCK, Once(), match, WeightedMean())
        zoo = tokenzoo.build(Recipe(step, keep=patches // k))
    else:
        zoo = tokenzoo.build("tome", keep=patches - min(case.params["r"], patches // 2))
    mass = case.inputs["size"][..., 0] if case.params.get("use_size") else None
    reduced = zoo.reduce(x, keys=metric, mass=mass, prefix=prefix)
    reduced.plan.check()
    ours = {
        "merged": reduced.x,
        "size": reduced.mass[..., None],
        "source": reduced.plan.dst,
    }
    if "unmerged" in case.outputs:
        spread = reduced.unmerge(reduced.x)
        if not case.unstable:
            case.equal("spread", spread, take(case.outputs["merged"], case.outputs["source"]))
        if case.params.get("distill_token"):
            # A slip of the original: it puts the distillation token second among its outputs, and its
            # unmerge reads them as if it stood after the tokens that stay. The lines above say what is
            # right; with its rows turned in the same way ours are equal to what it returned.
            stay = (x.shape[1] + 1) // 2 - (x.shape[1] - reduced.x.shape[1])
            rows = [0, stay, *range(1, stay), *range(stay + 1, reduced.x.shape[1])]
            spread = reduced.unmerge(reduced.x[:, rows])
        ours["unmerged"] = spread
    case.compare(ours, lambda outputs: _alikeness(metric, outputs))


def visionzip(case: Case) -> None:
    """`dominant` counts the CLS token in the file, and never in tokenzoo."""
    hidden, attention, keys = (case.inputs[name] for name in ("hidden", "attn_cls", "keys"))
    dominant, contextual = case.params["dominant"] - 1, case.params["contextual"]
    zoo = tokenzoo.build("visionzip", keep=dominant + contextual, dominant=dominant)
    reduced = zoo.reduce(hidden, keys=keys, cls_attention=attention, prefix=1)
    reduced.plan.check()
    keep = reduced.plan.keep
    # The order of the choice is that of the selector, which the recipe then sorts.
    ranked = Recipe(_chosen(TopK(CLSAttention(heads="sum"))), keep=dominant)
    order = tokenzoo.build(ranked).reduce(hidden, cls_attention=attention, prefix=1).plan.keep
    ours = {
        "tokens": reduced.x,
        "dominant": keep[:, : dominant + 1],
        "dominant_rank_order": order,
        "contextual": keep[:, dominant + 1 :],
    }
    received = attention.sum(1)
    case.compare(ours, lambda outputs: take(received, outputs["dominant"][:, 1:]).sum(-1))


def divprune(case: Case) -> None:
    """`indices` are the kept ones in ascending order, `order` as they were chosen."""
    x, count = case.batch("proj_feats", 3), case.params["keep"]
    zoo = tokenzoo.build("divprune", keep=count)
    reduced = zoo.reduce(x)
    reduced.plan.check()
    chosen = Recipe(_chosen(zoo.recipe.steps[0].matcher.stay), keep=count)
    order = tokenzoo.build(chosen).reduce(x).plan.keep
    case.compare({"indices": reduced.plan.keep, "order": order}, lambda o: _spread(x, o))
    if not case.unstable:
        case.equal("features", reduced.x, take(x, case.outputs["indices"].view(len(x), -1)))


def cdpruner(case: Case) -> None:
    """Relevance from CLIP's projected patches, diversity from the projected features.

    `text_embeds` are `[b, t, c]`, or one list: the texts of one prompt, or as many for each image in turn.
    The authors' code scales relevance over the batch, and compares every image with all texts.
    """
    x, clip, text = (case.inputs[name] for name in ("proj_feats", "image_embeds", "text_embeds"))
    b = len(x)

    def compare(text: Tensor, match_reference: bool) -> None:
        zoo = tokenzoo.build(
            "cdpruner", keep=case.params["keep"], relevance="clip", match_reference=match_reference
        )
        reduced = zoo.reduce(x, text=text, at={"clip": {"x": clip}})
        reduced.plan.check()
        case.compare(
            {"indices": reduced.plan.keep}, lambda outputs: _volume(x, clip, text, outputs)
        )
        if not case.unstable:
            case.equal("features", reduced.x, take(x, case.outputs["indices"]))

    if text.ndim == 3:
        return compare(text, False)
    shared = text.expand(b, -1, -1)
    ways = [(shared, False)]
    if b > 1:
        ways.append((shared, True))
        if len(text) % b == 0:
            ways.insert(0, (text.view(b, -1, text.shape[-1]), False))
    return one_of(*(partial(compare, *way) for way in ways))


def fastervlm(case: Case) -> None:
    """`tokens` are the features of the kept ones, in raster order."""
    x, attention = case.inputs["feats"], case.inputs["cls_attn"]
    reduced = tokenzoo.build("fastervlm", keep=case.params["keep"]).reduce(
        x, cls_attention=attention
    )
    reduced.plan.check()
    scores = CLSAttention().score(
        Evidence(x, mass=reduced.mass, show={"cls_attention": lambda: attention})
    )
    ours = {"indices": reduced.plan.keep, "score": scores, "tokens": reduced.x}
    case.compare(ours, lambda outputs: take(attention.mean(1), outputs["indices"]).sum(-1))


def fastv(case: Case) -> None:
    """The whole prompt: `start` tokens, the image, the text. `keep` and the positions count all of them."""
    hidden, attention = case.inputs["hidden"], case.inputs["attn"][:, :, -1]
    start, image_end = case.params["start"], case.params["start"] + case.params["n_img"]
    reduced = tokenzoo.build("fastv", keep=1 - case.params["fastv_r"]).reduce(
        hidden[:, :image_end], last_attention=attention[..., :image_end], prefix=start
    )
    reduced.plan.check()
    keep = _and_text(reduced.plan.keep, image_end, hidden.shape[1])
    ours = {
        "keep": keep,
        "hidden": torch.cat([reduced.x, hidden[:, image_end:]], 1),
        "position_ids": keep,
    }
    case.compare(ours, lambda outputs: take(attention.mean(1), outputs["keep"]).sum(-1))


def dart(case: Case) -> None:
    """The whole prompt, as in `fastv`, after a system prompt of 35 tokens; `keep` has the image only.

    A parameter that is not given is the authors' default. Their count is a little more than was asked of
    their code; `keep` is told that count, and none of it is left over.
    """
    hidden, keys = case.inputs["hidden"], case.inputs["keys"]
    start, n = 35, case.params["n_img"]
    pivots, text_pivots = (case.params.get(f"pivot_{kind}", 4) for kind in ("image", "text"))
    share = int(n * (1 - case.params["reduction_ratio"]) / (pivots + text_pivots))
    zoo = tokenzoo.build(
        "dart",
        keep=pivots + (pivots + text_pivots) * share,
        pivots=pivots,
        text_pivots=text_pivots,
        match_reference=True,
    )
    image_end = start + n
    text = {"x": hidden[:, image_end:], "keys": keys[:, :, image_end:]}
    shown = {"keys": keys[:, :, :image_end], "prefix": start, "at": {"text": text}}
    reduced = zoo.reduce(hidden[:, :image_end], **shown)
    reduced.plan.check()
    longest = tokenzoo.build(Recipe(_chosen(TopK(FeatureNorm("all_keys", power=1))), keep=pivots))
    of_image = longest.reduce(hidden[:, :image_end], keys=shown["keys"], prefix=start).plan.keep[
        :, start:
    ]
    of_text = of_image[:, :0]
    if text_pivots:
        of_text = (
            tokenzoo.build(longest.recipe, keep=text_pivots).reduce(**text).plan.keep + image_end
        )
    both = torch.cat([of_image, of_text], 1)
    ours = {
        "keep": reduced.plan.keep[:, start:],
        "pivots_image": of_image.sort().values,
        "pivots_text": of_text.sort().values,
        "pivot_order": take(both, set_order(both)),
    }
    case.compare(ours, lambda o: take(unit(hidden), o["keep"]).sum(1).norm(dim=-1))


def pdrop(case: Case) -> None:
    """Stage after stage on what the one before has left; no layers are run in between.

    `keepN` are places in the first prompt; the last token of it is the query.
    """
    hidden, start = case.inputs["hidden"], case.params["start"]
    at = torch.arange(hidden.shape[1]).expand(hidden.shape[:2])
    image_end = start + case.params["n_img"]
    ours: dict[str, Tensor] = {}
    best: list[Tensor] = []
    for stage, ratio in enumerate(case.params["ratios"]):
        attention = _next_attention(hidden, case.inputs)
        kept = int(case.params["n_img"] * ratio)
        zoo = tokenzoo.build("pyramiddrop", keep=kept, layers=(8,), factors=(1.0,))
        shown = {"next": {"last_attention": attention[..., :image_end]}}
        reduced = zoo.reduce(hidden[:, :image_end], at=shown, prefix=start)
        reduced.plan.check()
        keep = _and_text(reduced.plan.keep, image_end, hidden.shape[1])
        hidden = torch.cat([reduced.x, hidden[:, image_end:]], 1)
        at, image_end = take(at, keep), start + kept
        ours |= {f"keep{stage}": at, f"hidden{stage}": hidden}
        ours[f"pos{stage}"] = torch.arange(at.shape[1]).expand_as(at)  # positions="compact"
        best.append(attention.mean(1))
    assert zoo.recipe.steps[0].positions == "compact"
    case.compare(ours, lambda outputs: take(best[0], outputs["keep0"]).sum(-1))


def _and_text(keep: Tensor, start: int, end: int) -> Tensor:
    """The kept places `[b, m]` and those of the text, start to end: `[b, m + end - start]`."""
    return torch.cat([keep, torch.arange(start, end).expand(len(keep), -1)], 1)


def _next_attention(x: Tensor, weights: Outputs) -> Tensor:
    """What the last token pays `[b, h, n]` in a layer with RMSNorm, 4 heads and rotary positions."""
    b, n, c = x.shape
    x = F.rms_norm(x, (c,), weights["ln"], 1e-6)
    d = c // 4
    angles = torch.arange(n)[:, None] * 10000 ** (-torch.arange(0, d, 2) / d)

    def turned(name: str) -> Tensor:
        left, right = (x @ weights[name].mT).view(b, n, 4, d).transpose(1, 2).chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

    query, key = turned("wq")[:, :, -1:], turned("wk")
    return (query @ key.mT / d**0.5).softmax(-1)[:, :, 0]


def sparsevlm(case: Case) -> None:
    """The whole prompt, after a system prompt of 35 tokens; heads of 16 channels, as many as 16.

    `raters` are places in the text; `kept` those of the prompt that are no cluster.
    """
    hidden, start, count = case.inputs["hidden"], 35, case.params["keep"]
    n, first = case.params["n_img"], case.params["version"] == "1"
    image_end = start + n
    embeds, attention = (
        case.inputs["embeds"],
        case.inputs["attn"][:, :, image_end - hidden.shape[1] :, :image_end],
    )
    recycled = int(0.3 * (n - count)) + 1
    clusters = recycled // 10 + 1 if first else 0
    options = {"dominant": count} if first else {"version": "2", "match_reference": True}
    zoo = tokenzoo.build("sparsevlm", keep=count + clusters, layers=(3,), factors=(1.0,), **options)
    shown = {
        "prefix": start,
        "text_attention": attention,
        "text_rotation": _rotation(len(hidden), hidden.shape[1], 16)[:, image_end:, :image_end],
        "at": {"embedded": {"x": embeds[:, :image_end], "text": embeds[:, image_end:]}},
    }
    reduced = zoo.reduce(hidden[:, :image_end], **shown)
    reduced.plan.check()
    kept = _and_text(reduced.plan.keep[:, : start + count], image_end, hidden.shape[1])
    (step,) = zoo.recipe.steps
    scorer = step.matcher.stay.steps[0][1].scorer if first else step.matcher.stay.scorer
    chosen = raters(embeds[:, start:image_end], embeds[:, image_end:])
    visual = {name: value[..., start:] for name, value in shown.items() if name.startswith("text_")}
    evidence = Evidence(
        hidden[:, start:image_end],
        mass=torch.ones(len(hidden), n),
        show={name: lambda value=value: value for name, value in visual.items()},
        layers={
            "embedded": Evidence(
                embeds[:, start:image_end],
                mass=torch.ones(len(hidden), n),
                text=embeds[:, image_end:],
            )
        },
    )
    left = torch.cat([reduced.x, hidden[:, image_end:]], 1)
    compact = torch.arange(left.shape[1]).expand(left.shape[:2])
    score = scorer.score(evidence)
    ours = {
        "raters": rows([row.nonzero()[:, 0] for row in chosen]),
        "kept": kept,
        "hidden": left,
        "position_ids": {"compact": compact, "keep": kept}[step.positions],
        "v_token_num": torch.full((len(hidden),), count + clusters),
        "score": score,
    }
    case.compare(ours, lambda o: take(score, o["kept"][:, start : start + count] - start).sum(-1))


def _rotation(b: int, n: int, width: int) -> Tensor:
    """The logits of ones that are turned to n positions, `[b, n, n]`, in heads of so many channels."""
    angles = torch.arange(n)[:, None] * 10000 ** (-torch.arange(0, width, 2) / width)
    ones = torch.cat([angles.cos() - angles.sin(), angles.cos() + angles.sin()], -1)
    return (ones @ ones.mT / width**0.5).expand(b, -1, -1)


def topk(case: Case) -> None:
    """A whole block: `idx` are the kept patches, the most attended first."""
    _vit_block(case, "topk", int(case.params["keep_rate"] * 196))


def evit(case: Case) -> None:
    """As `topk`; -1 stands for the fused token, and `compl` for what is in it; ours counts it."""
    _vit_block(case, "evit", int(case.params["keep_rate"] * 196) + 1)


def _vit_block(case: Case, recipe: str, keep: int) -> None:
    x = case.inputs["x"]
    before, attention = _attended(x, case.inputs)
    reduced = tokenzoo.build(recipe, keep=keep).reduce(before, cls_attention=attention, prefix=1)
    reduced.plan.check()
    index = reduced.plan.keep[:, 1:]
    ours = {
        "y": _after_mlp(reduced.x, case.inputs),
        "idx": torch.where(index < 0, -1, index - 1),
        "x_pre": before,
        "x_red": reduced.x,
        "cls_attn": attention.mean(1)[:, 1:],
    }
    if "compl" in case.outputs:
        fused = reduced.plan.dst[:, 1:] == keep
        ours["compl"] = fused.nonzero()[:, 1].view(len(x), -1)
    case.compare(ours)


def pitome(case: Case) -> None:
    """Ours come in the order of the image, theirs in that of their energy: they are brought into theirs.

    `bsm` is ToMe, whose count includes CLS.
    """
    x, keys = case.inputs["x"], case.inputs["metric"]
    prefix = int(case.params["class_token"])
    variant, margin = case.params["variant"], case.params["margin"]
    n = x.shape[1] - prefix
    of = n + prefix if variant == "bsm" else n
    r = int(np.floor(of - of * case.params["ratio"]))
    curve = "gaussian" if variant == "text" else "elu"
    energy = GraphEnergy("keys", margin, curve)
    match = {
        "pitome": Bipartite(Similarity(), protect=Protect(energy, 1.0), rank=energy),
        "bsm_pitome": Bipartite(Similarity(), rank=energy),
        "bsm": Bipartite(Similarity(), split=Parity(), order="tome"),
        "text": Bipartite(Similarity(), Halves(), Protect(energy, 1.0), rank=energy),
    }[variant]
    mass = case.inputs["size"][..., 0] if case.params.get("use_size") else None
    step = Step(Stage.BLOCK, Once(), match, WeightedMean())
    zoo = tokenzoo.build(Recipe(step, keep=n - r))
    reduced = zoo.reduce(x, keys=keys, mass=mass, prefix=prefix)
    reduced.plan.check()
    ours = {"merged": reduced.x, "size": reduced.mass[..., None], "source": reduced.plan.dst}
    if not case.unstable:
        # Where each of our outputs is among theirs: where the token that it stands for is.
        at = take(case.outputs["source"].long(), reduced.plan.keep)
        place = torch.arange(at.shape[1]).expand_as(at)
        case.equal("source", at.sort(-1).values, place)
        rows = torch.empty_like(at).scatter(1, at, place)
        ours = {
            "merged": take(reduced.x, rows),
            "size": take(reduced.mass, rows)[..., None],
            "source": take(at, reduced.plan.dst),
        }
    case.compare(ours, lambda outputs: _alikeness(keys, outputs))


def dpcknn(case: Case) -> None:
    """With weights these are masses. `agg_weight` is the share of a token in its cluster's mean."""
    x = case.inputs["x"]
    mass = case.inputs["score"][..., 0].exp() if case.params.get("use_weight") else None
    (step,) = tokenzoo.build("dpcknn", k=case.params["k"]).recipe.steps
    merger = step.merger if mass is None else WeightedMean()
    recipe = Recipe(replace(step, merger=merger), keep=case.params["clusters"])
    reduced = tokenzoo.build(recipe).reduce(x, mass=mass)
    reduced.plan.check()
    dst = reduced.plan.dst
    total = reduced.mass if mass is not None else reduced.plan.sum(torch.ones_like(x[..., 0]))
    own = torch.ones_like(x[..., 0]) if mass is None else mass
    ours = {
        "assign": dst,
        "idx_token": dst,
        "centers": reduced.plan.keep,
        "merged": reduced.x,
        "agg_weight": (own / take(total, dst))[..., None],
    }
    case.compare(ours)


def ats(case: Case) -> None:
    """Attention rows times values, gathered: as many as were sampled, CLS first, then zeros that pad.

    What a mask leaves out has mass 0. An unstable case: how near the steps are to what stays.
    """
    attention, values = case.inputs["attn"], case.inputs["v"]
    mask = (
        case.inputs["mask"] if case.params.get("use_mask") else torch.ones_like(case.inputs["mask"])
    )
    shown = {"cls_attention": attention[:, :, 0, 1:], "values": values[:, :, 1:]}
    out = attention @ values  # [b, h, N, d]
    evidence = Evidence(
        out[:, :, 1:].transpose(1, 2).flatten(2),
        mass=mask[:, 1:].float(),
        show={name: (lambda value=value: value) for name, value in shown.items()},
        prefix=1,
    )
    (step,) = tokenzoo.build("ats", match_reference=True).recipe.steps
    plan = step.matcher.match(evidence, case.params["sample_count"]).after_prefix(1)
    plan.check()
    width = case.outputs["ids"].shape[1]
    real = torch.arange(width) < plan.lengths[:, None]
    ids = plan.keep.clamp_min(0)[:, :width]
    rows = ids[:, None, :, None].expand(-1, out.shape[1], -1, out.shape[-1])
    ours = {
        "ids": ids,
        "mask": real,
        "out": out.gather(2, rows),
        "sample_steps": step.matcher.stay.steps(case.params["sample_count"], out).expand(
            len(out), -1
        ),
    }
    weight = step.matcher.stay.scorer.score(evidence)
    total = F.pad((weight / weight.sum(-1, keepdim=True)).cumsum(-1), (1, 0))

    def gap(outputs: Outputs) -> Tensor:
        """How far the steps are from the tokens that stay, on average."""
        marks = take(total, outputs["ids"].long())[:, None]  # [b, 1, m]
        return (marks - ours["sample_steps"][..., None]).abs().amin(-1).mean(-1)

    case.compare(ours, gap)


def vispruner(case: Case) -> None:
    """An unstable case is compared by the attention of what is kept, of which half does not flip."""
    x, attention = case.inputs["feats"], case.inputs["cls_attn"]
    important = case.params["important_ratio"]
    zoo = tokenzoo.build("vispruner", keep=case.params["keep"], important=important)
    reduced = zoo.reduce(x, cls_attention=attention)
    reduced.plan.check()
    ours = {"indices": reduced.plan.keep, "tokens": reduced.x}
    case.compare(ours, lambda outputs: take(attention.mean(1), outputs["indices"]).sum(-1))


def prumerge(case: Case) -> None:
    """One head of all channels; `indices` are the kept ones as chosen, `merged` those in the last token.

    PruMerge+ of a fixed size repeats tokens: what is chosen both ways is there twice, and as many of the
    first others are nowhere. Ours keeps the same tokens, each once, and sums up all others; for the
    features its merger is given the tokens that theirs has.
    """
    hidden, listed = case.inputs["hidden"], case.outputs["indices"].long()
    plus, adaptive = case.params["plus"], case.params["adaptive"]
    shown = {"queries": case.inputs["q"], "keys": case.inputs["k"], "prefix": 1}
    theirs = [row[row >= 0] for row in listed]
    unique = [torch.tensor(list(dict.fromkeys(row.tolist()))) for row in theirs]
    options: dict[str, Any] = {"adaptive": adaptive, "plus": plus}
    if plus and not adaptive:
        important = case.params["keep"]
        options |= {"important": important, "step": int(1 / (important / 576))}

    def compare(match_reference: bool) -> None:
        # Of a fixed size and with repeats, how many different tokens are kept hangs on the image.
        counts = sorted({576 if adaptive else len(row) + 1 for row in unique})
        reduced = [
            tokenzoo.build(
                "prumerge", **options, keep=keep, match_reference=match_reference
            ).reduce(hidden, **shown)
            for keep in counts
        ]
        ours: dict[str, list[Tensor]] = {"tokens": [], "indices": [], "merged": []}
        for image, (row, kept_once) in enumerate(zip(theirs, unique, strict=True)):
            of_count = reduced[0 if adaptive else counts.index(len(kept_once) + 1)]
            plan = of_count.plan
            plan.check()
            end = plan.kept if plan.lengths is None else int(plan.lengths[image])
            assert not bool(of_count.mass[image, end:].any()), f"{case.label}: what pads has a mass"
            kept = plan.keep[image, 1 : end - 1] - 1
            merged = (plan.dst[image, 1:] == end - 1).nonzero()[:, 0]
            tokens = of_count.x[image, 1:end]
            if len(kept_once) < len(row):
                assert torch.equal(kept, kept_once), f"{case.label}: kept {kept}, not {kept_once}"
                merged = merged[len(row) - len(kept) :]
                kept = row
                one = {"hidden": hidden, **{name: shown[name] for name in ("queries", "keys")}}
                tokens = _with_repeats(
                    row, merged, **{name: value[image : image + 1] for name, value in one.items()}
                )
            for name, value in (("tokens", tokens), ("indices", kept), ("merged", merged)):
                ours[name].append(value)
        case.compare({name: rows(values) for name, values in ours.items()})

    one_of(partial(compare, False), *([partial(compare, True)] if len(hidden) > 1 else []))


def _with_repeats(
    kept: Tensor, merged: Tensor, hidden: Tensor, queries: Tensor, keys: Tensor
) -> Tensor:
    """PruMerge's merger, given the tokens of one image that theirs has: some twice, some not at all."""
    listed = torch.cat([kept, merged])[None] + 1
    k = len(kept)
    keep = F.pad(torch.arange(k), (0, 1), value=-1)[None]
    rest = torch.arange(k, listed.shape[1])[None]
    plan = TokenMap.from_slots(keep, rest, torch.full_like(rest, k), listed.shape[1])
    attention = F.softmax(queries[:, :1] @ keys.mT * hidden.shape[-1] ** -0.5, -1)
    seen = Evidence(
        hidden,
        mass=torch.ones(hidden.shape[:2]),
        show={"keys": lambda: keys[:, None], "cls_attention": lambda: attention},
    ).take(listed)
    merger = tokenzoo.build("prumerge").recipe.steps[0].merger
    return merger.merge(Tokens(seen.x, seen.mass), plan, seen).x[0]


def fopru(case: Case) -> None:
    """Attention maps as keys that are unit vectors: the queries are then the logits.

    What is left of a row of the softmax is CLS's. Their rows are as many as the budget has room for.
    """
    x, maps = case.inputs["feats"], case.inputs["attn"]
    b, h, n, _ = maps.shape
    keep, strategy = case.params["keep"], case.params["strategy"]
    prefix = 0
    if case.entry["inputs"].endswith("logits"):
        logits = maps
    else:
        prefix = 1
        first = (1 - maps.sum(-1, keepdim=True)).clamp_min(1e-30)
        logits = torch.cat([first, maps], -1).log()
        logits = torch.cat([torch.zeros_like(logits[:, :, :1]), logits], 2)
        x = torch.cat([torch.zeros_like(x[:, :1]), x], 1)
    side = n + prefix
    keys = torch.eye(side, dtype=x.dtype).expand(b, h, side, side)
    if strategy == "row":
        keep = keep * 24 // n * 24
    zoo = tokenzoo.build("fopru", keep=keep, strategy=strategy, match_reference=prefix == 0)
    queries = logits * side**0.5
    reduced = zoo.reduce(x, queries=queries, keys=keys, prefix=prefix, grid=(24, 24))
    reduced.plan.check()
    index = reduced.plan.keep[:, prefix:] - prefix
    case.compare({"indices": index, "tokens": reduced.x[:, prefix:]})


def vscan(case: Case) -> None:
    """Theirs loses what is left of the 16 windows: ours is told how many are left then."""
    x = case.inputs["proj_feats"]
    half = case.params["keep"] // 2
    local = half // 16 * 16
    at = {
        5: {"cls_attention": case.inputs["attn_shallow"]},
        -2: {"cls_attention": case.inputs["attn_deep"]},
    }
    zoo = tokenzoo.build("vscan", keep=case.params["keep"] - half + local, local=local)
    near, ours = _vscan(zoo, x, {"grid": (24, 24), "at": at}, local)
    case.compare(ours | {"local": near.sort().values})


def vscan_qwen(case: Case) -> None:
    """Images of one grid; attention that a group of patches receives, in two layers."""
    x, grid = case.batch("embeds", 3), (case.params["h"], case.params["w"])
    at = {
        7: {"received_attention": case.batch("attn_local", 2)},
        31: {"received_attention": case.batch("attn_global", 2)},
    }
    layers = {"shallow": 7, "deep": 31, "attention_source": "received"}
    keep = int(case.params["ratio"] * x.shape[1])
    zoo = tokenzoo.build("vscan", keep=keep, window=4, fill="cap", **layers)
    near, ours = _vscan(zoo, x, {"grid": grid, "at": at}, keep // 2)
    case.compare(ours | {"local": near})


def _vscan(zoo: Any, x: Tensor, shown: Any, local: int) -> tuple[Tensor, Outputs]:
    """The tokens of the windows as they were chosen, and the outputs of the whole."""
    reduced = zoo.reduce(x, **shown)
    reduced.plan.check()
    windows = Recipe(_chosen(zoo.recipe.steps[0].matcher.stay.steps[0][1]), keep=max(1, local))
    near = tokenzoo.build(windows).reduce(x, **shown).plan.keep
    return near, {"indices": reduced.plan.keep, "tokens": reduced.x}


def trim(case: Case) -> None:
    """CLIP's last norm and projection come before; the token after the kept ones is the mean.

    `text` is one for each image, or one for all. The authors' adaptive count is that of the whole batch.
    """
    x, text = case.inputs["feats"], case.inputs["text"]
    normed = F.layer_norm(x, x.shape[-1:], case.inputs["ln_w"], case.inputs["ln_b"], 1e-5)
    clip = normed @ case.inputs["w_proj"].mT
    text = text if text.ndim == 3 else text[:, None].expand(len(x), -1, -1)
    adaptive = "keep" not in case.params
    keep = case.params.get("keep", x.shape[1] - 1) + 1

    def compare(match_reference: bool) -> None:
        zoo = tokenzoo.build(
            "trim", keep=keep, relevance="clip", adaptive=adaptive, match_reference=match_reference
        )
        reduced = zoo.reduce(x, text=text, at={"clip": {"x": clip}})
        reduced.plan.check()
        lengths = reduced.plan.lengths
        ends = [keep] * len(x) if lengths is None else lengths.tolist()
        tokens = rows([row[:end] for row, end in zip(reduced.x, ends, strict=True)])
        kept = rows([row[: end - 1] for row, end in zip(reduced.plan.keep, ends, strict=True)])
        case.compare({"tokens": tokens, "indices": kept})

    one_of(partial(compare, False), *([partial(compare, True)] if adaptive and len(x) > 1 else []))


def gprune(case: Case) -> None:
    """The base image and the stitched grid are reduced one by one; newlines, its last column, stay."""
    base, grid = case.batch("base", 3), case.batch("grid", 4)  # [b, n, c], [b, rows, columns, c]
    options = {
        ours: case.params[theirs]
        for ours, theirs in (
            ("threshold", "similarity"),
            ("temperature", "temperature"),
            ("steps", "iterate_num"),
        )
        if theirs in case.params
    }
    share = case.params["keep"] / base.shape[1]
    scorer = tokenzoo.build("gprune", **options).recipe.steps[0].matcher.stay.scorer

    def kept(x: Tensor) -> Tensor:
        zoo = tokenzoo.build("gprune", keep=int(share * x.shape[1]), **options)
        reduced = zoo.reduce(x)
        reduced.plan.check()
        return reduced.plan.keep

    of_base, of_grid = kept(base), kept(grid[:, :, :-1].flatten(1, 2))
    columns = grid.shape[2]
    newlines = torch.arange(1, grid.shape[1] + 1) * columns - 1
    of_grid = of_grid + of_grid // (columns - 1)
    stitched = torch.cat([of_grid, newlines.expand(len(base), -1)], 1).sort().values + base.shape[1]
    score = scorer.score(Evidence(base, mass=torch.ones(base.shape[:2])))
    ours = {
        "indices_base": of_base,
        "indices": torch.cat([of_base, stitched], 1),
        "score_base": score,
        "degree_base": scorer.graph(base)[1],
    }
    case.compare(ours, lambda outputs: take(score, outputs["indices_base"]).sum(-1))


def tome_model(case: Case) -> None:
    """Whole models: weights, and where the file says how, images from numpy seeds.

    A file whose meta has `images` ("numpy", the generator `images` below, with its seed) is compared in
    full: the bare model's logits, those of the attached one, the counts after every block, the masses and
    the source of every token.

    A file that describes its images in words only does NOT determine the logits, the masses or the
    sources, and they are not compared. What it does determine is: that the weights are those of the recipe
    (the recorded logits lie in the column space of the rebuilt heads), the schedules, the counts (against
    the plan, and against a real pass of the attached model on images of our own), and that counts, masses
    and sources of the file agree with each other.
    """
    for depth, r, removals in case.meta["parse_r"]:
        left = (4096, *tokenzoo.build("tome", **schedule_of(r)).plan(4096, depth).blocks)
        ours = [before - after for before, after in pairwise(left)]
        assert ours == removals, f"{case.label}: r={r} on {depth} blocks removes {ours}"
    entry, theirs = case.entry, case.outputs
    r = tuple(entry["r"]) if isinstance(entry["r"], list) else entry["r"]
    seed = case.meta.get("images_seed", 0)
    count = len(theirs["logits"])
    result = dict(tome_pass(entry["model"], entry["seed"], r, entry["prop_attn"], seed, count))
    planned = result.pop("planned")
    case.equal("planned counts", planned, theirs["counts"])
    if case.meta.get("images") == "numpy":
        ours = {"base_logits": bare_logits(entry["model"], entry["seed"], seed, count), **result}
        case.compare(ours)
        return
    case.equal("counts", result["counts"], theirs["counts"])
    for name in ("base_logits", "logits"):
        _check_head(case, numpy_model(entry["model"], entry["seed"]), name)
    for name in ("size", "source"):
        assert result[name].shape == theirs[name].shape, f"{case.label}: {name} has another shape"
    for sizes, sources in zip(theirs["size"], theirs["source"].long(), strict=True):
        case.equal("size", sources.bincount(minlength=len(sizes)).to(sizes), sizes)


MAPPINGS: dict[str, Callable[[Case], None]] = {
    "tome": tome,
    "tome_model": tome_model,
    "visionzip": visionzip,
    "divprune": divprune,
    "cdpruner": cdpruner,
    "fastervlm": fastervlm,
    "fastv": fastv,
    "dart": dart,
    "pdrop": pdrop,
    "sparsevlm": sparsevlm,
    "topk": topk,
    "evit": evit,
    "pitome": pitome,
    "ats": ats,
    "dpcknn": dpcknn,
    "vispruner": vispruner,
    "prumerge": prumerge,
    "fopru": fopru,
    "vscan": vscan,
    "vscan_qwen": vscan_qwen,
    "trim": trim,
    "gprune": gprune,
}


# Their parts -----------------------------------------------------------------------------------------


def _attended(x: Tensor, weights: Outputs) -> tuple[Tensor, Tensor]:
    """A plain block up to its second norm, with 4 heads: the tokens, and CLS's attention `[b, h, N]`."""
    b, n, c = x.shape
    normed = F.layer_norm(x, (c,), weights["w.norm1.weight"], weights["w.norm1.bias"], 1e-5)
    qkv = F.linear(normed, weights["w.attn.qkv.weight"], weights["w.attn.qkv.bias"])
    q, k, v = qkv.view(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
    attention = (q @ k.mT * (c // 4) ** -0.5).softmax(-1)
    out = (attention @ v).transpose(1, 2).flatten(2)
    out = F.linear(out, weights["w.attn.proj.weight"], weights["w.attn.proj.bias"])
    return x + out, attention[:, :, 0]


def _after_mlp(x: Tensor, weights: Outputs) -> Tensor:
    """The second half of a plain block."""
    c = x.shape[-1]
    normed = F.layer_norm(x, (c,), weights["w.norm2.weight"], weights["w.norm2.bias"], 1e-5)
    inner = F.gelu(F.linear(normed, weights["w.mlp.fc1.weight"], weights["w.mlp.fc1.bias"]))
    return x + F.linear(inner, weights["w.mlp.fc2.weight"], weights["w.mlp.fc2.bias"])


def _alikeness(metric: Tensor, outputs: Outputs) -> Tensor:
    """Squared length of the sum of the keys of each output, over its tokens: 1 if all are equal."""
    keys, source, n = unit(metric), outputs["source"].long(), outputs["size"].shape[1]
    sums = keys.new_zeros(len(keys), n, keys.shape[-1])
    sums = sums.scatter_add(1, source[..., None].expand_as(keys), keys)
    count = keys.new_zeros(len(keys), n).scatter_add(1, source, torch.ones_like(keys[..., 0]))
    return (sums.square().sum(-1) / count).sum(-1) / keys.shape[1]


def _chosen(selector: tokenzoo.Selector) -> Step:
    """A step whose plan keeps the tokens in the order of the selector's choice."""
    return Step(
        Stage.FEATURES, Once(), SelectAssign(selector, Drop(), order="selected"), Identity()
    )


def _spread(x: Tensor, outputs: Outputs) -> Tensor:
    """The least distance (1 - cosine) between two kept tokens: what DivPrune makes large."""
    kept = unit(take(x, outputs["indices"]))
    same = torch.eye(kept.shape[1], dtype=torch.bool)
    return (1 - kept @ kept.mT).masked_fill(same, torch.inf).amin((1, 2))


def _volume(x: Tensor, clip: Tensor, text: Tensor, outputs: Outputs) -> Tensor:
    """The log determinant of the kept part of CDPruner's kernel."""
    relevance = -(unit(clip) @ unit(text).mT).mean(-1)
    low, high = relevance.amin(-1, keepdim=True), relevance.amax(-1, keepdim=True)
    relevance = (relevance - low + 1e-6) / (high - low)
    kept = take(unit(x) * relevance[..., None], outputs["indices"]).double()
    return (kept @ kept.mT).logdet()


def _check_head(case: Case, model: torch.nn.Module, name: str) -> None:
    """Recorded logits lie in the column space of the rebuilt head: its weights are the recorded ones."""
    heads = [model.head]
    if getattr(model, "head_dist", None) is not None:
        heads.append(model.head_dist)  # the logits are the mean of the two
    bias = torch.stack([head.bias for head in heads]).mean(0).double()
    space, _ = torch.linalg.qr(torch.cat([head.weight for head in heads], 1).double())
    logits = case.outputs[name].double() - bias
    left = (logits - logits @ space @ space.mT).float()
    case.equal(f"{name} outside of the head", left, torch.zeros_like(left))


@lru_cache
def tome_pass(name: str, base: int, r: Any, proportional: bool, seed: int, count: int) -> Outputs:
    """One pass of the attached model; counts with prefix tokens, as in the file."""
    model = numpy_model(name, base)
    prefix = int(model.num_prefix_tokens)
    zoo = tokenzoo.build("tome", **schedule_of(r), proportional_attention=proportional)
    with zoo.attach(model, trace=True) as attached:
        logits = model(images(seed, count))
    attached.record.check()
    return {
        "planned": torch.tensor(attached.plan().blocks) + prefix,
        "logits": logits,
        "counts": torch.tensor(attached.counts) + prefix,
        "size": attached.mass,
        "source": attached.record.dst,
    }


def schedule_of(r: Any) -> dict[str, Any]:
    """ToMe's r (an int, a list, or an int and a float) as options of ours."""
    if not isinstance(r, int) and len(r) == 2 and isinstance(r[1], float):
        return {"r": r[0], "inflection": r[1]}
    return {"r": r}


def numpy_parameter(name: str, shape: tuple[int, ...], base: int) -> np.ndarray:
    """A parameter of any model from its name and a seed, the same on every machine."""
    state = np.random.RandomState((zlib.crc32(name.encode()) + base) & 0xFFFFFFFF)
    z = state.standard_normal(shape)
    if name.split(".")[-1] in ("pos_embed", "cls_token", "dist_token", "reg_token"):
        return 0.3 * z
    if len(shape) >= 2:
        gain = 1.5 if name.endswith(".qkv.weight") else 1.0
        return z * gain / np.sqrt(np.prod(shape[1:]))
    return 1 + 0.1 * z if name.endswith("weight") else 0.05 * z


@lru_cache(maxsize=2)
def numpy_model(name: str, base: int) -> Any:
    """A timm model in eval mode with `numpy_parameter` weights."""
    import timm

    model = timm.create_model(name).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            values = numpy_parameter(key, tuple(parameter.shape), base)
            parameter.copy_(torch.from_numpy(values))
    return model


@lru_cache(maxsize=2)
def bare_logits(name: str, base: int, seed: int, count: int) -> Tensor:
    """What the model says of the images while nothing is attached."""
    return numpy_model(name, base)(images(seed, count))


@lru_cache(maxsize=1)
def images(seed: int, count: int = 2, size: int = 224) -> Tensor:
    """Images `[count, 3, size, size]`: four waves of colour, 16 rectangles of one colour, noise."""
    state = np.random.RandomState(seed)
    y, x = np.mgrid[:size, :size] / size
    result = np.zeros((count, 3, size, size))
    for image in result:
        for _ in range(4):
            across, down, phase = state.uniform(0, 3, 3)
            wave = np.cos(2 * np.pi * (across * x + down * y + phase))
            image += 0.5 * state.standard_normal(3)[:, None, None] * wave
        for _ in range(16):
            top, left = state.randint(0, size - 16, 2)
            height, width = state.randint(16, 64, 2)
            colour = state.standard_normal(3)[:, None, None]
            image[:, top : top + height, left : left + width] = colour
        image += 0.1 * state.standard_normal(image.shape)
    return torch.from_numpy(result.astype(np.float32))
