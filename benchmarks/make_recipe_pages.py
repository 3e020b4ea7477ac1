"""docs/recipes: a page for each recipe of ours, and the table of all of them.

    python -m benchmarks.make_recipe_pages

What a page says comes from the recipe and its docstring (`tokenzoo.tools.recipe_pages`), from the table
of models (docs/recipes/matrix.md, made by `tests/adapters/test_matrix.py`) and from the measured cost of
selection (docs/results/selection-time-cpu.json, made by `benchmarks/selection_time.py`). It fails, and
writes nothing, where a docstring lacks something. `tests/test_recipe_pages.py` holds that the pages
are what it makes now.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tokenzoo import plugins
from tokenzoo.errors import BadArgumentError
from tokenzoo.tools import recipe_pages

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "recipes"
MATRIX = FOLDER / "matrix.md"
RESULTS = ROOT / "docs" / "results"
COSTS = RESULTS / "selection-time-cpu.json"
COMMAND = "python -m benchmarks.make_recipe_pages"

INTRO = f"""# The recipes

Each recipe is one function in `tokenzoo/recipes/`: a choice of parts and numbers. Every page here is made
from that function, its docstring and what was measured, by `{COMMAND}`: change
those, not the pages. `tokenzoo list --stage features --needs-no cls --model llava` chooses among them by
the same facts, and [matrix.md](matrix.md) shows which recipe runs on which model."""

NOTE = """Time of one reduction of random tensors in CLIP-L's shapes, evidence, matching and merging
together, as a share of one block of the encoder on as many tokens (median; `block again` is the noise),
and how many operations torch is asked for. A fifth is kept, or the fewest that one step reaches; of a
recipe with several steps it is the first. *Per token kept* is how many more operations each further token
takes: DivPrune, CDPruner and IDPruner choose one token after another, FlashVID one of every frame after
another, VisPruner drops eight in a round, MovieChat merges two frames after another, and all others work
without a loop over tokens. Clips have 8 frames; the recipes named under `later` in the file were measured
in a run of their own. SCOPE and MMTok choose one token after another, too, inside one operation.
Attention that all tokens receive, and neighbours among many, are computed in blocks, which are
operations, too."""


def ours() -> list[str]:
    """The recipes that come with tokenzoo."""
    recipes = plugins.collect("recipes").items()
    return [name for name, factory in recipes if factory.__module__.startswith("tokenzoo.")]


def matrix(text: str) -> dict[str, dict[str, str]]:
    """Of each recipe and model what the table of models says."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in re.findall(r"^\|.*", text, re.M)
    ]
    if not rows:
        return {}
    (_, *models), _, *body = rows
    return {name.strip("`"): dict(zip(models, cells, strict=True)) for name, *cells in body}


def cost(name: str, content: dict[str, Any]) -> str:
    """What the selection of a recipe was measured to cost, in Markdown."""
    rows = [row for row in content["rows"] if row["recipe"] == name]
    if not rows:
        return ""
    of = f" (the first of {rows[0]['steps']} steps)" if rows[0].get("steps", 1) > 1 else ""
    lines = [
        f"Time of one selection{of}, relative to one block of the encoder in the same round, median and",
        f"quartiles; {content['threads']} thread(s), command in docs/results/{COSTS.name}.",
        "",
        "| tokens | kept | time of a block | operations |",
        "|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["quartiles"]
        time = f"{row['median']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {row['tokens']:,} | {row['keep']:,} | {time} | {row['operations']:,} |")
    return "\n".join(lines)


def trained(name: str) -> str:
    """What a training of a recipe on digits came to, and the controls at equal tokens, in Markdown."""
    path = RESULTS / f"training-{name}.json"
    if not path.exists():
        return ""
    content = json.loads(path.read_text())
    scores = content["scores"]
    names = [*scores["bare"]]
    best = {one: scores["trained"][names[0]] > scores[one][names[0]] for one in ("random", "pool")}
    beats = ", ".join(f"{'beats' if won else 'does not beat'} `{one}`" for one, won in best.items())
    lines = [
        f"After {content['steps']} steps of {content['batch']} collages with the shipped ViT, which stayed",
        f"frozen, at {content['keep']} of 256 tokens, it {beats} at equal tokens ({names[0]}).",
        "Shares of right answers on collages of digits that no step had seen, of a short training;",
        f"all losses are in [{path.name}](../results/{path.name}) (docs/learning.md).",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for row, found in scores.items():
        lines.append(f"| {row} | {' | '.join(f'{100 * found[one]:.1f} %' for one in names)} |")
    return "\n".join(lines)


def prices(content: dict[str, Any]) -> str:
    """The section about what selections cost: all recipes, and what the noise alone is, in Markdown."""
    if not content["rows"]:
        return ""
    sizes = sorted({row["tokens"] for row in content["rows"]})
    titles = "".join(f" of {n:,}: kept | time | operations |" for n in sizes)
    lines = [
        "## What a selection costs",
        "",
        f"{NOTE} On {content['threads']} thread(s); all figures, with the command, are in",
        f"[{COSTS.name}](../results/{COSTS.name}).",
        "",
        f"| recipe |{titles} per token kept |",
        f"|---|{'---|---|---|' * len(sizes)}---|",
    ]
    for name in dict.fromkeys(row["recipe"] for row in content["rows"]):
        rows = {row["tokens"]: row for row in content["rows"] if row["recipe"] == name}
        cells = [
            (rows[n].get("keep", ""), rows[n]["median"], rows[n].get("operations", ""))
            for n in sizes
        ]
        shown = [f"{keep} | {time:.2f} | {asked}" for keep, time, asked in cells]
        lines.append(
            f"| `{name}` | {' | '.join(shown)} | {rows[sizes[0]].get('per token kept', 0):.0f} |"
        )
    return "\n".join(lines)


def make() -> dict[str, str]:
    """The text of every page, by file name.

    Raises:
        BadArgumentError: docstrings lack something; says what.
    """
    seen = matrix(MATRIX.read_text()) if MATRIX.exists() else {}
    costs = json.loads(COSTS.read_text()) if COSTS.exists() else {"rows": []}
    made: dict[str, str] = {}
    problems: list[str] = []
    for name in ours():
        models, price = seen.get(name), cost(name, costs)
        try:
            made[f"{name}.md"] = recipe_pages.page(
                name, models=models, cost=price, trained=trained(name), made_by=COMMAND
            )
        except BadArgumentError as error:
            problems.append(str(error))
    if problems:
        raise BadArgumentError("\n".join(problems))
    parts = (INTRO, recipe_pages.index(ours()), prices(costs))
    return made | {"README.md": "\n\n".join(part for part in parts if part) + "\n"}


def main() -> None:
    try:
        made = make()
    except BadArgumentError as error:
        sys.exit(str(error))
    for name, text in made.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
