"""The tables of docs/evoprune.md, made of the files in docs/results; a test compares them.

python benchmarks/evoprune_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
Shares = dict[str, Any]


def load(part: str) -> dict[str, Any]:
    """The content of one file of results."""
    return json.loads((RESULTS / f"evoprune-{part}.json").read_text())


def percent(share: dict[str, float]) -> str:
    """A share in percent with its 95 % interval."""
    low, high = max(0.0, share["low"]), min(1.0, share["high"])
    return f"{100 * share['value']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def points(difference: dict[str, float]) -> str:
    """A difference in points with its 95 % interval."""
    value, half = 100 * difference["value"], 50 * (difference["high"] - difference["low"])
    return f"{value:+.1f} ±{half:.1f}"


def named(change: dict[str, Any]) -> str:
    """A change of options as it is written in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in change.items())


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def comparison(content: dict[str, Any]) -> str:
    """All recipes at equal tokens."""
    heads = ["recipe", "tokens", "FLOPs", "time", "marked digit", "each count"]
    heads += ["all ten counts", "all ten, less evoprune's"]
    lines = []
    for row in content["rows"]:
        bare = row["keep"] is None
        time = "1.00"
        if "time" in row:
            low, high = row["time"]["quartiles"]
            time = f"{row['time']['median']:.2f} ({low:.2f}-{high:.2f})"
        ours = bare or row["recipe"] == "evoprune"
        lines.append(
            [
                row["recipe"] if " " in row["recipe"] else f"`{row['recipe']}`",
                "256" if bare else str(row["keep"]),
                f"{row['flops']:.2f}",
                time,
                *(percent(row[name]) for name in ("marked", "counts", "all_counts")),
                "" if ours else points(row["to_evoprune"]["all_counts"]),
            ]
        )
    return table(heads, lines)


def changes(rows: Sequence[dict[str, Any]], keeps: Sequence[int]) -> str:
    """One line for each change: all ten counts, their mean difference, and the one detail."""
    heads = ["changed", *(f"all ten, {keep}" for keep in keeps), "difference of the means"]
    heads += [f"marked, {keeps[-1]}"]
    operations = [[f"{row[str(keep)]['flops']:.2f}" for keep in keeps] for row in rows]
    differ = any(own != operations[0] for own in operations)
    heads += ["FLOPs"] if differ else []
    lines = [
        [
            f"`{named(row['change'])}`" if row["change"] else "nothing",
            *(percent(row[str(keep)]["all_counts"]) for keep in keeps),
            points(row["all_counts_mean_difference"]) if row["change"] else "",
            percent(row[str(keeps[-1])]["marked"]),
            *([", ".join(own)] if differ else []),
        ]
        for row, own in zip(rows, operations, strict=True)
    ]
    return table(heads, lines)


def parts(rows: dict[str, dict[str, Any]], keeps: Sequence[int]) -> str:
    """Named changes (the paper's Table 3 and Figure 4); the differences are to the first."""
    heads = ["", "tokens", "FLOPs", "marked digit", "each count", "all ten counts", "difference"]
    looked_at = all("pairs" in row[str(keep)] for row in rows.values() for keep in keeps)
    heads += ["merged across cells: one digit"] if looked_at else []
    lines = []
    for keep in keeps:
        first = True
        for name, row in rows.items():
            found = row[str(keep)]
            line = [name, str(keep), f"{found['flops']:.2f}"]
            line += [percent(found[what]) for what in ("marked", "counts", "all_counts")]
            line.append("" if first else points(found["difference"]["all_counts"]))
            line += [f"{100 * found['pairs']['one digit']:.0f}"] if looked_at else []
            lines.append(line)
            first = False
    return table(heads, lines)


def tables() -> Iterator[tuple[str, str]]:
    """Every table of the document, with its name."""
    yield "comparison", comparison(load("comparison"))
    choice = load("choose")
    yield "choose", changes([choice["base"], *choice["alternatives"]], choice["budgets"])
    joint = load("joint")
    yield "joint", changes([joint["base"], *joint["joint"]], joint["budgets"])
    report = load("report")
    for name in ("table_3", "table_3_mean", "figure_4", "ladder"):
        yield name, parts(report[name], report["budgets"])


if __name__ == "__main__":
    for name, text in tables():
        print(f"{name}\n\n{text}\n")
