"""The table of docs/models.md: which models work, and why the others are refused.

Every model is made with random weights and tried (`tokenzoo.tools.compatibility`); nothing is
downloaded. Run it with `python -m benchmarks.make_models_table`, timm, torchvision and open_clip
installed. It fails, and writes nothing, if a model neither works nor is refused; `--only transformers`
makes that section anew and leaves the others as they are, and `--only refusals` writes the list of the
vision-language models that are refused, which is read off `hf/vlm/refusals.py`.
`tests/adapters/test_models_table.py` tries some again.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenzoo_adapters.hf.vlm.refusals import REFUSALS

import tokenzoo
from benchmarks.models_to_try import SIZES, named, vision_language_classes
from tokenzoo.tools.compatibility import CompatibilityReport, examine

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
RECIPE, KEEP, DEPTH, BATCH = "evoprune", 0.5, 4, 2
LAST = "Other models of timm"

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


def tried(names: Sequence[str], depth: int | None) -> list[CompatibilityReport]:
    """Examine models, saying so as they come."""
    found: list[CompatibilityReport] = []
    for name in names:
        options = {"img_size": SIZES[name]} if name in SIZES else {}
        found.append(examine(name, recipe=RECIPE, keep=KEEP, depth=depth, batch=BATCH, **options))
        print(f"{found[-1].verdict:8}{name}  {found[-1].reason}", flush=True)
    return found


def works_table(verdicts: Sequence[CompatibilityReport]) -> str:
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


def refused_table(verdicts: Sequence[CompatibilityReport]) -> str:
    """Those that are refused, each with the first sentence of the error."""
    lines = ["| model | class | reason |", "|---|---|---|"]
    lines += [f"| `{v.name}` | {v.family} | {v.reason.partition('. ')[0]} |" for v in verdicts]
    endings = dict.fromkeys(v.reason.partition(". ")[2] for v in verdicts)
    quoted = "\n".join(f"- {ending}" for ending in endings if ending)
    return (
        "\n".join(lines)
        + f"\n\nEach error continues with what is supported and what to do:\n\n{quoted}"
    )


def section(title: str, text: str, verdicts: Sequence[CompatibilityReport]) -> str:
    """One library's two tables."""
    works = [v for v in verdicts if v.verdict == "works"]
    refused = [v for v in verdicts if v.verdict == "refused"]
    parts = [f"## {title}", textwrap.fill(text, 110), *([works_table(works)] if works else [])]
    return "\n\n".join([*parts, refused_table(refused)] if refused else parts)


def page(found: dict[str, list[CompatibilityReport]]) -> str:
    """The whole page."""
    import open_clip  # they are slow to import, and the test of the page needs none
    import timm
    import torchvision

    tables = [v for verdicts in found.values() for v in verdicts]
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
        transformers_section(found["transformers"]),
        refusals_section(),
        f"## {LAST}\n\nOne of each module that has no transformer; all of them are refused:\n"
        f"{textwrap.fill(others, 110)}.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def transformers_section(verdicts: Sequence[CompatibilityReport]) -> str:
    """The section about transformers, with its version."""
    import transformers

    text = (
        f"Of transformers {transformers.__version__}, by the type of their configuration, with {DEPTH} "
        "blocks of the tower's own width. A multimodal model has a small language model here, and is given "
        "a prompt with an image; of its tower only the blocks that are read are reduced. Compared is what "
        "does not depend on the tokens left: pooled features, or the logits of the last token. In "
        "Qwen's and GLM's models and InternVL a token is what the language model reads, a group of 2 x 2 "
        "patches. Qwen's and GLM's towers take images of any size, here of 11 x 13 tokens; of such a "
        "tower alone the merged groups are compared."
    )
    return section("transformers", text, verdicts)


REFUSED = "Vision-language models of transformers that are refused"


def refusals_section() -> str:
    """All classes that transformers lists as models of images and text and no spec has, by their reason."""
    import transformers

    text = (
        f"Of the {len(vision_language_classes())} types of models that transformers "
        f"{transformers.__version__} lists for images and text, or for more than that, these are refused, "
        "each with the sentence below, written after reading its code, and with what works on it. "
        "`tests/adapters/hf/vlm/test_refusals.py` makes each of them, without weights, and tries. Of a "
        "class that is in no table nobody has read the code: its error says so, and names "
        "[adding-a-model.md](adding-a-model.md)."
    )
    by_folder: dict[str, list[str]] = {}
    for name in dict.fromkeys(vision_language_classes().values()):
        folder = getattr(transformers, name).__module__.split(".")[2]
        by_folder.setdefault(folder, []).append(f"`{name}`")
    lines = ["| models | reason | what works |", "|---|---|---|"]
    for one in REFUSALS:
        names = [name for folder in one.folders for name in by_folder.get(folder, [])]
        works = (
            f"the tower inside, with `restore=True`; {one.instead}" if one.tower else one.instead
        )
        lines += [f"| {', '.join(names)} | {one.why} | {works} |"] if names else []
    return "\n\n".join([f"## {REFUSED}", textwrap.fill(text, 110), "\n".join(lines)])


def with_text(text: str, made: str) -> str:
    """The page with the section of the refusals made anew; before the last section if there is none."""
    before, found, rest = text.partition(f"## {REFUSED}\n")
    if not found:
        before, _, rest = text.partition(f"## {LAST}\n")
        return f"{before}{made.strip()}\n\n## {LAST}\n{rest}"
    _, mark, after = rest.partition("\n## ")
    return f"{before}{made.strip()}\n{mark}{after}"


def with_section(text: str, title: str, made: str, verdicts: Sequence[CompatibilityReport]) -> str:
    """The page with one section made anew, and its counts."""
    before, _, rest = text.partition(f"## {title}\n")
    if not rest:
        raise ValueError(f"the page has no section {title!r}")
    old, mark, after = rest.partition("\n## ")
    counts = {
        verdict: len({v.name for v in verdicts if v.verdict == verdict})
        for verdict in ("works", "refused")
    }
    was = {
        "works": len(re.findall(r"^\| `\S+` \| \w+ \| [\d.e-]+ \|", old, re.MULTILINE)),
        "refused": len(re.findall(r"^\| `\S+` \| \w+ \| \D.+\|$", old, re.MULTILINE)),
    }
    found = re.search(r"\n(\d+) models work, (\d+) are refused", before)
    if found is None:
        raise ValueError("the page does not say how many models work")
    works = int(found[1]) - was["works"] + counts["works"]
    refused = int(found[2]) - was["refused"] + counts["refused"]
    before = before.replace(found[0], f"\n{works} models work, {refused} are refused")
    return f"{before}{made.strip()}\n{mark}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument(
        "--only", choices=["transformers", "refusals"], help="make one section anew"
    )
    options = parser.parse_args()
    out: Path = options.out
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are what is wanted
    if options.only == "refusals":
        out.write_text(with_text(out.read_text(), refusals_section()))
        return
    if options.only:
        verdicts = tried(named(options.only), DEPTH)
        stop_if_broken(verdicts)
        made = transformers_section(verdicts)
        out.write_text(with_section(out.read_text(), options.only, made, verdicts))
        return
    found = {
        "timm": tried(named("timm"), DEPTH),
        "whole": tried(named("whole"), None),
        "elsewhere": tried(named("elsewhere"), None),
        "transformers": tried(named("transformers"), DEPTH),
        "others": tried(named("others"), DEPTH),
    }
    stop_if_broken([v for verdicts in found.values() for v in verdicts])
    out.write_text(page(found))


def stop_if_broken(verdicts: Sequence[CompatibilityReport]) -> None:
    """A model that neither works nor is refused is a bug of ours."""
    broken = [
        f"broken: {v.name} ({v.family}): {v.reason}" for v in verdicts if v.verdict == "broken"
    ]
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
