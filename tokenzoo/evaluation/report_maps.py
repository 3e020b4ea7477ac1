"""The maps of a task as a section of the report: by budget, and in each a figure for each recipe."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tokenzoo.evaluation.maps import Maps, Picture
from tokenzoo.evaluation.report_tables import budget_text, task_id
from tokenzoo.evaluation.summary import Line, Summary

CAPTION = (
    "One colour of outline is one token, filled with the mean colour of its patches, which need not touch. "
    "Dark and hatched: dropped. Of a recipe that makes the image smaller, the image that the model read."
)


def maps_section(one: Summary, maps: Maps) -> str:
    """Return the section; it needs no script, and the page's filters hide figures in it."""
    groups: dict[str, list[tuple[Line, Sequence[Picture]]]] = {}
    for line, pictures in maps.lines:
        groups.setdefault(budget_text(line.key.keep), []).append((line, pictures))
    samples = "Sample" + "s" * (len(maps.samples) > 1) + " " + ", ".join(map(str, maps.samples))
    return "\n".join(
        [
            f'<section data-task="{escape(task_id(one))}">',
            f"<h2>What was merged: {escape(task_id(one))}</h2>",
            f'<p class="note">{CAPTION} {samples} of {one.samples}; the first is 0. Of a recipe with '
            "several seeds, the first seed.</p>",
            '<div class="maps">' + _figure(maps.originals, "the images") + "</div>",
            *(
                _budget(budget, lines, one, opened=not place)
                for place, (budget, lines) in enumerate(groups.items())
            ),
            *_refused(maps),
            "</section>",
        ]
    )


def _budget(
    budget: str, lines: Sequence[tuple[Line, Sequence[Picture]]], one: Summary, *, opened: bool
) -> str:
    figures: list[str] = []
    for line, pictures in lines:
        data = (
            f'data-name="{escape(line.name)}" data-task="{escape(task_id(one))}" '
            f'data-budget="{budget}" data-control="{line.control:d}"'
        )
        figures.append(_figure(pictures, line.name + "*" * line.control, f" {data}"))
    return (
        f"<details{' open' * opened}><summary>keep {budget}: {len(lines)} recipes</summary>\n"
        f'<div class="maps">\n' + "\n".join(figures) + "\n</div></details>"
    )


def _figure(pictures: Sequence[Picture], caption: str, data: str = "") -> str:
    shown = "".join(f'<img src="{one.url}" alt="{escape(one.text)}">' for one in pictures)
    return f"<figure{data}>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def _refused(maps: Maps) -> list[str]:
    if not maps.refused:
        return []
    lines = [f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in maps.refused.items()]
    return ["<p>Without a map:</p>\n<ul>" + "".join(lines) + "</ul>"]
