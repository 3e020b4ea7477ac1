"""EvoPrune: merge inside the vision encoder, where the cost is."""

from __future__ import annotations

from typing import Literal

from tokenzoo._core.validation import check_choice, check_fraction, is_kind
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import Alternate, Bipartite, Protect
from tokenzoo.mergers import Mean, WeightedMean
from tokenzoo.parts import Merger, Schedule
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Skip
from tokenzoo.scorers import Diversity, ReceivedAttention, Similarity
from tokenzoo.scorers.feature_norm import SPACES

MERGERS: dict[str, Merger] = {"weighted_mean": WeightedMean(), "mean": Mean()}


@register_recipe
def evoprune(
    *,
    keep: int | float = 0.25,
    ctr: float = 0.25,
    features: str = "x",
    curve: Literal["cosine", "nonnegative", "exp", "sigmoid"] = "nonnegative",
    beta: float = 1.0,
    density: str = "x",
    k: int = 5,
    tau: float | str = "image",
    lam: float = 0.1,
    queries: Literal["all", "patches"] = "all",
    by_mass: bool = False,
    stride: int = 1,
    sticky: bool = False,
    proposers: Literal["odd", "even"] = "odd",
    start: int = 1,
    every: int = 2,
    schedule: Schedule | None = None,
    merger: Literal["weighted_mean", "mean"] = "weighted_mean",
    proportional_attention: bool = True,
) -> Recipe:
    """Protect attended tokens and merge similar ones in dense regions, in every other block of the encoder.

    In every other block, between attention and MLP, the tokens that receive most attention are held; the
    others split alternately into a and b; each of a proposes to its best partner in b, and the r best
    proposals are merged. Details that the paper leaves open are options; docs/evoprune.md has the reasons
    for each default.

    Formula:
        score(i, j) = sim(i, j) * exp(-lam * (d_i + d_j))
        d_i = 1 - mean over the k nearest neighbours l of exp(-|v_i - v_l|^2 / tau^2)

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 128, 64 or 32 of 576; 64, 32 or 16 of a
            frame)
        ctr: critical token ratio, the share of a site's tokens that is held; 0: the received attention is
            not computed. (paper: 0.25; our ablation prefers 0.1)
        features: features of the cosine: "x" (hidden states), "keys" (mean over heads), "all_keys" or
            "queries". (open)
        curve: what makes the cosine non-negative before it is multiplied by weights. (open; the paper
            says that it lies in [0, 1], which a cosine does not)
        beta: steepness of the curves "exp" and "sigmoid". (open)
        density: features of the neighbourhoods. (open)
        k: number of nearest neighbours. (open)
        tau: bandwidth of the Gaussian, or "image": adapted to each image. (open)
        lam: weight of the diversity penalty; 0: densities are not computed. (open)
        queries: "all", or "patches": the queries of the received attention. (open)
        by_mass: weigh the queries by mass. (open)
        stride: estimate the received attention from every stride-th query. (ours)
        sticky: hold the tokens of earlier sites first, as long as there is room. (contradictory)
        proposers: which of the mergeable tokens, counted from 1, are a: the "odd" or the "even" ones.
            (paper: "even" where its indices are taken literally)
        start: first block that merges, counted from 0. (open; 0 or 1)
        every: distance between merging blocks. (paper: 2)
        schedule: another schedule, instead of Skip(start, every). (ours)
        merger: "weighted_mean" by mass, or "mean". (open)
        proportional_attention: log mass on the logits of later blocks, as in ToMe. (open)

    Departures:
        No code of the authors was found. Held tokens are not gathered, where the paper multiplies by minus
        infinity; never fewer than r pairs are left to be merged; a site that must halve holds nothing. All
        of it, with the reasons: docs/evoprune.md.

    Licence:
        No code published.

    Reference:
        EvoPrune: Early-Stage Visual Token Pruning for Efficient MLLMs, March 2026, arXiv 2603.03681
    """
    if not is_kind(merger, str) or merger not in MERGERS:
        raise BadArgumentError(f"merger={merger!r}; it must be {' or '.join(map(repr, MERGERS))}")
    # Checked under the names of the options, which differ from those of the parts.
    check_fraction("ctr", ctr)
    for name, space in (("features", features), ("density", density)):
        check_choice(name, space, *SPACES)
    similarity = Similarity(features, curve, beta)
    # Made even where they have no weight, so that their options are checked; then they are left out, with
    # the time that densities and received attention take.
    affinity = similarity * Diversity(density, k=k, tau=tau).discount(lam)
    critical = Protect(ReceivedAttention(queries, by_mass, stride), ctr, sticky)
    match = Bipartite(
        affinity if lam > 0 else similarity,
        split=Alternate(proposers),
        protect=critical if ctr > 0 else None,
    )
    step = Step(Stage.BLOCK, schedule or Skip(start, every), match, MERGERS[merger])
    return Recipe(step, keep=keep, proportional_attention=proportional_attention)
