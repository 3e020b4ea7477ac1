"""PyramidDrop and SparseVLM inside a language model, against bare layers and their own attention maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenzoo_adapters.hf.decoder.next_layer import NextLayerProbe
from tokenzoo_adapters.hf.names import cached_keys
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.decoder.test_layers import RAGGED, Told, masked
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import (
    CACHE,
    KINDS,
    ONE,
    SINGLE,
    TEMPLE,
    Batch,
    answer,
    cache_of,
    entering,
    logits,
)
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError, BadArgumentError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import LastTokenAttention

EACH = pytest.mark.parametrize("kind", KINDS)


@cache
def eager(kind: str) -> Any:
    """The model of that name, which shows its attention maps; the tests leave it bare."""
    makes = {**KINDS, "qwen2_vl": qwen.qwen2_vl, "qwen2_5_vl": qwen.qwen2_5_vl}
    model = makes[kind]()
    model.set_attn_implementation("eager")
    return model


# --- the layer to come ---

SIZES = {
    "vocab_size": 7,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "attn_implementation": "eager",
}


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize(("make", "config"), [(LlamaModel, LlamaConfig), (Qwen3Model, Qwen3Config)])
def test_it_is_what_the_layer_itself_attends_to(make: Any, config: Any, past: int) -> None:
    """Grouped queries, norms of queries and keys, padding at the left, tokens in a cache."""
    torch.manual_seed(0)
    model = make(config(**SIZES)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    x = torch.randn(2, past + 9, 32)
    mask = torch.ones(2, past + 9, dtype=torch.int64)
    mask[1, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    given: list[Any] = []

    def note(layer: Any, args: Any, kwargs: Any) -> None:
        del layer
        keys = cached.layers[1].keys if past else None
        given.append((args[0], kwargs["position_embeddings"], keys))

    cached = DynamicCache()
    with torch.no_grad():
        if past:
            begin = {"inputs_embeds": x[:, :past], "attention_mask": mask[:, :past]}
            model(**begin, position_ids=positions[:, :past], **{CACHE: cached})
        model.layers[1].register_forward_pre_hook(note, with_kwargs=True)
        maps = model(
            inputs_embeds=x[:, past:],
            attention_mask=mask,
            position_ids=positions[:, past:],
            **{CACHE: cached},
            output_attentions=True,
        ).attentions[1]
        ((states, turns, keys),) = given
        probe = NextLayerProbe(model.layers[1], turns, keys, mask.bool())
        for rows in ([0, 1], [1]):
            end, here = torch.tensor([[8], [6]])[rows], torch.tensor([[1, 4, 5], [2, 3, 6]])[rows]
            ours = probe.last_attention(states, torch.tensor(rows), end, here)
            for i, r in enumerate(rows):
                assert gap(ours[i], maps[r, :, end[i, 0], here[i] + past]) <= 1e-5


@EACH
def test_pyramiddrop_keeps_what_the_next_layer_looks_at(kind: str) -> None:
    """At every stage: by the maps of the bare model, which does not see what earlier stages dropped."""
    model = eager(kind)
    given = RAGGED.given(model)
    real = given["attention_mask"]
    positions = (real.cumsum(-1) - 1).clamp_min(0)
    told = Told(given)
    zoo = tokenzoo.build("pyramiddrop", keep=13, layers=(1, 2, 3), factors=(3.0, 2.0, 1.0))
    with zoo.attach(model, on_reduce=told) as attached:
        logits(model, given)
        assert attached.plan().layers == ((1, 39), (2, 26), (3, 13))
        assert "39 from layer 1 on, 26 from layer 2 on, 13 from layer 3 on" in attached.summary()
    stages = sorted(told.gone)
    assert stages[-2:] == [
        2,
        3,
    ]  # OneVision pools an image to so few tokens that none goes at first
    for stage, layer in enumerate(stages):
        before = Told(given)
        before.gone = {k: gone for k, gone in told.gone.items() if k < layer}
        with masked(model, before, real, compact=True), torch.no_grad():
            maps = model(**given, position_ids=positions, output_attentions=True).attentions
        for r, left in enumerate(told.left[:2]):
            there, chosen = left[stage], left[stage + 1]
            paid = maps[layer][r, :, -1].mean(0)[there]
            best = there[paid.topk(len(chosen)).indices].sort().values
            assert torch.equal(chosen, best)
            # Sharp: the layer before has other favourites.
            other = maps[layer - 1][r, :, -1].mean(0)[there]
            assert not torch.equal(there[other.topk(len(chosen)).indices].sort().values, best)


@pytest.mark.parametrize("layer", [1, 3])
def test_the_second_stage_of_vscan(layer: int) -> None:
    """1.5 times as many enter the language model, and 0.5 times as many the layer, by its own map."""
    model = eager("llava")
    given = SINGLE.given(model)
    told: list[Any] = []
    zoo = tokenzoo.build("vscan", keep=16, layer=layer, shallow=1, deep=-2, window=4)
    with zoo.attach(model, on_reduce=told.append) as attached, entering(model) as calls:
        short = attached.shorten(given)
        logits(model, given)
        assert (attached.plan().visual, attached.plan().layers) == (24, ((layer, 8),))
        assert attached.prompts == (8,)
        said = answer(model, given)
        assert torch.equal(answer(model, given, use_cache=False), said)
    (event,) = (event for event in told[:2] if event.stage == "llm")
    places = (short["input_ids"][0] == hf.IMAGE).nonzero()[:, 0]
    embeds = calls[0]["inputs_embeds"]
    assert embeds.shape[1] == short["input_ids"].shape[1]
    language = model.model.language_model
    with torch.no_grad():
        maps = language(inputs_embeds=embeds, output_attentions=True).attentions
    best = maps[layer][0, :, -1].mean(0)[places].topk(8).indices.sort().values
    assert torch.equal(event.plan.keep[0].sort().values, best)


def test_it_is_seen_without_any_attention_map() -> None:
    """No tap, no name of ours: whatever attention the model has, its layers are called as ever."""
    model = KINDS["llava"]()
    with tokenzoo.build("pyramiddrop", keep=13, layers=(1, 3), factors=(2, 1)).attach(model):
        assert model.model.language_model.config._attn_implementation == "sdpa"
        logits(model, SINGLE.given(model))


def test_a_cache_that_shows_no_keys_is_refused() -> None:
    keys = torch.zeros(2, 2, 5, 8)
    shows = SimpleNamespace(layers=[None, SimpleNamespace(keys=keys)])
    assert cached_keys(shows, 1, 5) is keys
    assert cached_keys(None, 1, 0) is None
    odd = (shows, 4), (SimpleNamespace(layers=[SimpleNamespace()] * 2), 5), (SimpleNamespace(), 5)
    for other, columns in odd:
        with pytest.raises(AttachError, match=r"SimpleNamespace has no keys of layer 1.*Dynamic"):
            cached_keys(other, 1, columns)


# --- SparseVLM by definition ---

Reducer = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]
"""Tokens `[n, c]`, their positions `[..., n]`, which are visual, a map `[h, n, n]`, the prompt's last."""


def plain(model: Any, given: Any, words: Tensor, at: Mapping[int, Reducer]) -> Tensor:
    """The logits of a prompt's last token and of the words after it: bare layers, one prompt, no cache."""
    language = model.model.language_model
    with entering(model) as calls, torch.no_grad():
        model(**given)
    x = calls[0]["inputs_embeds"][0]
    ids = given["input_ids"][0]
    visual, last = ids == hf.IMAGE, len(ids) - 1
    positions = calls[0].get("position_ids")
    positions = torch.arange(len(x)) if positions is None else positions[..., 0, :]
    after = positions.max() + 1 + torch.arange(len(words))
    positions = torch.cat([positions, after.expand(*positions.shape[:-1], -1)], -1)
    x = torch.cat([x, language.embed_tokens(words)])
    visual = torch.cat([visual, torch.zeros(len(words), dtype=torch.bool)])
    seen: list[Tensor] = []
    handles = [
        layer.self_attn.register_forward_hook(lambda module, args, out: seen.append(out[1][0]))
        for layer in language.layers
    ]
    with torch.no_grad():
        for k, layer in enumerate(language.layers):
            if k in at:
                x, positions, visual = at[k](
                    x, positions, visual, seen[-1], len(x) - len(words) - 1
                )
            n = len(x)
            causal = torch.full((n, n), torch.finfo(x.dtype).min).triu(1)[None, None]
            where = positions[..., None, :]
            turns = language.rotary_emb(x[None], where)
            out = layer(x[None], attention_mask=causal, position_embeddings=turns)
            x = (out if isinstance(out, Tensor) else out[0])[0]
        assert last >= 0
        out = model.lm_head(language.norm(x[-1 - len(words) :]))
    for handle in handles:
        handle.remove()
    return out


def find_raters(model: Any, given: Any) -> list[int]:
    """The raters of a prompt, counted from the first text token after its image: one softmax at a time."""
    with entering(model) as calls, torch.no_grad():
        model(**given)
    x = calls[0]["inputs_embeds"][0]
    visual = (given["input_ids"][0] == hf.IMAGE).nonzero()[:, 0].tolist()
    text = list(range(visual[-1] + 1, len(x)))
    totals = [0.0] * len(text)
    for v in visual:
        logit = [float(x[v] @ x[t]) for t in text]
        weight = [math.exp(one - max(logit)) for one in logit]
        totals = [a + w / sum(weight) for a, w in zip(totals, weight, strict=True)]
    return [i for i, total in enumerate(totals) if total > sum(totals) / len(totals)]


def dense_centres(x: Tensor, k: int, neighbours: int) -> list[int]:
    """Centres of k clusters of `x [n, c]`, by density peaks; the highest first."""
    d = [[float((a - b).norm()) / len(a) ** 0.5 for b in x] for a in x]
    density = [math.exp(-sum(v * v for v in sorted(row)[:neighbours]) / neighbours) for row in d]
    peaks: list[float] = []
    for i, row in enumerate(d):
        denser = [row[j] for j in range(len(x)) if (density[j], -j) > (density[i], -i)]
        peaks.append(density[i] * (min(denser) if denser else max(map(max, d))))
    return sorted(range(len(x)), key=lambda i: -peaks[i])[:k]


def of_raters(
    raters: list[int],
    keep: int,
    dominant: int | None,
    heads: int | None,
    compact: bool,
    x: Tensor,
    positions: Tensor,
    visual: Tensor,
    attention: Tensor,
    last: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of SparseVLM: version 1 with `dominant` tokens and clusters, otherwise version 2."""
    places = visual.nonzero()[:, 0].tolist()
    asked = [places[-1] + 1 + r for r in raters if places[-1] + 1 + r <= last]
    paid = attention[:, asked][:, :, places].mean(1)  # [h, v]
    if heads is not None:
        paid = paid[paid.sum(-1).topk(heads).indices]
    score = paid.mean(0).tolist()
    ranked = sorted(range(len(places)), key=lambda i: -score[i])
    count = keep if dominant is None else dominant
    out = {places[i]: x[places[i]] for i in ranked[:count]}
    order = sorted(out)
    if dominant is not None:
        share = ranked[count:][: int(0.3 * (len(places) - count)) + 1]
        some = sorted(places[i] for i in share)
        centres = dense_centres(x[some], keep - count, int(len(some) / 10) + 1)
        members: dict[int, list[Tensor]] = {some[c]: [] for c in centres}
        for i, place in enumerate(some):
            near = min(centres, key=lambda c: (c != i, float((x[place] - x[some[c]]).norm())))
            if i not in centres:
                near = min(centres, key=lambda c: float((x[place] - x[some[c]]).norm()))
            members[some[near]].append(x[place])
        out |= {c: torch.stack(those).mean(0) for c, those in members.items()}
        order += [some[c] for c in centres]
    if not compact:
        order = sorted(order)
    after = list(range(places[-1] + 1, len(x)))
    rows = [*range(places[0]), *order, *after]
    new = torch.stack([out.get(i, x[i]) for i in rows])
    is_visual = torch.tensor([i in out for i in rows])
    if compact:
        return new, torch.arange(len(rows)), is_visual
    return new, positions[..., rows], is_visual


def photo(model: Any, kind: str) -> Any:
    """A prompt with one image."""
    if kind.startswith("qwen"):
        return qwen.inputs(model, ["see <image> . what is this small tree ?"], qwen.photos()[:1])
    return Batch((ONE,), ((TEMPLE,),)).given(model)


VERSIONS = {
    "1": {"dominant": 0.7},
    "1 keep": {"dominant": 0.7, "positions": "keep"},
    "2": {"version": "2", "heads": 2},
    "2 all heads": {"version": "2", "heads": None, "positions": "compact"},
}


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen2_5_vl"])
def test_sparsevlm_by_bare_layers(kind: str, name: str) -> None:
    """Raters, scores, clusters and means found one by one; the answer decoded with and without a cache."""
    model, options = eager(kind), VERSIONS[name]
    compact = options.get("positions", "compact" if "dominant" in options else "keep") == "compact"
    zoo = tokenzoo.build("sparsevlm", keep=8, layers=(1, 3), factors=(1.5, 1.0), **options)
    if kind != "llava" and compact:
        with pytest.raises(AttachError, match="positions='compact'"):
            zoo.attach(model)
        return
    given = photo(model, kind)
    words = torch.tensor([len(hf.SPECIAL), len(hf.SPECIAL) + 3, len(hf.SPECIAL) + 1])
    raters = find_raters(model, given)
    assert 0 < len(raters) < len(given["input_ids"][0])
    counts = {1: 12, 3: 8}
    at = {
        k: partial(
            of_raters,
            raters,
            keep,
            int(0.7 * keep) if "dominant" in options else None,
            options.get("heads") if "version" in options else None,
            compact,
        )
        for k, keep in counts.items()
    }
    wanted = plain(model, given, words, at)
    with zoo.attach(model) as attached, torch.no_grad():
        out = model(**given, use_cache=True)
        assert attached.prompts == (8,)
        ours, memory = [out.logits[:, -1]], given["attention_mask"]
        for word in words:
            memory = torch.cat([memory, memory[:, :1]], 1)
            more = {} if kind.startswith("qwen") else {"attention_mask": memory}
            out = model(input_ids=word[None, None], **{CACHE: cache_of(out)}, **more)
            ours.append(out.logits[:, -1])
        said = answer(model, given)
        assert torch.equal(answer(model, given, use_cache=False), said)
    assert gap(torch.cat(ours), wanted) <= 1e-4
    # Sharp: without the steps, or with one rater less, it is another answer.
    assert gap(plain(model, given, words, {}), wanted) > 1e-2
    fewer = {k: partial(of_raters, raters[1:], *step.args[1:]) for k, step in at.items()}
    assert len(raters) == 1 or gap(plain(model, given, words, fewer), wanted) > 1e-3


def test_raters_are_those_of_the_whole_prompt_at_every_step() -> None:
    """The visual tokens that entered decide, and not those that are left by then."""
    model = eager("llava")
    given = photo(model, "llava")
    shapes: list[tuple[int, ...]] = []

    class Spy(LastTokenAttention):
        """Notes what it is shown."""

        def __post_init__(self) -> None:
            self.require("last_attention", "x@embedded", "text@embedded")

        def score(self, evidence: Any) -> Tensor:
            embedded = evidence.at("embedded")
            shapes.append((evidence.x.shape[1], embedded.x.shape[1], embedded.text.shape[1]))
            seen.append(embedded)
            return super().score(evidence)

    seen: list[Any] = []
    match = SelectAssign(TopK(Spy()), Drop())
    steps = [Step(Stage.LLM(k), Once(keep=f), match, Identity()) for k, f in ((1, 2.0), (2, 1.0))]
    with tokenzoo.build(Recipe(*steps, keep=13)).attach(model), entering(model) as calls:
        logits(model, given)
    ids = given["input_ids"][0]
    places = (ids == hf.IMAGE).nonzero()[:, 0]
    text = len(ids) - 1 - int(places[-1])
    assert shapes == [(64, 64, text), (26, 64, text)]
    embeds = calls[0]["inputs_embeds"]
    for embedded in seen:
        assert torch.equal(embedded.x, embeds[:, places])
        assert torch.equal(embedded.text, embeds[:, places[-1] + 1 :])


@EACH
def test_rows_of_a_batch_do_not_know_each_other(kind: str) -> None:
    """Version 1 merges: rows with other images, other text and padding are what they are alone."""
    model = eager(kind)
    options = {"layers": (1, 3), "factors": (2.0, 1.0), "dominant": 0.75}
    with tokenzoo.build("sparsevlm", keep=12, **options).attach(model):
        said = answer(model, RAGGED.given(model))
        assert torch.equal(answer(model, RAGGED.given(model), use_cache=False), said)
        alone = [answer(model, row) for row in RAGGED.rows(model)]
        assert torch.equal(torch.cat(alone), said)
        beams = answer(model, RAGGED.given(model), num_beams=2)
        assert torch.equal(answer(model, RAGGED.given(model), num_beams=2, use_cache=False), beams)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_what_positions_make_of_a_pair(kind: str) -> None:
    """text_rotation is the logit of ones, turned as the layer before turns its queries and keys."""
    model = eager(kind)
    given = photo(model, kind)
    shown: list[Any] = []

    class Spy(LastTokenAttention):
        """Notes what it is shown."""

        def __post_init__(self) -> None:
            self.require("text_rotation", "last_attention")

        def score(self, evidence: Any) -> Tensor:
            shown.append(evidence.text_rotation)
            return super().score(evidence)

    step = Step(Stage.LLM(2), Once(), SelectAssign(TopK(Spy()), Drop()), Identity())
    with tokenzoo.build(Recipe(step, keep=8)).attach(model), entering(model) as calls:
        logits(model, given)
    language = model.model.language_model
    x, positions = calls[0]["inputs_embeds"], calls[0].get("position_ids")
    if positions is None:
        positions = torch.arange(x.shape[1])[None]
    cos, sin = (part.double() for part in language.rotary_emb(x, positions))
    places = (given["input_ids"][0] == hf.IMAGE).nonzero()[:, 0]
    d = cos.shape[-1]
    ones = cos + torch.cat([-torch.ones(d // 2), torch.ones(d // 2)]) * sin
    after = ones[0, places[-1] + 1 :]
    wanted = torch.stack([(row * ones[0, places]).sum(-1) for row in after]) / d**0.5
    assert gap(shown[0][0].double(), wanted) <= 1e-5


def test_the_authors_counts_can_be_asked_for(tmp_path: Path) -> None:
    """Of 576 tokens, and an average of 192 or so in 32 layers: their table, and the clusters by it."""
    ratios = (309 / 113, 204 / 113, 1.0)
    first = tokenzoo.build("sparsevlm", keep=113, factors=ratios, dominant=(300, 200, 110))
    plan = first.plan(576, 24)
    assert plan.layers == ((3, 309), (7, 204), (16, 113))
    before = 576
    for step, (_, count), kept in zip(
        first.recipe.steps, plan.layers, (300, 200, 110), strict=True
    ):
        groups = step.matcher.stay.groups(count)
        assert groups == (kept, (int(0.3 * (before - kept)) + 1) // 10 + 1)
        before = count
    ratios = (300 / 118, 200 / 118, 1.0)
    second = tokenzoo.build("sparsevlm", keep=118, factors=ratios, version="2")
    assert second.plan(576, 24).layers == ((3, 300), (7, 200), (16, 118))
    second.save(tmp_path / "second.json")
    first.save(tmp_path / "first.json")
    assert tokenzoo.load(tmp_path / "first.json").recipe == first.recipe
    halves = tokenzoo.build("pyramiddrop").plan(576, 24)
    assert halves.layers == ((8, 288), (16, 144), (24, 72))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": "3"}, ["version='3'", "'1'", "'2'"]),
        ({"match_reference": True}, ["match_reference=True", 'version="2"']),
        ({"layers": (3, 7)}, ["layers=(3, 7)", "factors=(2.7, 1.8, 1.0)", "one factor"]),
        ({"layers": 3}, ["layers=3"]),
        ({"layers": (0, 7, 16)}, ["layers=0", ">= 1"]),
        ({"factors": (2.0, 1.0, 0.0)}, ["factors=0.0", "> 0"]),
        ({"layers": (7, 3, 16)}, ["later"]),
        ({"dominant": 1.5}, ["share=1.5", "[0, 1]"]),
        ({"dominant": (8, 4)}, ["2 choices", "3 layers"]),
        ({"recycled": -0.1}, ["share=-0.1"]),
        ({"version": "2", "heads": 0}, ["heads=0"]),
        ({"positions": "anew"}, ["positions='anew'"]),
    ],
)
def test_bad_options(options: Any, words: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        tokenzoo.build("sparsevlm", **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


SMALL_STEPS = {
    "pyramiddrop": {"layers": (1, 3), "factors": (2.0, 1.0)},
    "sparsevlm": {"layers": (1, 3), "factors": (2.0, 1.0), "dominant": 0.7},
}


@pytest.mark.parametrize("name", SMALL_STEPS)
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_")  # renamed in 5.23
def test_checkpointing_changes_no_gradient(name: str) -> None:
    model = KINDS["llava"]().train()
    given = RAGGED.given(model)
    labels = given["input_ids"].masked_fill(given["input_ids"] < len(hf.SPECIAL), -100)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**given, labels=labels).loss.backward()
        language = model.model.language_model
        return [p.grad.clone() for p in language.parameters() if p.grad is not None]

    bare = gradients()
    with tokenzoo.build(name, keep=13, **SMALL_STEPS[name]).attach(model):
        plainly = gradients()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        again = gradients()
        model.gradient_checkpointing_disable()
    assert len(plainly) == len(again) == len(bare)
    assert max(gap(a, b) for a, b in zip(plainly, again, strict=True)) <= 1e-5
    assert max(gap(a, b) for a, b in zip(plainly, bare, strict=True)) > 1e-3


@pytest.mark.parametrize("name", SMALL_STEPS)
def test_in_half_precision(name: str) -> None:
    """Scores are found in full precision; the tokens keep theirs."""
    model = KINDS["llava"]().bfloat16()
    given = SINGLE.given(model)
    given["pixel_values"] = given["pixel_values"].bfloat16()
    dtypes: list[Any] = []
    zoo = tokenzoo.build(name, keep=13, **SMALL_STEPS[name])
    with zoo.attach(model, on_reduce=lambda event: dtypes.append(event.after.x.dtype)) as attached:
        out = logits(model, given)
        assert attached.prompts == (13,)
    assert dtypes == [torch.bfloat16] * 2
    assert out.dtype == torch.bfloat16
    assert bool(out.isfinite().all())


def test_images_of_several_sizes_with_as_many_tokens_left() -> None:
    """After the first step all have the same number; their raters are those of what each had at first."""
    model = eager("qwen2_vl")
    temple, _, tall, *_ = qwen.photos()
    prompt = "see <image> . what is this small tree ?"
    given = qwen.inputs(model, [prompt, prompt], [temple, tall])
    sizes = [int((ids == hf.IMAGE).sum()) for ids in given["input_ids"]]
    assert sizes[0] != sizes[1]
    counts: list[tuple[int, int]] = []

    def tell(event: Any) -> None:
        counts.append((event.before.x.shape[1], event.after.x.shape[1]))

    options = {"version": "2", "heads": 2, "layers": (1, 3), "factors": (1.5, 1.0)}
    zoo = tokenzoo.build("sparsevlm", keep=6, **options)
    with zoo.attach(model, on_reduce=tell) as attached:
        said = answer(model, given)
        assert attached.prompts == (6, 6)
        assert sorted(counts) == sorted([(n, 9) for n in sizes] + [(9, 6)] * 2)
        rows = [qwen.inputs(model, [prompt], [one]) for one in (temple, tall)]
        assert torch.equal(torch.cat([answer(model, row) for row in rows]), said)
