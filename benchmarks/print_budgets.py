"""Print the tables of docs/budgets.md: what EvoPrune's Skip removes where, and the operations left.

    python benchmarks/print_budgets.py

Arithmetic only, no model; a test holds that the page has what this prints.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tokenzoo.budget import TokenBudget, removals_of
from tokenzoo.schedules import Skip


class Tower(NamedTuple):
    """A vision tower, as far as its operations go."""

    name: str
    tokens: int
    blocks: int
    width: int
    hidden: int


TOWERS = {
    Tower("SigLIP so400m/14 at 384 px", 729, 26, 1152, 4304): (64, 32, 16),
    Tower("CLIP ViT-L/14 at 336 px, up to the last block but one", 576, 23, 1024, 4096): (
        128,
        64,
        32,
    ),
}


def halved(tokens: int) -> int:
    """The least that merging in pairs leaves."""
    return (tokens + 1) // 2


def budget(tower: Tower, keep: int, schedule: Skip) -> TokenBudget:
    """The counts of one tower; prefix tokens are left out, as in the floors quoted in the page."""
    return TokenBudget(
        tokens=tower.tokens,
        entering=tower.tokens,
        blocks=schedule.counts(tower.tokens, tower.blocks, keep, halved),
        features=keep,
        width=tower.width,
        hidden=tower.hidden,
    )


def spaced(numbers: Iterable[int]) -> str:
    """Numbers in one cell of a table."""
    return " ".join(map(str, numbers))


def table(tower: Tower, keeps: Iterable[int], schedule: Skip) -> str:
    """One tower under one schedule, a row per number of tokens kept."""
    sites = range(schedule.start, tower.blocks, schedule.every)
    lines = [
        f"{tower.name}: {tower.tokens} patch tokens, {tower.blocks} blocks, width {tower.width}, "
        f"MLP {tower.hidden}; `{schedule!r}`, {len(sites)} merging blocks: "
        f"{sites[0]}, {sites[1]}, ..., {sites[-1]}.",
        "",
        "| keep | operations | removed in each merging block | left after each |",
        "|---|---|---|---|",
    ]
    for keep in keeps:
        plan = budget(tower, keep, schedule)
        removed = removals_of(tower.tokens, plan.blocks)
        cells = (keep, f"{plan.flops:.3f}", spaced(removed[i] for i in sites))
        left = spaced(plan.blocks[i] for i in sites)
        lines.append("| " + " | ".join(map(str, (*cells, left))) + " |")
    return "\n".join(lines)


def page() -> str:
    """All tables, as markdown."""
    schedules = (Skip(start=1), Skip(start=0))
    tables = [table(*row, schedule) for schedule in schedules for row in TOWERS.items()]
    return "\n\n".join(tables)


if __name__ == "__main__":
    print(page())
