"""Evidence: what a site shows, lazily; and attention seen through queries and keys, prefix and all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.refusals import refused
from tokenzoo import Evidence, TokenMap
from tokenzoo.attention import DeferredAttention, SeenAttention
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.evidence import NAMES, needed
from tokenzoo.testing.strategies import Example, examples

close = {"rtol": 1e-12, "atol": 1e-12}
BARE = Evidence(torch.zeros(1, 3, 2), mass=torch.ones(1, 3))


def draws(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@st.composite
def attentions(draw: st.DrawFn) -> tuple[SeenAttention, torch.Tensor]:
    """Queries and keys of all tokens, and the map `[b, h, N, N]` that they make."""
    b, h, d = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    prefix, n = draw(st.integers(0, 2)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 999))
    query, key = draws(seed, b, h, prefix + n, d), draws(seed + 1, b, h, prefix + n, d)
    bias = draws(seed + 2, b, prefix + n) if draw(st.booleans()) else None
    seen = SeenAttention(query, key, d**-0.5, prefix, bias)
    logits = query @ key.mT * d**-0.5
    if bias is not None:
        logits = logits + bias[:, None, None]
    return seen, logits.softmax(-1)


@given(
    attentions(), st.sampled_from(["all", "patches"]), st.booleans(), st.sampled_from([1, 2, 3, 50])
)
@settings(max_examples=120)
def test_received_is_the_column_mean_of_the_map(
    seen: tuple[SeenAttention, torch.Tensor], queries: str, by_mass: bool, stride: int
) -> None:
    attention, whole = seen
    b, h, total, _ = whole.shape
    p = attention.prefix
    mass = draws(7, b, total - p).exp() if by_mass else None
    weight = torch.ones(b, total, dtype=torch.float64)
    if mass is not None:
        weight[:, p:] = mass
    first = p if queries == "patches" else 0
    asked = torch.arange(first, total)[min(stride, total - first) // 2 :: stride]
    share = weight[:, asked] / weight[:, asked].sum(-1, keepdim=True)
    expected = torch.einsum("bhmn,bm->bn", whole[:, :, asked], share)[:, p:] / h
    torch.testing.assert_close(attention.received(queries, mass, stride), expected, **close)


@given(attentions())
@settings(max_examples=40)
def test_evidence_shows_what_was_seen_about_the_patches(
    seen: tuple[SeenAttention, torch.Tensor],
) -> None:
    attention, whole = seen
    p = attention.prefix
    b, n = whole.shape[0], whole.shape[2] - p
    evidence = Evidence(draws(0, b, n, 2), mass=torch.ones(b, n), attention=attention, prefix=p)
    assert evidence.attention is attention
    assert torch.equal(evidence.keys, attention.key[:, :, p:])
    assert torch.equal(evidence.queries, attention.query[:, :, p:])
    torch.testing.assert_close(evidence.received_attention, whole.mean((1, 2))[:, p:], **close)
    some = torch.randint(n, (b, 3), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([whole[i][:, some[i] + p, p:] for i in range(b)])
    torch.testing.assert_close(evidence.rows(some), expected, **close)
    torch.testing.assert_close(attention.cls(), whole[:, :, 0, p:], **close)
    provided = {"x", "mass", "keys", "queries", "received_attention", "attention"}
    assert evidence.provides == provided | ({"cls_attention"} if p else set())
    if p:
        torch.testing.assert_close(evidence.cls_attention, attention.cls(), **close)
    else:
        with pytest.raises(MissingEvidenceError, match="provides no cls_attention; it provides"):
            _ = evidence.cls_attention


def test_nothing_is_computed_before_it_is_asked_for_and_nothing_twice() -> None:
    calls: list[str] = []

    def keys() -> torch.Tensor:
        calls.append("keys")
        return torch.zeros(1, 2, 3, 4)

    evidence = Evidence(torch.zeros(1, 3, 2), mass=torch.ones(1, 3), show={"keys": keys})
    later = evidence.through(TokenMap.identity(1, 3))
    assert evidence.provides == later.provides == {"x", "mass", "keys"}
    assert calls == []
    assert evidence.keys is evidence.keys
    assert evidence.features("keys").shape == (1, 3, 4)
    assert later.features("all_keys").shape == (1, 3, 8)
    assert calls == ["keys"]


def test_features_by_name() -> None:
    evidence = Example.drawn(images=2, grid=(2, 3), heads=3, width=4).evidence()
    assert evidence.features("x") is evidence.x
    torch.testing.assert_close(evidence.features("keys"), evidence.keys.mean(1))
    torch.testing.assert_close(evidence.features("queries"), evidence.queries.mean(1))
    heads = evidence.keys.transpose(1, 2).flatten(2)  # [b, n, h * d]
    assert torch.equal(evidence.features("all_keys"), heads)
    names = {"x": "x", "keys": "keys", "queries": "queries", "all_keys": "keys"}
    assert {on: needed(on) for on in names} == names
    refused(lambda: evidence.features("gaze"), "no gaze", "keys", kind=MissingEvidenceError)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("x", "mass")])
def test_what_is_missing_is_named_with_what_is_there(name: str) -> None:
    words = f"provides no {name}; it provides mass, x"
    refused(lambda: getattr(BARE, name), words, kind=MissingEvidenceError)


def test_layers() -> None:
    shape = {"mass": torch.ones(1, 3), "show": {"keys": lambda: torch.ones(1)}}
    other = Evidence(torch.ones(1, 3, 5), **shape)
    evidence = Evidence(BARE.x, mass=BARE.mass, layers={-2: other, "clip": other})
    assert evidence.at(None) is evidence
    assert evidence.at(-2) is evidence.at("clip") is other
    named = {f"{name}@{layer}" for layer in (-2, "clip") for name in ("x", "mass", "keys")}
    assert evidence.provides == {"x", "mass"} | named
    words = "provides no evidence of layer 3"
    refused(lambda: evidence.at(3), words, kind=MissingEvidenceError)


# Where the tokens are, from the end.
AXES = {"x": 2, "mass": 1, "received_attention": 1, "cls_attention": 1, "last_attention": 1}
AXES |= {"text_attention": 1, "text_rotation": 1, "keys": 2, "queries": 2, "values": 2}


@given(examples(max_tokens=12), st.data())
@settings(max_examples=25)
def test_take_takes_the_same_tokens_of_everything(example: Example, data: st.DataObject) -> None:
    evidence = example.evidence(frozenset({"x@clip", "keys@text", "x@embedded"}))
    b, n = evidence.x.shape[:2]
    count = data.draw(st.integers(1, n))
    index = torch.randint(n, (b, count), generator=torch.Generator().manual_seed(0))
    part = evidence.take(index)
    for name, axis in AXES.items():
        whole = getattr(evidence, name)
        expected = [whole[i].index_select(-axis, index[i]) for i in range(b)]
        assert torch.equal(getattr(part, name), torch.stack(expected)), name
    assert torch.equal(part.at("clip").x, part.x)
    assert part.text is evidence.text
    assert part.depth == evidence.depth == evidence.renewed(evidence.x, evidence.mass).depth
    for layer in ("text", "embedded"):  # other tokens, of which none was taken
        assert part.at(layer) is evidence.at(layer)
    assert part.prefix == evidence.prefix


def test_a_part_has_no_grid_and_keeps_what_is_held() -> None:
    part = Example.drawn(grid=(2, 3)).evidence().take(torch.tensor([[0, 1]] * 2))
    assert not {"grid", "frames"} & part.provides
    refused(lambda: part.grid, "provides no grid", kind=MissingEvidenceError)
    held = torch.tensor([[True, False, True]])
    part = Evidence(BARE.x, mass=BARE.mass, held=held).take(torch.tensor([[2, 1]]))
    assert part.held is not None
    assert part.held.tolist() == [[True, False]]


def test_a_known_column_is_read_without_the_queries_and_keys() -> None:
    """They are large, and to put those of several patches side by side copies them."""
    made: list[SeenAttention] = []

    def make() -> SeenAttention:
        made.append(SeenAttention(torch.randn(1, 2, 4, 3), torch.randn(1, 2, 4, 3), 1.0))
        return made[0]

    column = torch.rand(1, 4)
    deferred = DeferredAttention(make, frozenset({"keys", "received_attention"}), column)
    evidence = Evidence(torch.randn(1, 4, 6), mass=torch.ones(1, 4), attention=deferred)
    assert evidence.received_attention is column
    assert made == []
    assert torch.equal(evidence.keys, made[0].key)
    assert evidence.attention is made[0]
    assert len(made) == 1
