"""Hypothesis strategies for the inputs of parts: tokens, evidence, budgets, plans, sites.

    @given(evidence())
    def test_mine(evidence): ...

Hypothesis draws sizes, kinds and a seed; the numbers come from a generator with that seed. So examples
shrink to few tokens rather than to round numbers. Everything drawn is valid. `composing` has the strategies
of parts, schedules and recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from hypothesis import strategies as st

from tokenzoo.evidence import Evidence
from tokenzoo.matchers import Every
from tokenzoo.parts import Fewest
from tokenzoo.testing.example import KINDS as KINDS
from tokenzoo.testing.example import Example as Example
from tokenzoo.testing.example import layers_in as layers_in
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens


@cache
def budgets(tokens: int) -> st.SearchStrategy[int | float]:
    """Draw a budget for so many tokens: a count (at most one more than there are) or a fraction."""
    return st.integers(1, tokens + 1) | st.integers(1, 100).map(lambda percent: percent / 100)


@cache
def _rows(tokens: int) -> st.SearchStrategy[int]:
    """Draw a number of rows that divides the tokens."""
    return st.sampled_from([rows for rows in range(1, tokens + 1) if tokens % rows == 0])


@st.composite
def examples(draw: st.DrawFn, *, max_tokens: int = 40) -> Example:
    """Draw an example of 1 to `max_tokens` patch tokens: everything at once that a site can show."""
    tokens = draw(st.integers(1, max_tokens), label="tokens")
    rows = draw(_rows(tokens))
    return Example.drawn(
        images=draw(st.integers(1, 3)),
        grid=(rows, tokens // rows),
        prefix=draw(st.integers(0, 2)),
        heads=draw(st.integers(1, 3)),
        width=draw(st.integers(1, 8)),
        channels=draw(st.integers(1, 8)),
        dtype=draw(st.sampled_from([torch.float64, torch.float32])),
        kind=draw(st.sampled_from(KINDS)),
        keep=draw(budgets(tokens)),
        seed=draw(st.integers(0, 2**16)),
    )


def tokens(*, max_tokens: int = 40) -> st.SearchStrategy[Tokens]:
    """Draw `Tokens`: features `[b, n, c]` with masses, 0 to 2 prefix tokens first."""
    return examples(max_tokens=max_tokens).map(lambda example: example.tokens)


def evidence(
    *, needs: frozenset[str] = frozenset(), max_tokens: int = 40
) -> st.SearchStrategy[Evidence]:
    """Draw `Evidence` about patch tokens that shows everything.

    Args:
        needs: other layers are there as far as these name them: {"cls_attention@-2"}.
        max_tokens: patch tokens of the largest.
    """
    return examples(max_tokens=max_tokens).map(lambda example: example.evidence(needs))


@st.composite
def plans(
    draw: st.DrawFn,
    *,
    images: int,
    tokens: int,
    dropping: bool = True,
    new: bool = True,
) -> TokenMap:
    """Draw a consistent plan.

    Args:
        draw: Hypothesis's.
        images: b.
        tokens: n.
        dropping: whether some tokens may be dropped.
        new: whether a new token, which stands for no input token, may be among the outputs.
    """
    kept = draw(st.integers(1, tokens))
    more = draw(st.integers(0, 2)) if new else 0
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    order = torch.rand(images, tokens, generator=generator).argsort(-1)
    keep = torch.cat([order[:, :kept], order.new_full((images, more), -1)], 1)
    lowest = -1 if dropping else 0
    slots = torch.randint(lowest, kept + more, (images, tokens - kept), generator=generator)
    whole = not bool((keep < 0).any() or (slots < 0).any())
    return TokenMap.from_slots(
        keep, order[:, kept:], slots, tokens, complete=whole and draw(st.booleans())
    )


Takes = Literal["half", "all but one", "all but two", "every fourth stays", "nothing"]

FEWEST: dict[Takes, Fewest] = {
    "half": lambda n: (n + 1) // 2,
    "all but one": lambda n: 1,
    "all but two": lambda n: min(2, n),
    "every fourth stays": lambda n: n - Every(4).limit(n),
    "nothing": lambda n: n,
}
"""`fewest` functions of matchers, by how many tokens the matcher can remove at a site."""


@dataclass(frozen=True)
class Sites:
    """The arguments of a schedule: tokens, sites, and the wanted count.

    Attributes:
        tokens: before the first site.
        sites: number of sites.
        keep: wanted number of tokens after the last site.
        takes: how many tokens the matcher can remove at one site; a key of `FEWEST`.
    """

    tokens: int
    sites: int
    keep: int
    takes: Takes = "half"

    @property
    def fewest(self) -> Fewest:
        """The least that can stay at one site of so many tokens."""
        return FEWEST[self.takes]


@st.composite
def sites(draw: st.DrawFn, *, max_tokens: int = 300, max_sites: int = 32) -> Sites:
    """Draw arguments of a schedule, for matchers that can remove many tokens or almost none."""
    tokens = draw(st.integers(1, max_tokens))
    return Sites(
        tokens,
        draw(st.integers(1, max_sites)),
        draw(st.integers(1, tokens + 1)),
        draw(st.sampled_from(list(FEWEST))),
    )


@dataclass(frozen=True)
class Tower:
    """The shape of a tower, for which a recipe is planned.

    Attributes:
        tokens: patch tokens of an image.
        depth: blocks.
        prefix: CLS and register tokens.
        seed: of the features.
    """

    tokens: int
    depth: int
    prefix: int = 0
    seed: int = 0


@st.composite
def towers(draw: st.DrawFn, *, max_tokens: int = 64, max_depth: int = 12) -> Tower:
    """Draw the shape of a tower."""
    return Tower(
        draw(st.integers(1, max_tokens)),
        draw(st.integers(1, max_depth)),
        draw(st.integers(0, 2)),
        draw(st.integers(0, 2**16)),
    )
