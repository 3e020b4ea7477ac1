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
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import tokenzoo
from tests import packed_encoder
from tokenzoo import plugins
from tokenzoo._core.sorting import descending, place_in_group, places
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import Bipartite, Drop, Every, Halves, Parity, Protect, SelectAssign, TopK
from tokenzoo.matchers.far_from_pivots import set_order
from tokenzoo.matchers.static_dynamic import Sets
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.reduce import Reduced
from tokenzoo.schedules import Once
from tokenzoo.scorers import CLSAttention, FeatureNorm, GraphEnergy, Similarity
from tokenzoo.scorers.raters import raters
from tokenzoo.temporal.set_counts import share_of_units
from tokenzoo.temporal.tubes import tubes
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, unit

# Largest absolute difference between two floats that count as equal.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
# Largest relative difference between the scores of two kept sets, where rounding decides who is kept.
SCORE_TOLERANCE = 1e-3

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One run of the authors' code; the float inputs are cast to float64 where the case says so."""

    label: str  # file and case, for messages
    meta: Mapping[str, Any]  # of the whole file
    entry: Mapping[str, Any]  # of this case in the meta
    inputs: Outputs
    outputs: Outputs

    @property
    def params(self) -> Mapping[str, Any]:
        return self.entry["params"]

    @property
    def unstable(self) -> bool:
        """Whether the choice flips under rounding."""
        return any(self.entry.get(flag) is False for flag in ("stable_1e-6", "f64_index_equal"))

    def given(self, *names: str) -> list[Tensor]:
        return [self.inputs[name] for name in names]

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
        outputs: dict[str, Tensor] = {}
        for name, theirs in self.outputs.items():
            alone = theirs.ndim == ours[name].ndim - 1
            outputs[name] = theirs.expand(len(ours[name]), *theirs.shape) if alone else theirs
            assert ours[name].shape == outputs[name].shape, (
                f"{self.label}: {name} is {tuple(ours[name].shape)}, not {tuple(theirs.shape)}"
            )
            if not self.unstable:
                self.equal(name, ours[name], outputs[name])
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


def one_of(compare: Callable[..., None], *ways: tuple[Any, ...]) -> None:
    """Compare in one way after the other until it passes; if none does, raise the error of the first.

    For files of several images: the authors' code mixes the images of a batch, and a file does not say
    whether it holds one call for all of them or one call for each.
    """
    errors: list[AssertionError] = []
    for way in ways:
        try:
            return compare(*way)
        except AssertionError as error:
            errors.append(error)
    raise errors[0]


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

    def inside(folder: str) -> dict[str, Tensor]:
        keys = sorted(key for key in file.files if key.startswith(folder))
        return {key.removeprefix(folder): torch.from_numpy(file[key]) for key in keys}

    with np.load(path, allow_pickle=False) as file:
        inputs = inside(f"in/{entry.get('inputs')}/")
        outputs = inside(f"out/{name}/") | inside(f"{name}/")
    if entry.get("dtype") == "float64":
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


# What the mappings share ---------------------------------------------------------------------------


def reduced(recipe: str | Recipe, x: Tensor, shown: Mapping[str, Any], **options: Any) -> Reduced:
    """Reduce by a recipe; its token map is consistent."""
    found = tokenzoo.build(recipe, **options).reduce(x, **shown)
    found.plan.check()
    return found


def evidence(x: Tensor, *, mass: Tensor | None = None, **shown: Any) -> Evidence:
    """Evidence of patches as a part of a recipe sees it, to ask it alone."""
    own_names = ("prefix", "text", "layers", "frames")
    own = {name: shown.pop(name) for name in own_names if name in shown}
    show = {name: lambda value=value: value for name, value in shown.items()}
    return Evidence(x, mass=torch.ones(x.shape[:2]) if mass is None else mass, show=show, **own)


def block(match: tokenzoo.Matcher, keep: int) -> Recipe:
    return Recipe(Step(Stage.BLOCK, Once(), match, WeightedMean()), keep=keep)


def chosen(selector: tokenzoo.Selector, keep: int) -> Recipe:
    """Its token map keeps the tokens in the order of the selector's choice."""
    match = SelectAssign(selector, Drop(), order="selected")
    return Recipe(Step(Stage.FEATURES, Once(), match, Identity()), keep=keep)


def total(score: Tensor, name: str, start: int = 0) -> Callable[[Outputs], Tensor]:
    """The sum of the scores `[b, n]` of the tokens of an output."""
    return lambda outputs: take(score, outputs[name] - start).sum(-1)


def and_text(keep: Tensor, start: int, end: int) -> Tensor:
    """The kept places `[b, m]` and those of the text, start to end: `[b, m + end - start]`."""
    return torch.cat([keep, torch.arange(start, end).expand(len(keep), -1)], 1)


def merging(case: Case) -> dict[str, Any]:
    """What a merging of keys is shown: CLS and a distillation token come first."""
    prefix = int(case.params.get("class_token", 0)) + int(case.params.get("distill_token", 0))
    mass = case.inputs["size"][..., 0] if case.params.get("use_size") else None
    return {"keys": case.inputs["metric"], "mass": mass, "prefix": prefix}


def merged(found: Reduced) -> dict[str, Tensor]:
    """The outputs of a merging; `source` is the row of the output that each input is in."""
    return {"merged": found.x, "size": found.mass[..., None], "source": found.plan.dst}


def alikeness(metric: Tensor) -> Callable[[Outputs], Tensor]:
    """Squared length of the sum of the keys of each output, over its tokens: 1 if all are equal."""
    keys = unit(metric)

    def score(outputs: Outputs) -> Tensor:
        source, n = outputs["source"].long(), outputs["size"].shape[1]
        sums = keys.new_zeros(len(keys), n, keys.shape[-1])
        sums = sums.scatter_add(1, source[..., None].expand_as(keys), keys)
        count = keys.new_zeros(len(keys), n).scatter_add(1, source, torch.ones_like(keys[..., 0]))
        return (sums.square().sum(-1) / count).sum(-1) / keys.shape[1]

    return score


# The mappings ----------------------------------------------------------------------------------------


def tome(case: Case) -> None:
    x, shown = case.inputs["x"], merging(case)
    patches = x.shape[1] - shown["prefix"]
    if "kth" in case.params:
        k = case.params["kth"]
        recipe = block(Bipartite(Similarity("keys"), split=Every(k), order="tome"), patches // k)
        found = reduced(recipe, x, shown)
    else:
        found = reduced("tome", x, shown, keep=patches - min(case.params["r"], patches // 2))
    ours = merged(found)
    if "unmerged" in case.outputs:
        ours["unmerged"] = found.unmerge(found.x)
        if not case.unstable:
            spread = take(case.outputs["merged"], case.outputs["source"])
            case.equal("spread", ours["unmerged"], spread)
        if case.params.get("distill_token"):
            # A slip of the original: it puts the distillation token second among its outputs, and its
            # unmerge reads them as if it stood after the tokens that stay. The lines above say what is
            # right; with its rows turned in the same way ours are equal to what it returned.
            stay = (x.shape[1] + 1) // 2 - (x.shape[1] - found.x.shape[1])
            turned = [0, stay, *range(1, stay), *range(stay + 1, found.x.shape[1])]
            ours["unmerged"] = found.unmerge(found.x[:, turned])
    case.compare(ours, alikeness(shown["keys"]))


def pitome(case: Case) -> None:
    """Ours come in the order of the image, theirs in that of their energy: they are brought into theirs.

    `bsm` is ToMe, whose count includes CLS.
    """
    x, shown, variant = case.inputs["x"], merging(case), case.params["variant"]
    n = x.shape[1] - shown["prefix"]
    of = x.shape[1] if variant == "bsm" else n
    r = int(np.floor(of - of * case.params["ratio"]))
    curve = "gaussian" if variant == "text" else "elu"
    energy = GraphEnergy("keys", case.params["margin"], curve)
    match = {
        "pitome": Bipartite(Similarity(), protect=Protect(energy, 1.0), rank=energy),
        "bsm_pitome": Bipartite(Similarity(), rank=energy),
        "bsm": Bipartite(Similarity(), split=Parity(), order="tome"),
        "text": Bipartite(Similarity(), Halves(), Protect(energy, 1.0), rank=energy),
    }[variant]
    found = reduced(block(match, n - r), x, shown)
    ours = merged(found)
    if not case.unstable:
        # Where each of our outputs is among theirs: where the token that it stands for is.
        at = take(case.outputs["source"].long(), found.plan.keep)
        place = torch.arange(at.shape[1]).expand_as(at)
        case.equal("source", at.sort(-1).values, place)
        order = torch.empty_like(at).scatter(1, at, place)
        ours = {name: take(ours[name], order) for name in ("merged", "size")}
        ours["source"] = take(at, found.plan.dst)
    case.compare(ours, alikeness(shown["keys"]))


def visionzip(case: Case) -> None:
    """`dominant` counts the CLS token in the file, and never in tokenzoo."""
    hidden, attention, keys = case.given("hidden", "attn_cls", "keys")
    dominant = case.params["dominant"] - 1
    shown = {"cls_attention": attention, "prefix": 1}
    keep = dominant + case.params["contextual"]
    found = reduced("visionzip", hidden, shown | {"keys": keys}, keep=keep, dominant=dominant)
    ranked = chosen(TopK(CLSAttention(heads="sum")), dominant)
    kept = found.plan.keep
    ours = {
        "tokens": found.x,
        "dominant": kept[:, : dominant + 1],
        "dominant_rank_order": reduced(ranked, hidden, shown).plan.keep,
        "contextual": kept[:, dominant + 1 :],
    }
    received = attention.sum(1)
    case.compare(ours, lambda outputs: take(received, outputs["dominant"][:, 1:]).sum(-1))


def divprune(case: Case) -> None:
    """`indices` are the kept ones in ascending order, `order` as they were chosen."""
    x, keep = case.batch("proj_feats", 3), case.params["keep"]
    selector = tokenzoo.build("divprune").recipe.steps[0].matcher.stay
    ours = {
        "indices": reduced("divprune", x, {}, keep=keep).plan.keep,
        "order": reduced(chosen(selector, keep), x, {}).plan.keep,
    }

    def spread(outputs: Outputs) -> Tensor:
        """The least distance (1 - cosine) between two kept tokens: what DivPrune makes large."""
        kept = unit(take(x, outputs["indices"]))
        same = torch.eye(keep, dtype=torch.bool)
        return (1 - kept @ kept.mT).masked_fill(same, torch.inf).amin((1, 2))

    case.compare(ours, spread)


def scope(case: Case) -> None:
    """`indices` are the kept ones in ascending order, `order` as they were chosen."""
    x, shown = case.inputs["feats"], {"cls_attention": case.inputs["attn_cls"]}
    keep, alpha = case.params["keep"], case.params["alpha"]
    selector = tokenzoo.build("scope", alpha=alpha).recipe.steps[0].matcher.stay
    ours = {
        "indices": reduced("scope", x, shown, keep=keep, alpha=alpha).plan.keep,
        "order": reduced(chosen(selector, keep), x, shown).plan.keep,
    }
    case.compare(ours)


def mmtok(case: Case) -> None:
    """The authors weigh the image, by alpha, and we the text; a scale of both changes nothing."""
    x, text, given = case.inputs["feats"], case.inputs["text"], case.params
    options = {"text": 1 / given["alpha"], "text_temperature": given["tv"]}
    options |= {"temperature": given["vv"], "keep": given["keep"]}
    case.compare({"indices": reduced("mmtok", x, {"text": text}, **options).plan.keep})


def holov(case: Case) -> None:
    """With the second term of the authors' scores, which changes no quota."""
    shown = {"cls_attention": case.inputs["attn_cls"]}
    found = reduced("holov", case.inputs["feats"], shown, **case.params)
    case.compare({"indices": found.plan.keep})


def hiprune(case: Case) -> None:
    """The attention that tokens receive in the ninth layer, and in the one whose output is read."""
    x, shallow, deep = case.given("feats", "shallow", "deep")
    shown = {"received_attention": deep, "grid": (24, 24)}
    shown["at"] = {8: {"x": x, "received_attention": shallow}}
    case.compare({"indices": reduced("hiprune", x, shown, **case.params).plan.keep})


def cdpruner(case: Case) -> None:
    """Relevance from CLIP's projected patches, diversity from the projected features.

    `text_embeds` are `[b, t, c]`, or one list: the texts of one prompt, or as many for each image in turn.
    The authors' code scales relevance over the batch, and compares every image with all texts.
    """
    x, clip, text = case.given("proj_feats", "image_embeds", "text_embeds")
    b, keep = len(x), case.params["keep"]

    def compare(text: Tensor, match_reference: bool) -> None:
        options = {"keep": keep, "relevance": "clip", "match_reference": match_reference}
        found = reduced("cdpruner", x, {"text": text, "at": {"clip": {"x": clip}}}, **options)

        def volume(outputs: Outputs) -> Tensor:
            """The log determinant of the kept part of CDPruner's kernel."""
            relevance = -(unit(clip) @ unit(text).mT).mean(-1)
            low, high = relevance.amin(-1, keepdim=True), relevance.amax(-1, keepdim=True)
            relevance = (relevance - low + 1e-6) / (high - low)
            kept = take(unit(x) * relevance[..., None], outputs["indices"]).double()
            return (kept @ kept.mT).logdet()

        case.compare({"indices": found.plan.keep}, volume)

    if text.ndim == 3:
        return compare(text, False)
    ways = [(text.expand(b, -1, -1), False)]
    if b > 1:
        ways.append((text.expand(b, -1, -1), True))
        if len(text) % b == 0:
            ways.insert(0, (text.view(b, -1, text.shape[-1]), False))
    return one_of(compare, *ways)


def fastervlm(case: Case) -> None:
    """`tokens` are the features of the kept ones, in raster order."""
    x, attention = case.given("feats", "cls_attn")
    found = reduced("fastervlm", x, {"cls_attention": attention}, keep=case.params["keep"])
    score = CLSAttention().score(evidence(x, cls_attention=attention))
    ours = {"indices": found.plan.keep, "score": score, "tokens": found.x}
    case.compare(ours, total(attention.mean(1), "indices"))


def vispruner(case: Case) -> None:
    """An unstable case is compared by the attention of what is kept, of which half does not flip."""
    x, attention = case.given("feats", "cls_attn")
    options = {"keep": case.params["keep"], "important": case.params["important_ratio"]}
    found = reduced("vispruner", x, {"cls_attention": attention}, **options)
    ours = {"indices": found.plan.keep, "tokens": found.x}
    case.compare(ours, total(attention.mean(1), "indices"))


def fastv(case: Case) -> None:
    """The whole prompt: `start` tokens, the image, the text. `keep` and the positions count all of them."""
    hidden, attention = case.inputs["hidden"], case.inputs["attn"][:, :, -1]
    start, end = case.params["start"], case.params["start"] + case.params["n_img"]
    shown = {"last_attention": attention[..., :end], "prefix": start}
    found = reduced("fastv", hidden[:, :end], shown, keep=1 - case.params["fastv_r"])
    keep = and_text(found.plan.keep, end, hidden.shape[1])
    left = torch.cat([found.x, hidden[:, end:]], 1)
    ours = {"keep": keep, "hidden": left, "position_ids": keep}
    case.compare(ours, total(attention.mean(1), "keep"))


def dart(case: Case) -> None:
    """The whole prompt, as in `fastv`, after a system prompt of 35 tokens; `keep` has the image only.

    A parameter that is not given is the authors' default. Their count is a little more than was asked of
    their code; `keep` is told that count, and none of it is left over.
    """
    (hidden, keys), start, n = case.given("hidden", "keys"), 35, case.params["n_img"]
    end = start + n
    pivots, text_pivots = (case.params.get(f"pivot_{kind}", 4) for kind in ("image", "text"))
    share = int(n * (1 - case.params["reduction_ratio"]) / (pivots + text_pivots))
    options = {"pivots": pivots, "text_pivots": text_pivots, "match_reference": True}
    image, text = ({"keys": keys[:, :, part]} for part in (slice(end), slice(end, None)))
    shown = image | {"prefix": start, "at": {"text": text | {"x": hidden[:, end:]}}}
    keep = pivots + (pivots + text_pivots) * share
    found = reduced("dart", hidden[:, :end], shown, keep=keep, **options)
    longest = TopK(FeatureNorm("all_keys", power=1))
    of_image = reduced(chosen(longest, pivots), hidden[:, :end], image | {"prefix": start})
    of_image = of_image.plan.keep[:, start:]
    of_text = of_image[:, :0]
    if text_pivots:
        of_text = reduced(chosen(longest, text_pivots), hidden[:, end:], text).plan.keep + end
    both = torch.cat([of_image, of_text], 1)
    ours = {
        "keep": found.plan.keep[:, start:],
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
    end = start + case.params["n_img"]
    ours: dict[str, Tensor] = {}
    best: list[Tensor] = []
    for stage, ratio in enumerate(case.params["ratios"]):
        attention = next_attention(hidden, case.inputs)
        kept = int(case.params["n_img"] * ratio)
        zoo = tokenzoo.build("pyramiddrop", keep=kept, layers=(8,), factors=(1.0,))
        assert zoo.recipe.steps[0].positions == "compact"
        shown = {"at": {"next": {"last_attention": attention[..., :end]}}, "prefix": start}
        found = reduced(zoo.recipe, hidden[:, :end], shown)
        keep = and_text(found.plan.keep, end, hidden.shape[1])
        hidden = torch.cat([found.x, hidden[:, end:]], 1)
        at, end = take(at, keep), start + kept
        ours |= {f"keep{stage}": at, f"hidden{stage}": hidden}
        ours[f"pos{stage}"] = torch.arange(at.shape[1]).expand_as(at)
        best.append(attention.mean(1))
    case.compare(ours, total(best[0], "keep0"))


def next_attention(x: Tensor, weights: Outputs) -> Tensor:
    """What the last token pays `[b, h, n]` in a layer with RMSNorm, 4 heads and rotary positions."""
    b, n, c = x.shape
    x = F.rms_norm(x, (c,), weights["ln"], 1e-6)
    d = c // 4
    cos, sin = turns(n, d)

    def turned(name: str) -> Tensor:
        left, right = (x @ weights[name].mT).view(b, n, 4, d).transpose(1, 2).chunk(2, -1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

    query, key = turned("wq")[:, :, -1:], turned("wk")
    return (query @ key.mT / d**0.5).softmax(-1)[:, :, 0]


def turns(n: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles `[n, width / 2]` of n positions."""
    angles = torch.arange(n)[:, None] * 10000 ** (-torch.arange(0, width, 2) / width)
    return angles.cos(), angles.sin()


def sparsevlm(case: Case) -> None:
    """The whole prompt, after a system prompt of 35 tokens; heads of 16 channels, as many as 16.

    `raters` are places in the text; `kept` those of the prompt that are no cluster.
    """
    hidden, embeds, attention = case.given("hidden", "embeds", "attn")
    (b, length), start, count = hidden.shape[:2], 35, case.params["keep"]
    n, first = case.params["n_img"], case.params["version"] == "1"
    end = start + n
    clusters = (int(0.3 * (n - count)) + 1) // 10 + 1 if first else 0
    options = {"dominant": count} if first else {"version": "2", "match_reference": True}
    options |= {"keep": count + clusters, "layers": (3,), "factors": (1.0,)}
    cos, sin = turns(length, 16)
    ones = torch.cat([cos - sin, cos + sin], -1)
    rotation = (ones @ ones.mT / 16**0.5).expand(b, -1, -1)  # logits of ones that are turned
    about_text = {
        "text_attention": attention[:, :, end - length :, :end],
        "text_rotation": rotation[:, end:, :end],
    }
    entered = {"x": embeds[:, :end], "text": embeds[:, end:]}
    shown = {"prefix": start, **about_text, "at": {"embedded": entered}}
    found = reduced("sparsevlm", hidden[:, :end], shown, **options)
    kept = and_text(found.plan.keep[:, : start + count], end, length)
    (step,) = tokenzoo.build("sparsevlm", **options).recipe.steps
    scorer = step.matcher.stay.steps[0][1].scorer if first else step.matcher.stay.scorer
    layers = {"embedded": evidence(embeds[:, start:end], text=embeds[:, end:])}
    visual = {name: value[..., start:] for name, value in about_text.items()}
    score = scorer.score(evidence(hidden[:, start:end], layers=layers, **visual))
    chosen_raters = raters(embeds[:, start:end], embeds[:, end:])
    left = torch.cat([found.x, hidden[:, end:]], 1)
    ours = {
        "raters": rows([row.nonzero()[:, 0] for row in chosen_raters]),
        "kept": kept,
        "hidden": left,
        "position_ids": kept
        if step.positions == "keep"
        else torch.arange(left.shape[1]).expand(left.shape[:2]),
        "v_token_num": torch.full((b,), count + clusters),
        "score": score,
    }
    case.compare(ours, lambda o: take(score, o["kept"][:, start : start + count] - start).sum(-1))


def topk(case: Case) -> None:
    """A whole block: `idx` are the kept patches, the most attended first."""
    vit_block(case, "topk", int(case.params["keep_rate"] * 196))


def evit(case: Case) -> None:
    """As `topk`; -1 stands for the fused token, and `compl` for what is in it; ours counts it."""
    vit_block(case, "evit", int(case.params["keep_rate"] * 196) + 1)


def vit_block(case: Case, recipe: str, keep: int) -> None:
    """A plain block of 4 heads, with a reduction between attention and MLP."""
    x = case.inputs["x"]
    weights = {
        name.removeprefix("w."): value for name, value in case.inputs.items() if name[:2] == "w."
    }
    b, n, c = x.shape

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (c,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    qkv = linear("attn.qkv", norm("norm1", x))
    q, k, v = qkv.view(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
    attention = (q @ k.mT * (c // 4) ** -0.5).softmax(-1)
    before = x + linear("attn.proj", (attention @ v).transpose(1, 2).flatten(2))
    shown = {"cls_attention": attention[:, :, 0], "prefix": 1}
    found = reduced(recipe, before, shown, keep=keep)
    index = found.plan.keep[:, 1:]
    ours = {
        "y": found.x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", found.x)))),
        "idx": torch.where(index < 0, -1, index - 1),
        "x_pre": before,
        "x_red": found.x,
        "cls_attn": attention[:, :, 0].mean(1)[:, 1:],
    }
    if "compl" in case.outputs:
        fused = found.plan.dst[:, 1:] == keep
        ours["compl"] = fused.nonzero()[:, 1].view(b, -1)
    case.compare(ours)


def dpcknn(case: Case) -> None:
    """With weights these are masses. `agg_weight` is the share of a token in its cluster's mean."""
    x = case.inputs["x"]
    mass = case.inputs["score"][..., 0].exp() if case.params.get("use_weight") else None
    (step,) = tokenzoo.build("dpcknn", k=case.params["k"]).recipe.steps
    merger = step.merger if mass is None else WeightedMean()
    recipe = Recipe(replace(step, merger=merger), keep=case.params["clusters"])
    found = reduced(recipe, x, {"mass": mass})
    dst, own = found.plan.dst, torch.ones_like(x[..., 0]) if mass is None else mass
    ours = {
        "assign": dst,
        "idx_token": dst,
        "centers": found.plan.keep,
        "merged": found.x,
        "agg_weight": (own / take(found.plan.sum(own), dst))[..., None],
    }
    case.compare(ours)


def ats(case: Case) -> None:
    """Attention rows times values, gathered: as many as were sampled, CLS first, then zeros that pad.

    What a mask leaves out has mass 0. An unstable case: how near the steps are to what stays.
    """
    attention, values, mask = case.given("attn", "v", "mask")
    count = case.params["sample_count"]
    out = attention @ values  # [b, h, N, d]
    mass = mask if case.params.get("use_mask") else torch.ones_like(mask)
    seen = evidence(
        out[:, :, 1:].transpose(1, 2).flatten(2),
        mass=mass[:, 1:].float(),
        prefix=1,
        cls_attention=attention[:, :, 0, 1:],
        values=values[:, :, 1:],
    )
    (step,) = tokenzoo.build("ats", match_reference=True).recipe.steps
    plan = step.matcher.match(seen, count).after_prefix(1)
    plan.check()
    width = case.outputs["ids"].shape[1]
    ids = plan.keep.clamp_min(0)[:, :width]
    steps = step.matcher.stay.steps(count, out).expand(len(out), -1)
    ours = {
        "ids": ids,
        "mask": torch.arange(width) < plan.lengths[:, None],
        "out": out.take_along_dim(ids[:, None, :, None], 2),
        "sample_steps": steps,
    }
    weight = step.matcher.stay.scorer.score(seen)
    share = F.pad((weight / weight.sum(-1, keepdim=True)).cumsum(-1), (1, 0))

    def gap(outputs: Outputs) -> Tensor:
        """How far the steps are from the tokens that stay, on average."""
        marks = take(share, outputs["ids"].long())[:, None]  # [b, 1, m]
        return (marks - steps[..., None]).abs().amin(-1).mean(-1)

    case.compare(ours, gap)


def prumerge(case: Case) -> None:
    """One head of all channels; `indices` are the kept ones as chosen, `merged` those in the last token.

    PruMerge+ of a fixed size repeats tokens: what is chosen both ways is there twice, and as many of the
    first others are nowhere. Ours keeps the same tokens, each once, and sums up all others; for the
    features its merger is given the tokens that theirs has.
    """
    hidden, queries, keys = case.given("hidden", "q", "k")
    plus, adaptive = case.params["plus"], case.params["adaptive"]
    theirs = [row[row >= 0] for row in case.outputs["indices"].long()]
    unique = [torch.tensor(list(dict.fromkeys(row.tolist()))) for row in theirs]
    options: dict[str, Any] = {"adaptive": adaptive, "plus": plus}
    if plus and not adaptive:
        important = case.params["keep"]
        options |= {"important": important, "step": int(1 / (important / 576))}

    def image(i: int, match_reference: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens, the kept ones and the merged ones of one image."""
        # Of a fixed size and with repeats, how many different tokens are kept hangs on the image.
        keep = 576 if adaptive else len(unique[i]) + 1
        shown = {"queries": queries, "keys": keys, "prefix": 1}
        found = reduced(
            "prumerge", hidden, shown, **options, keep=keep, match_reference=match_reference
        )
        plan = found.plan
        end = plan.kept if plan.lengths is None else int(plan.lengths[i])
        assert not bool(found.mass[i, end:].any()), f"{case.label}: what pads has a mass"
        kept = plan.keep[i, 1 : end - 1] - 1
        merged = (plan.dst[i, 1:] == end - 1).nonzero()[:, 0]
        again = len(theirs[i]) - len(kept)
        if len(unique[i]) == len(theirs[i]):
            return found.x[i, 1:end], kept, merged
        assert torch.equal(kept, unique[i]), f"{case.label}: kept {kept}, not {unique[i]}"
        tokens = [value[i : i + 1] for value in (hidden, queries, keys)]
        return with_repeats(theirs[i], merged[again:], *tokens), theirs[i], merged[again:]

    def compare(match_reference: bool) -> None:
        images = [image(i, match_reference) for i in range(len(hidden))]
        names = ("tokens", "indices", "merged")
        case.compare({name: rows([one[k] for one in images]) for k, name in enumerate(names)})

    one_of(compare, (False,), *([(True,)] if len(hidden) > 1 else []))


def with_repeats(
    kept: Tensor, merged: Tensor, hidden: Tensor, queries: Tensor, keys: Tensor
) -> Tensor:
    """PruMerge's merger, given the tokens of one image that theirs has: some twice, some not at all."""
    listed = torch.cat([kept, merged])[None] + 1
    k = len(kept)
    keep = F.pad(torch.arange(k), (0, 1), value=-1)[None]
    rest = torch.arange(k, listed.shape[1])[None]
    plan = TokenMap.from_slots(keep, rest, torch.full_like(rest, k), listed.shape[1])
    attention = F.softmax(queries[:, :1] @ keys.mT * hidden.shape[-1] ** -0.5, -1)
    seen = evidence(hidden, keys=keys[:, None], cls_attention=attention).take(listed)
    merger = tokenzoo.build("prumerge").recipe.steps[0].merger
    return merger.merge(Tokens(seen.x, seen.mass), plan, seen).x[0]


def fopru(case: Case) -> None:
    """Attention maps as keys that are unit vectors: the queries are then the logits.

    What is left of a row of the softmax is CLS's. Their rows are as many as the budget has room for.
    """
    x, maps = case.given("feats", "attn")
    b, h, n, _ = maps.shape
    keep, strategy = case.params["keep"], case.params["strategy"]
    prefix, logits = 0, maps
    if not case.entry["inputs"].endswith("logits"):
        prefix = 1
        first = (1 - maps.sum(-1, keepdim=True)).clamp_min(1e-30)
        logits = F.pad(torch.cat([first, maps], -1).log(), (0, 0, 1, 0))
        x = F.pad(x, (0, 0, 1, 0))
    side = n + prefix
    keys = torch.eye(side, dtype=x.dtype).expand(b, h, side, side)
    shown = {"queries": logits * side**0.5, "keys": keys, "prefix": prefix, "grid": (24, 24)}
    keep = keep * 24 // n * 24 if strategy == "row" else keep
    found = reduced("fopru", x, shown, keep=keep, strategy=strategy, match_reference=prefix == 0)
    case.compare({"indices": found.plan.keep[:, prefix:] - prefix, "tokens": found.x[:, prefix:]})


def vscan(case: Case) -> None:
    """Theirs loses what is left of the 16 windows: ours is told how many are left then."""
    half = case.params["keep"] // 2
    local = half // 16 * 16
    shallow, deep = ({"cls_attention": case.inputs[f"attn_{at}"]} for at in ("shallow", "deep"))
    shown = {"grid": (24, 24), "at": {5: shallow, -2: deep}}
    options = {"keep": case.params["keep"] - half + local, "local": local}
    near, ours = in_windows(case.inputs["proj_feats"], shown, local, options)
    case.compare(ours | {"local": near.sort().values})


def vscan_qwen(case: Case) -> None:
    """Images of one grid; attention that a group of patches receives, in two layers."""
    x, grid = case.batch("embeds", 3), (case.params["h"], case.params["w"])
    near, far = ({"received_attention": case.batch(f"attn_{at}", 2)} for at in ("local", "global"))
    keep = int(case.params["ratio"] * x.shape[1])
    options = {"keep": keep, "window": 4, "fill": "cap", "attention_source": "received"}
    options |= {"shallow": 7, "deep": 31}
    local, ours = in_windows(x, {"grid": grid, "at": {7: near, 31: far}}, keep // 2, options)
    case.compare(ours | {"local": local})


def in_windows(x: Tensor, shown: Any, local: int, options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """VScan's tokens of the windows as they were chosen, and the outputs of the whole."""
    found = reduced("vscan", x, shown, **options)
    selector = tokenzoo.build("vscan", **options).recipe.steps[0].matcher.stay.steps[0][1]
    near = reduced(chosen(selector, max(1, local)), x, shown).plan.keep
    return near, {"indices": found.plan.keep, "tokens": found.x}


def trim(case: Case) -> None:
    """CLIP's last norm and projection come before; the token after the kept ones is the mean.

    `text` is one for each image, or one for all. The authors' adaptive count is that of the whole batch.
    """
    x, text, weight, bias, projection = case.given("feats", "text", "ln_w", "ln_b", "w_proj")
    clip = F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5) @ projection.mT
    text = text if text.ndim == 3 else text[:, None].expand(len(x), -1, -1)
    adaptive = "keep" not in case.params
    keep = case.params.get("keep", x.shape[1] - 1) + 1
    shown = {"text": text, "at": {"clip": {"x": clip}}}

    def compare(match_reference: bool) -> None:
        options = {"keep": keep, "adaptive": adaptive, "match_reference": match_reference}
        found = reduced("trim", x, shown, relevance="clip", **options)
        lengths = found.plan.lengths
        ends = [keep] * len(x) if lengths is None else lengths.tolist()
        tokens = [row[:end] for row, end in zip(found.x, ends, strict=True)]
        kept = [row[: end - 1] for row, end in zip(found.plan.keep, ends, strict=True)]
        case.compare({"tokens": rows(tokens), "indices": rows(kept)})

    one_of(compare, (False,), *([(True,)] if adaptive and len(x) > 1 else []))


def gprune(case: Case) -> None:
    """The base image and the stitched grid are reduced one by one; newlines, its last column, stay."""
    base, grid = case.batch("base", 3), case.batch("grid", 4)  # [b, n, c], [b, rows, columns, c]
    names = {"similarity": "threshold", "temperature": "temperature", "iterate_num": "steps"}
    options = {ours: case.params[name] for name, ours in names.items() if name in case.params}
    share = case.params["keep"] / base.shape[1]

    def kept(x: Tensor) -> Tensor:
        return reduced("gprune", x, {}, keep=int(share * x.shape[1]), **options).plan.keep

    of_base, of_grid = kept(base), kept(grid[:, :, :-1].flatten(1, 2))
    columns = grid.shape[2]
    newlines = torch.arange(1, grid.shape[1] + 1) * columns - 1
    of_grid = of_grid + of_grid // (columns - 1)
    stitched = torch.cat([of_grid, newlines.expand(len(base), -1)], 1).sort().values + base.shape[1]
    scorer = tokenzoo.build("gprune", **options).recipe.steps[0].matcher.stay.scorer
    score = scorer.score(evidence(base))
    ours = {
        "indices_base": of_base,
        "indices": torch.cat([of_base, stitched], 1),
        "score_base": score,
        "degree_base": scorer.graph(base)[1],
    }
    case.compare(ours, total(score, "indices_base"))


def holitom(case: Case) -> None:
    """Clips with the attention that each token receives; or the second stage, in a language model.

    Called for several clips, their code multiplies the share of one into that of the next.
    """
    if case.params.get("stage") == "inner":
        return holitom_inner(case)
    x, attention = case.batch("feat", 4), case.batch("attn", 3)
    options: dict[str, Any] = {"threshold": case.params["tau"]}
    for theirs, ours in {"beta": "blend", "K": "k", "k": "k", "max_window_size": "longest"}.items():
        options |= {ours: case.params[theirs]} if theirs in case.params else {}
    options |= {"blend": None} if case.params.get("no_beta") else {}

    def clips(x: Tensor, attention: Tensor, share: float) -> list[dict[str, Tensor]]:
        """The outputs of each clip."""
        _, f, n, _ = x.shape
        shown = {"frames": f, "received_attention": attention.flatten(1)}
        found = reduced("holitom", x.flatten(1, 2), shown, retained=share, keep=1.0, **options)
        (step,) = tokenzoo.build("holitom", retained=share, **options).recipe.steps
        segment = step.matcher.segments.segment(evidence(x.flatten(1, 2), frames=f))
        units = tubes(x.flatten(1, 2), segment, step.matcher.threshold, step.matcher.rule)
        sizes = Sets.of(units).sizes[:, :-1]
        retain = share_of_units(sizes, f * n, share)[:, 0]
        outputs: list[dict[str, Tensor]] = []
        for i, end in enumerate(found.plan.lengths):
            frames = segment[i].bincount()
            first = frames.cumsum(0) - frames
            of_tokens = segment[i][found.plan.keep[i, :end] // n]
            outputs.append(
                {
                    "tokens": found.x[i, :end],
                    "windows": torch.stack([first, first + frames - 1], 1),
                    "counts": of_tokens.bincount(minlength=len(frames)),
                    "n_static": units.static[i, first].sum(-1),
                    "retain": retain[i],
                    "total_reduced": (f * n - sizes[i].sum()).double(),
                }
            )
        return outputs

    def compare(compounded: bool) -> None:
        share, outputs = case.params["retain_ratio"], list[dict[str, Tensor]]()
        if not compounded:
            outputs = clips(x, attention, share)
        for i in range(len(x) if compounded else 0):
            outputs += clips(x[i : i + 1], attention[i : i + 1], share)
            share = float(outputs[-1]["retain"])
        ours = {name: rows([one[name] for one in outputs]) for name in outputs[0]}
        # What the windows maximise: the tokens that they save.
        case.compare(ours, lambda outputs: outputs["total_reduced"])

    one_of(compare, (False,), *([(True,)] if len(x) > 1 else []))


def holitom_inner(case: Case) -> None:
    """HoliTom's second stage: 14 tokens, 196 of the image, the text, unless the outputs say otherwise.

    Called for several prompts, their code chooses by the attention of the first.
    """
    hidden, attention, r = *case.given("hidden", "attn_last"), case.params["r"]
    (_, step) = tokenzoo.build("holitom", layer=3).recipe.steps
    gone = hidden.shape[1] - case.outputs["hidden"].shape[1]

    def compare(start: int, n: int, first: bool) -> None:
        end, last = start + n, attention[:, :, -1]
        last = last[:1].expand(len(last), -1, -1) if first else last
        shown = {"last_attention": last[..., :end], "prefix": start}
        found = reduced(Recipe(step, keep=n - gone), hidden[:, :end], shown)
        keep = and_text(found.plan.keep, end, hidden.shape[1])
        left = torch.cat([found.x, hidden[:, end:]], 1)
        ours = {"keep": keep, "hidden": left, "position_ids": keep}
        case.compare(ours, total(last.mean(1), "keep"))

    sizes = [n for n in range(1, hidden.shape[1]) if n - round(n * (1 - r)) == gone]
    places = [(start, n) for n in sizes for start in starts(case, hidden.shape[1], n)]
    places.sort(key=lambda place: place != (14, 196))
    batched = (False, True) if len(hidden) > 1 else (False,)
    one_of(compare, *((*place, first) for place in places for first in batched))


def starts(case: Case, length: int, tokens: int) -> list[int]:
    """Where the visual tokens of a prompt can begin, such that all others are kept."""
    if "start" in case.params:
        return [case.params["start"]]
    kept = set(case.outputs["keep"].flatten().tolist())
    fits = [
        start
        for start in range(length - tokens + 1)
        if kept.issuperset((*range(start), *range(start + tokens, length)))
    ]
    return sorted(fits, key=lambda start: start != 14)


def fastvid(case: Case) -> None:
    """The whole prompt, with the clip in it; `keep` counts all of it."""
    hidden, attention = case.inputs["hidden"], case.batch("frame_attn", 2)
    pooled = case.batch("frame_global", 3)
    f, n = pooled.shape[1], attention.shape[1] // pooled.shape[1]
    names = {"c": "segments", "tau": "threshold", "d": "context", "p": "every", "beta": "blend"}
    options = {ours: case.params[name] for name, ours in names.items() if name in case.params}
    options |= {"retained": case.params["ratio"], "frame_features": "frame"}
    options |= {"attention_source": "cls"}
    global_x = pooled.repeat_interleave(n, 1)
    (step,) = tokenzoo.build("fastvid", **options).recipe.steps

    def compare(start: int) -> None:
        end = start + f * n
        x = hidden[:, start:end]
        shown = {"cls_attention": attention, "frames": f, "at": {"frame": {"x": global_x}}}
        found = reduced("fastvid", x, shown, keep=1.0, **options)
        frame = {"frame": evidence(global_x, frames=f)}
        segment = step.matcher.segments.segment(evidence(x, frames=f, layers=frame))
        outputs: list[dict[str, Tensor]] = []
        for i, stop in enumerate(found.plan.lengths):
            keep, held = found.plan.keep[i, :stop], found.plan.held[i, :stop]
            salient = keep[held].view(f, -1)  # as many in each frame
            outside = (torch.arange(start), torch.arange(end, hidden.shape[1]))
            x = torch.cat([hidden[i, :start], found.x[i, :stop], hidden[i, end:]])
            outputs.append(
                {
                    "keep": torch.cat([outside[0], keep + start, outside[1]]),
                    "hidden": x,
                    "segs": segment[i].bincount(),
                    "context_num": (keep[~held] // n).bincount(minlength=f),
                    "salient": salient % n,
                }
            )
        ours = {name: rows([one[name] for one in outputs]) for name in outputs[0]}
        paid = attention.view(-1, f, n)
        case.compare(ours, lambda out: paid.gather(2, out["salient"].long()).sum((1, 2)))

    one_of(compare, *((start,) for start in starts(case, hidden.shape[1], f * n)))


def prunevid(case: Case) -> None:
    """`topk_sorted` is what the second stage keeps, a share of each set."""
    x, attention = case.given("feat", "attn")
    sizes = case.outputs["windows"].reshape(-1, case.outputs["windows"].shape[-1])
    f = case.params.get("frames", int(sizes[0].clamp_min(0).sum()))
    assert x.shape[1] % f == 0, f"{case.label}: windows of {f} frames for {x.shape[1]} tokens"
    names = {"tau": "threshold", "cluster_ratio": "retained", "seg_ratio": "segments", "k": "k"}
    options = {ours: case.params[name] for name, ours in names.items() if name in case.params}
    found = reduced("prunevid", x, {"frames": f}, keep=1.0, **options)
    (_, second) = tokenzoo.build("prunevid", layer=11, **options).recipe.steps
    (step,) = tokenzoo.build("prunevid", **options).recipe.steps
    segment = step.matcher.segments.segment(evidence(x, frames=f))
    sets = Sets.of(tubes(x, segment, step.matcher.threshold, step.matcher.rule))
    outputs: list[dict[str, Tensor]] = []
    for i, end in enumerate(found.plan.lengths):
        of_token = sets.turn[i, found.plan.keep[i, :end]]  # in ascending order
        count = of_token.bincount(minlength=2 * f)
        windows = segment[i].bincount()
        of_window = (
            segment[i].new_zeros(2, len(windows)).index_add(1, segment[i], count.view(f, 2).mT)
        )
        seen = evidence(found.x[i : i + 1, :end], text_attention=attention[i : i + 1, ..., :end])
        score = second.matcher.stay.scorer.score(seen)
        kept = (count.double() * case.params["alpha"]).floor()
        rank = place_in_group(of_token[None], places(descending(score)))[0]
        outputs.append(
            {
                "merged": found.x[i, :end],
                "static_sizes": of_window[0],
                "dynamic_sizes": of_window[1],
                "windows": windows,
                "topk_sorted": (rank < kept[of_token]).nonzero()[:, 0],
            }
        )
    ours = {name: rows([one[name] for one in outputs]) for name in outputs[0]}
    case.compare(ours, lambda outputs: outputs["merged"].square().sum((1, 2)))


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
        check_head(case, numpy_model(entry["model"], entry["seed"]), name)
    for name in ("size", "source"):
        assert result[name].shape == theirs[name].shape, f"{case.label}: {name} has another shape"
    for sizes, sources in zip(theirs["size"], theirs["source"].long(), strict=True):
        case.equal("size", sources.bincount(minlength=len(sizes)).to(sizes), sizes)


def ipcv(case: Case) -> None:
    """The encoder of the file as a model: `out` leaves its last block, `keep` stays in between.

    All frames of a file are one image of ours: the authors choose among the tokens of all frames together.
    What the frames are in their attention, `packed_encoder` says.
    """
    x = case.batch("x", 4)  # [b, f, n, c]
    options: dict[str, Any] = {"keep": 1.0}
    if case.params.get("prune", True):
        keep = int(x.shape[1] * x.shape[2] * (1 - case.params["vit_reduction_ratio"]))
        options = {"keep": keep, "attended": case.params["AS_layer"]}
    model = packed_encoder.Encoder(case.inputs, x.shape[2])
    with (
        plugins.registered(packed_encoder, "packed_encoder"),
        tokenzoo.build("ipcv", **options).attach(model, trace=True) as attached,
    ):
        ours = {"out": model(x.flatten(1, 2))}
        if "keep" in case.outputs:
            attached.record.check()
            ours["keep"] = attached.record.keep
            assert attached.counts[-1] == keep, f"{case.label}: {attached.counts}"
    case.compare(ours)


MAPPINGS: dict[str, Callable[[Case], None]] = {
    mapping.__name__: mapping
    for mapping in (
        *(tome, tome_model, pitome, visionzip, divprune, cdpruner, fastervlm, vispruner, fastv),
        *(dart, pdrop, sparsevlm, topk, evit, dpcknn, ats, prumerge, fopru, vscan, vscan_qwen),
        *(trim, gprune, holitom, fastvid, prunevid, ipcv, scope, mmtok, holov, hiprune),
    )
}


# Whole models ----------------------------------------------------------------------------------------


def check_head(case: Case, model: torch.nn.Module, name: str) -> None:
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
