"""The table of docs/models.md: which models work, and why the others are refused.

Every model is made with random weights and tried (`tokenzoo.examining`); nothing is downloaded. Run it with
`python -m benchmarks.make_models_table`, timm, torchvision and open_clip installed. It fails, and writes
nothing, if a model neither works nor is refused. `tests/adapters/test_models_table.py` tries some again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

import tokenzoo
from benchmarks.models_to_try import SIZES, named
from tokenzoo.examining import Verdict, examine

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
RECIPE, KEEP, DEPTH, BATCH = "evoprune", 0.5, 4, 2

INTRO = """# Which models work

Every model in these tables was tried. It was made with random weights, of about the size that trained ones
have (in a fresh model LayerScale's gammas are 1e-5, and no error would show), and `{recipe}` was attached,
which proves each block by itself: all of its tokens, half of them, and all in another order. Then the whole
model was run on {batch} images of its own size.

- **works**: with all tokens kept, the output differs from the bare model's by no more than 1e-5 of the
  largest value (*identity error*); with `keep={keep}` there were exactly as many patch tokens after each
  block as planned, and the output was another; after `detach` the model is the bare one, bit for bit.
  An error of 0 is no wonder: with nothing to remove, nothing happens. Whether reduction itself is right is
  what the proof of each block shows.
- **refused**: nothing is attached, and the error says why. The reasons below are its own words.
- There is no third kind: nothing is silently left as it was, or silently wrong.

{works} models work, {refused} are refused. Made with `python -m benchmarks.make_models_table` on tokenzoo
{tokenzoo}, timm {timm}, torchvision {torchvision}, open_clip {open_clip} and torch {torch}, on the CPU in
float32. `tests/adapters/test_models_table.py` sees to it that these are the models of that script, and
tries some of them again. Of any other, `tokenzoo doctor NAME` says the same.
"""


def tried(names: Sequence[str], depth: int | None) -> list[Verdict]:
    """Examine models, saying so as they come."""
    found: list[Verdict] = []
    for name in names:
        options = {"img_size": SIZES[name]} if name in SIZES else {}
        found.append(examine(name, recipe=RECIPE, keep=KEEP, depth=depth, batch=BATCH, **options))
        print(f"{found[-1].verdict:8}{name}  {found[-1].reason}", flush=True)
    return found


def works_table(verdicts: Sequence[Verdict]) -> str:
    """Those that work: `196 -> 147, 98` are the patch tokens before, and where they change."""
    lines = ["| model | class | identity error | tokens | FLOPs |", "|---|---|---|---|---|"]
    for v in verdicts:
        steps = [
            n for n, before in zip(v.counts, (v.tokens, *v.counts), strict=False) if n != before
        ]
        lines.append(
            f"| `{v.name}` | {v.family} | {v.identity:.1g} | {v.tokens} → {', '.join(map(str, steps))} | "
            f"{v.flops:.2f} |"
        )
    return "\n".join(lines)


def refused_table(verdicts: Sequence[Verdict]) -> str:
    """Those that are refused, each with the first sentence of the error."""
    lines = ["| model | class | reason |", "|---|---|---|"]
    lines += [f"| `{v.name}` | {v.family} | {v.reason.partition('. ')[0]} |" for v in verdicts]
    endings = dict.fromkeys(v.reason.partition(". ")[2] for v in verdicts)
    quoted = "\n".join(f"- {ending}" for ending in endings if ending)
    return (
        "\n".join(lines)
        + f"\n\nEach error goes on with what is followed, and what to do:\n\n{quoted}"
    )


def section(title: str, text: str, verdicts: Sequence[Verdict]) -> str:
    """One library's two tables."""
    works = [v for v in verdicts if v.verdict == "works"]
    refused = [v for v in verdicts if v.verdict == "refused"]
    parts = [f"## {title}", textwrap.fill(text, 110), *([works_table(works)] if works else [])]
    return "\n\n".join([*parts, refused_table(refused)] if refused else parts)


def page(found: dict[str, list[Verdict]]) -> str:
    """The whole page."""
    import open_clip  # they are slow to import, and the test of the page needs none
    import timm
    import torchvision

    tables = [*found["timm"], *found["elsewhere"], *found["whole"], *found["others"]]
    head = INTRO.format(
        recipe=RECIPE,
        keep=KEEP,
        batch=BATCH,
        works=len({v.name for v in tables if v.verdict == "works"}),
        refused=len({v.name for v in tables if v.verdict == "refused"}),
        tokenzoo=tokenzoo.__version__,
        timm=timm.__version__,
        torchvision=torchvision.__version__.partition("+")[0],
        open_clip=open_clip.__version__,
        torch=torch.__version__.partition("+")[0],
    )
    steps = (
        f"With {DEPTH} blocks of the model's own width. Tokens: patch tokens before the first block, and "
        "after each one that reduces. FLOPs: of the blocks, as planned, relative to the bare model. Images "
        f"were smaller than the model's own for {', '.join(f'`{name}`' for name in SIZES)}."
    )
    others = ", ".join(f"`{v.name}` ({v.family})" for v in found["others"])
    if any(v.verdict != "refused" for v in found["others"]):
        raise ValueError("one of OTHERS is not refused: it belongs to MODELS")
    parts = [
        head,
        section("timm", steps, found["timm"]),
        section("With all their blocks", "Some of them again, at full depth.", found["whole"]),
        section(
            "torchvision and open_clip",
            "At full depth. Of an open_clip model it is the image tower, `model.visual`, or the timm model "
            "inside.",
            found["elsewhere"],
        ),
        "## Other models of timm\n\nOne of each module that has no transformer; all of them are refused:\n"
        f"{textwrap.fill(others, 110)}.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE)
    out: Path = parser.parse_args().out
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are what is wanted
    found = {
        "timm": tried(named("timm"), DEPTH),
        "whole": tried(named("whole"), None),
        "elsewhere": tried(named("elsewhere"), None),
        "others": tried(named("others"), DEPTH),
    }
    broken = [v for verdicts in found.values() for v in verdicts if v.verdict == "broken"]
    if broken:
        sys.exit("\n".join(f"broken: {v.name} ({v.family}): {v.reason}" for v in broken))
    out.write_text(page(found))


if __name__ == "__main__":
    main()
