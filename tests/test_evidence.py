"""Evidence: what a site shows, lazily; and attention seen through queries and keys, prefix and all."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo import Evidence, TokenMap
from tokenzoo.attention import SeenAttention
from tokenzoo.errors import MissingEvidenceError, TokenzooError
from tokenzoo.evidence import NAMES, needed
from tokenzoo.testing.strategies import Example, examples

close = {"rtol": 1e-12, "atol": 1e-12}


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
    b, _, total, _ = whole.shape
    p = attention.prefix
    mass = draws(7, b, total - p).exp() if by_mass else None
    weight = torch.ones(b, total, dtype=torch.float64)
    if mass is not None:
        weight[:, p:] = mass
    if queries == "patches":
        weight[:, :p] = 0
    first = p if queries == "patches" else 0
    asked = torch.arange(first, total)[min(stride, total - first) // 2 :: stride]
    weight = torch.zeros_like(weight).index_copy(1, asked, weight[:, asked])
    expected = torch.einsum("bhmn,bm->bn", whole, weight / weight.sum(-1, keepdim=True))
    found = attention.received(queries, mass, stride)
    torch.testing.assert_close(found, expected[:, p:] / whole.shape[1], **close)


@given(attentions(), st.data())
@settings(max_examples=25)
def test_rows_and_cls_are_rows_of_the_map(
    seen: tuple[SeenAttention, torch.Tensor], data: st.DataObject
) -> None:
    attention, whole = seen
    b, _, total, _ = whole.shape
    p = attention.prefix
    count = data.draw(st.integers(1, 4))
    index = torch.randint(total - p, (b, count), generator=torch.Generator().manual_seed(0))
    rows = attention.rows(index)
    for i in range(b):
        torch.testing.assert_close(rows[i], whole[i][:, index[i] + p, p:], **close)
    torch.testing.assert_close(attention.cls(), whole[:, :, 0, p:], **close)


@given(attentions())
@settings(max_examples=25)
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
    every = torch.arange(n).expand(b, n)
    torch.testing.assert_close(evidence.rows(every), whole[:, :, p:, p:], **close)
    expected = {"x", "mass", "keys", "queries", "received_attention", "attention"}
    assert evidence.provides == expected | ({"cls_attention"} if p else set())
    if p:
        torch.testing.assert_close(evidence.cls_attention, whole[:, :, 0, p:], **close)
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
    keys = evidence.keys
    assert evidence.features("x") is evidence.x
    torch.testing.assert_close(evidence.features("keys"), keys.mean(1))
    torch.testing.assert_close(evidence.features("queries"), evidence.queries.mean(1))
    whole = evidence.features("all_keys")
    assert whole.shape == (2, 6, 12)
    assert torch.equal(whole[:, 5, 4:8], keys[:, 1, 5])
    assert [needed(on) for on in ("x", "keys", "queries", "all_keys")] == [
        *("x", "keys", "queries", "keys")
    ]
    with pytest.raises(MissingEvidenceError, match=r"provides no gaze; it provides .*keys"):
        evidence.features("gaze")


MISSING: dict[str, Callable[[Evidence], object]] = {
    "keys": lambda evidence: evidence.keys,
    "queries": lambda evidence: evidence.queries,
    "values": lambda evidence: evidence.values,
    "received_attention": lambda evidence: evidence.received_attention,
    "cls_attention": lambda evidence: evidence.cls_attention,
    "last_attention": lambda evidence: evidence.last_attention,
    "text_attention": lambda evidence: evidence.text_attention,
    "text_rotation": lambda evidence: evidence.text_rotation,
    "attention": lambda evidence: evidence.attention,
    "text": lambda evidence: evidence.text,
    "grid": lambda evidence: evidence.grid,
    "frames": lambda evidence: evidence.frames,
    "depth": lambda evidence: evidence.depth,
    "evidence of layer -2": lambda evidence: evidence.at(-2),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_named_with_what_is_there(name: str) -> None:
    evidence = Evidence(torch.zeros(1, 3, 2), mass=torch.ones(1, 3))
    with pytest.raises(MissingEvidenceError) as caught:
        MISSING[name](evidence)
    assert isinstance(caught.value, TokenzooError)
    assert f"provides no {name}; it provides mass, x" in str(caught.value)


def test_every_name_can_be_missing_or_is_always_there() -> None:
    assert {name for name in MISSING if "layer" not in name} | {"x", "mass"} == set(NAMES)


def test_layers() -> None:
    other = Evidence(
        torch.ones(1, 3, 5), mass=torch.ones(1, 3), show={"keys": lambda: torch.ones(1)}
    )
    evidence = Evidence(
        torch.zeros(1, 3, 2), mass=torch.ones(1, 3), layers={-2: other, "clip": other}
    )
    assert evidence.at(None) is evidence
    assert evidence.at(-2) is evidence.at("clip") is other
    named = {f"{name}@{layer}" for layer in (-2, "clip") for name in ("x", "mass", "keys")}
    assert evidence.provides == {"x", "mass"} | named
    with pytest.raises(MissingEvidenceError, match=re.escape("provides no evidence of layer 3")):
        evidence.at(3)


@given(examples(max_tokens=12), st.data())
@settings(max_examples=25)
def test_take_takes_the_same_tokens_of_everything(example: Example, data: st.DataObject) -> None:
    evidence = example.evidence(frozenset({"x@clip", "keys@text", "x@embedded"}))
    b, n = evidence.x.shape[:2]
    count = data.draw(st.integers(1, n))
    index = torch.randint(n, (b, count), generator=torch.Generator().manual_seed(0))
    part = evidence.take(index)
    for i in range(b):
        assert torch.equal(part.x[i], evidence.x[i, index[i]])
        assert torch.equal(part.mass[i], evidence.mass[i, index[i]])
        assert torch.equal(part.keys[i], evidence.keys[i][:, index[i]])
        assert torch.equal(part.queries[i], evidence.queries[i][:, index[i]])
        assert torch.equal(part.values[i], evidence.values[i][:, index[i]])
        assert torch.equal(part.cls_attention[i], evidence.cls_attention[i][:, index[i]])
        assert torch.equal(part.received_attention[i], evidence.received_attention[i, index[i]])
        assert torch.equal(part.at("clip").x[i], evidence.x[i, index[i]])
        assert torch.equal(part.last_attention[i], evidence.last_attention[i][:, index[i]])
        assert torch.equal(part.text_attention[i], evidence.text_attention[i][..., index[i]])
        assert torch.equal(part.text_rotation[i], evidence.text_rotation[i][:, index[i]])
    assert part.text is evidence.text
    assert part.depth == evidence.depth == evidence.renewed(evidence.x, evidence.mass).depth
    for layer in ("text", "embedded"):  # other tokens, of which none was taken
        assert part.at(layer) is evidence.at(layer)
    assert part.prefix == evidence.prefix


def test_a_part_of_a_grid_is_no_grid() -> None:
    part = Example.drawn(grid=(2, 3)).evidence().take(torch.tensor([[0, 1]] * 2))
    assert not {"grid", "frames"} & part.provides
    with pytest.raises(MissingEvidenceError, match="provides no grid"):
        _ = part.grid


def test_held_tokens_are_taken_along() -> None:
    held = torch.tensor([[True, False, True]])
    evidence = Evidence(torch.zeros(1, 3, 2), mass=torch.ones(1, 3), held=held)
    part = evidence.take(torch.tensor([[2, 1]]))
    assert part.held is not None
    assert part.held.tolist() == [[True, False]]
