"""PyramidDrop and SparseVLM inside a language model, against bare layers and their own attention maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenzoo_adapters.hf.decoder.next_layer import NextLayerProbe
from tokenzoo_adapters.hf.names import cached_keys
from torch import Tensor
from transformers import DynamicCache

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.decoder.test_layers import RAGGED, Told, eager, masked
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
from tests.conformance.spec_makers import hf_checkpoint
from tests.conformance.specs import SPECS, fresh
from tests.conformance.test_training import gradients, near
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError, BadArgumentError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import LastTokenAttention
from tokenzoo.token_map import TokenMap

EACH = pytest.mark.parametrize("kind", KINDS)
SIZES = {"vocab_size": 7, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("kind", ["LlamaModel", "Qwen3Model"])
def test_it_is_what_the_layer_itself_attends_to(kind: str, past: int) -> None:
    """Grouped queries, norms of queries and keys, padding at the left, tokens in a cache."""
    torch.manual_seed(0)
    model = hf.made(kind, **SIZES, **HEADS, attn_implementation="eager")
    x = torch.randn(2, past + 9, 32)
    mask = torch.ones(2, past + 9, dtype=torch.int64)
    mask[1, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    given: list[Any] = []
    cached = DynamicCache()

    def note(layer: Any, args: Any, kwargs: Any) -> None:
        keys = cached.layers[1].keys if past else None
        given.append((args[0], kwargs["position_embeddings"], keys))

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
    # OneVision pools an image to so few tokens that none goes at first.
    assert stages[-2:] == [2, 3]
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


def test_a_cache_that_shows_no_keys_is_refused() -> None:
    keys = torch.zeros(2, 2, 5, 8)
    shows = SimpleNamespace(layers=[None, SimpleNamespace(keys=keys)])
    assert cached_keys(shows, 1, 5) is keys
    assert cached_keys(None, 1, 0) is None
    odd = (shows, 4), (SimpleNamespace(layers=[SimpleNamespace()] * 2), 5), (SimpleNamespace(), 5)
    for other, columns in odd:
        with pytest.raises(AttachError, match=r"SimpleNamespace has no keys of layer 1.*Dynamic"):
            cached_keys(other, 1, columns)


def plain(
    model: Any, given: Any, words: Tensor, plans: Mapping[int, TokenMap], compact: bool
) -> Tensor:
    """The logits of a prompt's last token and of the words after it: bare layers, one prompt, no cache.

    Before a layer of `plans` the visual tokens are replaced by the means of those that go to one place.
    """
    language = model.model.language_model
    with entering(model) as calls, torch.no_grad():
        model(**given)
    x, ids = calls[0]["inputs_embeds"][0], given["input_ids"][0]
    begin, *_, end = (ids == hf.IMAGE).nonzero()[:, 0].tolist()
    visual = slice(begin, end + 1)
    positions = calls[0].get("position_ids")
    positions = torch.arange(len(x)) if positions is None else positions[..., 0, :]
    after = positions.max() + 1 + torch.arange(len(words))
    positions = torch.cat([positions, after.expand(*positions.shape[:-1], -1)], -1)
    x = torch.cat([x, language.embed_tokens(words)])
    with torch.no_grad():
        for k, layer in enumerate(language.layers):
            if k in plans:
                keep, dst = plans[k].keep[0], plans[k].dst[0]
                slots = torch.arange(len(keep)) if compact else keep.argsort()
                keep, means = keep[slots], [x[visual][dst == slot].mean(0) for slot in slots]
                x = torch.cat([x[:begin], torch.stack(means), x[visual.stop :]])
                left = [positions[..., :begin], positions[..., visual][..., keep]]
                positions = torch.cat([*left, positions[..., visual.stop :]], -1)
                visual = slice(begin, begin + len(keep))
                positions = torch.arange(len(x)) if compact else positions
            n = len(x)
            causal = torch.full((n, n), torch.finfo(x.dtype).min).triu(1)[None, None]
            turns = language.rotary_emb(x[None], positions[..., None, :])
            out = layer(x[None], attention_mask=causal, position_embeddings=turns)
            x = (out if isinstance(out, Tensor) else out[0])[0]
        return model.lm_head(language.norm(x[-1 - len(words) :]))


def photo(model: Any, kind: str) -> Any:
    """A prompt with one image."""
    if kind.startswith("qwen"):
        return qwen.inputs(model, ["see <image> . what is this small tree ?"], qwen.photos()[:1])
    return Batch((ONE,), ((TEMPLE,),)).given(model)


def best_of_raters(model: Any, given: Any, keep: int, heads: int | None) -> Tensor:
    """The visual tokens to which the raters among the words pay most in the first layer."""
    with entering(model) as calls, torch.no_grad():
        attention = model(**given, output_attentions=True).attentions[0][0]  # [h, n, n]
    x, places = calls[0]["inputs_embeds"][0], (given["input_ids"][0] == hf.IMAGE).nonzero()[:, 0]
    after = slice(int(places[-1]) + 1, None)
    share = (x[after] @ x[places].T).softmax(0).mean(1)  # of each word
    paid = attention[:, after][:, share > share.mean()][:, :, places].mean(1)  # [h, v]
    if heads is not None:
        paid = paid[paid.sum(-1).topk(heads).indices]
    return paid.mean(0).topk(keep).indices.sort().values


VERSIONS: dict[str, dict[str, Any]] = {
    "1": {"dominant": 0.7},
    "1 keep": {"dominant": 0.7, "positions": "keep"},
    "2": {"version": "2", "heads": 2},
    "2 all heads": {"version": "2", "heads": None, "positions": "compact"},
}


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen2_5_vl"])
def test_sparsevlm_by_bare_layers(kind: str, name: str) -> None:
    """Its choice by the model's own map; the answer decoded with and without a cache.

    The clusters of version 1 are those of the authors' code: tests/test_golden.py.
    """
    model, options = eager(kind), VERSIONS[name]
    compact = options.get("positions", "compact" if "dominant" in options else "keep") == "compact"
    zoo = tokenzoo.build("sparsevlm", keep=8, layers=(1, 3), factors=(1.5, 1.0), **options)
    if kind != "llava" and compact:
        with pytest.raises(AttachError, match="positions='compact'"):
            zoo.attach(model)
        return
    given = photo(model, kind)
    plans: dict[int, TokenMap] = {}
    words = torch.tensor([len(hf.SPECIAL), len(hf.SPECIAL) + 3, len(hf.SPECIAL) + 1])
    with zoo.attach(model, on_reduce=lambda event: plans.setdefault(event.block, event.plan)) as on:
        with torch.no_grad():
            out = model(**given, use_cache=True)
            assert on.prompts == (8,)
            ours, memory = [out.logits[:, -1]], given["attention_mask"]
            for word in words:
                memory = torch.cat([memory, memory[:, :1]], 1)
                more = {} if kind.startswith("qwen") else {"attention_mask": memory}
                out = model(input_ids=word[None, None], **{CACHE: cache_of(out)}, **more)
                ours.append(out.logits[:, -1])
        assert torch.equal(answer(model, given, use_cache=False), answer(model, given))
    assert [(k, len(plan.keep[0])) for k, plan in plans.items()] == [(1, 12), (3, 8)]
    if "version" in options:
        best = best_of_raters(model, given, 12, options["heads"])
        assert torch.equal(plans[1].keep[0].sort().values, best)
    else:
        assert plans[1].dst[0][plans[1].dst[0] >= 0].bincount().max() > 1
    assert gap(torch.cat(ours), plain(model, given, words, plans, compact)) <= 1e-4
    # Sharp: without the steps it is another answer.
    assert gap(plain(model, given, words, {}, compact), torch.cat(ours)) > 1e-2


@dataclass(frozen=True)
class Spy(LastTokenAttention):
    """Has a look at what it is shown."""

    wanted: tuple[str, ...] = ()
    look: Callable[[Any], None] = print

    def __post_init__(self) -> None:
        self.require("last_attention", *self.wanted)

    def score(self, evidence: Any) -> Tensor:
        self.look(evidence)
        return super().score(evidence)


def test_raters_are_those_of_the_whole_prompt_at_every_step() -> None:
    """The visual tokens that entered decide, and not those that are left by then."""
    model = eager("llava")
    given = photo(model, "llava")
    shown: list[tuple[int, Any]] = []
    spy = Spy(
        wanted=("x@embedded", "text@embedded"),
        look=lambda evidence: shown.append((evidence.x.shape[1], evidence.at("embedded"))),
    )
    match = SelectAssign(TopK(spy), Drop())
    steps = [Step(Stage.LLM(k), Once(keep=f), match, Identity()) for k, f in ((1, 2.0), (2, 1.0))]
    with tokenzoo.build(Recipe(*steps, keep=13)).attach(model), entering(model) as calls:
        logits(model, given)
    places = (given["input_ids"][0] == hf.IMAGE).nonzero()[:, 0]
    embeds = calls[0]["inputs_embeds"]
    assert [left for left, _ in shown] == [64, 26]
    for _, embedded in shown:
        assert torch.equal(embedded.x, embeds[:, places])
        assert torch.equal(embedded.text, embeds[:, places[-1] + 1 :])


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_what_positions_make_of_a_pair(kind: str) -> None:
    """text_rotation is the logit of ones, turned as the layer before turns its queries and keys."""
    model = eager(kind)
    given = photo(model, kind)
    shown: list[Tensor] = []
    spy = Spy(wanted=("text_rotation",), look=lambda evidence: shown.append(evidence.text_rotation))
    step = Step(Stage.LLM(2), Once(), SelectAssign(TopK(spy), Drop()), Identity())
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
    counts, dominant = (309, 204, 113), (300, 200, 110)
    factors = tuple(count / counts[-1] for count in counts)
    zoo = tokenzoo.build("sparsevlm", keep=113, factors=factors, dominant=dominant)
    assert zoo.plan(576, 24).layers == tuple(zip((3, 7, 16), counts, strict=True))
    before = (576, *counts)
    for step, n, count, kept in zip(zoo.recipe.steps, before, counts, dominant, strict=False):
        clusters = (int(0.3 * (n - kept)) + 1) // 10 + 1
        assert step.matcher.stay.groups(count) == (kept, clusters)
    zoo.save(tmp_path / "zoo.json")
    assert tokenzoo.load(tmp_path / "zoo.json").recipe == zoo.recipe
    factors = (300 / 118, 200 / 118, 1.0)
    second = tokenzoo.build("sparsevlm", keep=118, factors=factors, version="2")
    assert second.plan(576, 24).layers == ((3, 300), (7, 200), (16, 118))
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
    model = fresh("llava").train()
    given = SPECS["llava"].give(model)
    bare = gradients("llava", model, given)
    with tokenzoo.build(name, keep=13, **SMALL_STEPS[name]).attach(model):
        plain = gradients("llava", model, given)
        hf_checkpoint(model, reentrant=False)
        near(gradients("llava", model, given), plain)
    assert max(gap(bare[key], grad) for key, grad in plain.items()) > 1e-3


@pytest.mark.parametrize("name", SMALL_STEPS)
def test_in_half_precision(name: str) -> None:
    """Scores are found in full precision; the tokens keep theirs."""
    model = hf.llava().bfloat16()
    given = SINGLE.given(model)
    given["pixel_values"] = given["pixel_values"].bfloat16()
    events: list[Any] = []
    zoo = tokenzoo.build(name, keep=13, **SMALL_STEPS[name])
    with zoo.attach(model, on_reduce=events.append) as attached:
        if name == "pyramiddrop":  # no tap sees its attention, whichever the model has
            assert model.model.language_model.config._attn_implementation == "sdpa"
        out = logits(model, given)
        assert attached.prompts == (13,)
    assert [event.after.x.dtype for event in events] == [torch.bfloat16] * 2
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
    events: list[Any] = []
    options = {"version": "2", "heads": 2, "layers": (1, 3), "factors": (1.5, 1.0)}
    zoo = tokenzoo.build("sparsevlm", keep=6, **options)
    with zoo.attach(model, on_reduce=events.append) as attached:
        said = answer(model, given)
        assert attached.prompts == (6, 6)
        counts = [(event.before.x.shape[1], event.after.x.shape[1]) for event in events]
        assert sorted(counts) == sorted([*((n, 9) for n in sizes), (9, 6), (9, 6)])
        rows = [qwen.inputs(model, [prompt], [one]) for one in (temple, tall)]
        assert torch.equal(torch.cat([answer(model, row) for row in rows]), said)
