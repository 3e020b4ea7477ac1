"""How a budget is spread over the sites of a tower: exact integer arithmetic on counts.

A schedule is one weight per site. Each site removes floor(c * weight) tokens, or the most that its
matcher can take there if that is less, with the smallest c for which all sites together remove
enough. The surplus, a few tokens, is given back by the latest sites. So every count is exact.

    729 -> 16 over 13 equal sites that can at most halve: 61 x 9, 60, 59, 30, 15
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cmp_to_key
from itertools import pairwise

from tokenzoo._core.validation import check_count, is_kind
from tokenzoo.errors import BadArgumentError, BudgetError

Fewest = Callable[[int], int]


def capped(tokens: int, asks: Sequence[int], fewest: Fewest) -> tuple[int, ...]:
    """Return the tokens after each site when site i removes `asks[i]`, or as many as it can.

    Args:
        tokens: before the first site.
        asks: removals wanted at each site, >= 0.
        fewest: see `spread`; a value above n counts as n (the site removes nothing), one below 1 as 1 (an
            image never loses its last token).
    """
    counts: list[int] = []
    n = tokens
    for ask in asks:
        if ask:
            n = max(n - ask, min(n, fewest(n)), 1)
        counts.append(n)
    return tuple(counts)


def removals_of(tokens: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Return the removals of each site, from the counts after each site."""
    return tuple(before - after for before, after in pairwise((tokens, *counts)))


def spread(
    tokens: int, keep: int, weights: Sequence[float | Fraction], fewest: Fewest
) -> tuple[int, ...]:
    """Return the patch tokens after each site, the last being exactly `keep`.

    Each site removes min(floor(c * weight), n - fewest(n)), with the smallest c that removes at
    least tokens - keep in all. The surplus is given back, one token each, by the latest sites that were
    not at their limit. For equal weights this is the feasible reading of EvoPrune's "fixed number of
    merged tokens" (arXiv 2603.03681).

    Args:
        tokens: before the first site.
        keep: tokens wanted after the last; with keep >= tokens all stay.
        weights: one per site, >= 0; a site of weight 0 removes nothing.
        fewest: the least that can stay at one site of n tokens, never falling as n grows:
            (n + 1) // 2 where tokens merge in pairs, 1 for a selection.

    Raises:
        BudgetError: all sites at their limit leave more than `keep`; names the fewest.
        BadArgumentError: a weight is not a finite number >= 0, or all are 0 and tokens must go.
    """
    check_count("tokens", tokens)
    check_count("keep", keep)
    whole = _as_ints(weights)
    if keep >= tokens:
        return (tokens,) * len(whole)
    active = [weight for weight in whole if weight]
    if not active:
        raise BadArgumentError(
            f"weights are all 0, but {tokens - keep} of {tokens} tokens must go; give the sites "
            "that may remove tokens a weight above 0"
        )
    least = _reach(tokens, len(active), fewest)
    if least > keep:
        raise BudgetError(
            f"keep={keep} of {tokens} tokens is out of reach: with all {len(active)} reducing "
            f"sites at their limit, the fewest possible is {least}. Ask for keep={least} or more, "
            "or choose a schedule with more sites or a matcher that removes more at one site"
        )
    asks = _smallest_asks(tokens, keep, active, fewest)
    removals = _give_back(tokens, keep, asks, fewest)
    counts = capped(tokens, removals, fewest)
    if counts[-1] != keep:
        counts = _mended(tokens, keep, removals, fewest)
    return _filled(tokens, counts, whole)


def _as_ints(weights: Sequence[float | Fraction]) -> list[int]:
    """Return integers in the same ratios as the weights, exactly (a float is a binary fraction)."""
    for weight in weights:
        number = is_kind(weight, int | float | Fraction)
        if not number or isinstance(weight, bool) or not 0 <= weight < math.inf:
            raise BadArgumentError(
                f"weights={tuple(weights)!r} with {weight!r} in them; a weight is a finite "
                "number >= 0"
            )
    if not weights:
        raise BadArgumentError(
            "weights=(); a schedule has one weight per site, and at least one site"
        )
    ratios = [weight.as_integer_ratio() for weight in weights]
    common = math.lcm(*(denominator for _, denominator in ratios))
    whole = [numerator * (common // denominator) for numerator, denominator in ratios]
    factor = math.gcd(*whole) or 1
    return [weight // factor for weight in whole]


def _reach(tokens: int, sites: int, fewest: Fewest) -> int:
    """Return the fewest tokens that can be left after this many sites."""
    return capped(tokens, [tokens] * sites, fewest)[-1] if sites else tokens


def _smallest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the smallest number in [low, high] for which `holds`, a monotone predicate."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _smallest_asks(tokens: int, keep: int, weights: list[int], fewest: Fewest) -> list[int]:
    """Return floor(c * weight) for the smallest c that reaches `keep`.

    Removals grow with c, so c is found by bisection; exactly, since they change only where some
    c * weight becomes an int.
    """

    def asks(step: int, per: int) -> list[int]:
        return [step * weight // per for weight in weights]

    def reached(step: int, per: int) -> bool:
        return capped(tokens, asks(step, per), fewest)[-1] <= keep

    # First the step of the heaviest site ...
    top = max(weights)
    low = high = -((keep - tokens) * top // sum(weights))  # enough if no site were cut
    while not reached(high, top):
        low, high = high + 1, 2 * high
    last = _smallest(low, high, lambda step: reached(step, top))
    # ... within which every other site makes one step at most: c = step / weight, sorted.
    steps = {(last * weight // top, weight) for weight in set(weights)}
    within = [(step, weight) for step, weight in steps if step * top > (last - 1) * weight]
    within.sort(key=cmp_to_key(lambda a, b: a[0] * b[1] - b[0] * a[1]))
    return asks(*within[_smallest(0, len(within) - 1, lambda i: reached(*within[i]))])


def _give_back(tokens: int, keep: int, asks: list[int], fewest: Fewest) -> list[int]:
    """Return the removals, after the latest sites below their limit gave back the surplus."""
    counts = capped(tokens, asks, fewest)
    removals = list(removals_of(tokens, counts))
    uncut = [i for i, ask in enumerate(asks) if removals[i] == ask]
    surplus = keep - counts[-1]
    while surplus:
        givers = [i for i in reversed(uncut) if removals[i]][:surplus]
        if not givers:
            break
        for i in givers:
            removals[i] -= 1
        surplus -= len(givers)
    return removals


def _mended(tokens: int, keep: int, removals: list[int], fewest: Fewest) -> tuple[int, ...]:
    """Return exact counts near `removals` where `n - fewest(n)` falls as n grows.

    There, a token given back at one site can lower the limit of a later one (two protected shares that
    round up at the same n do that); so each site removes what the sites after it cannot. All sites at their
    limit reach `keep`, so the last count is `keep` for any `fewest`.
    """
    counts: list[int] = []
    n = tokens
    for i, removal in enumerate(removals):
        floor = max(keep, min(n, fewest(n)))
        n = max(n - removal, floor)
        while n > floor and _reach(n, len(removals) - i - 1, fewest) > keep:
            n -= 1
        counts.append(n)
    return tuple(counts)


def _filled(tokens: int, counts: tuple[int, ...], weights: list[int]) -> tuple[int, ...]:
    """Return the counts of all sites from those of the sites with a weight."""
    after = iter(counts)
    filled: list[int] = []
    n = tokens
    for weight in weights:
        n = next(after) if weight else n
        filled.append(n)
    return tuple(filled)
