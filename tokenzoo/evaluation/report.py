"""Results as one HTML page that needs nothing else: plots, tables, pictures, and the commands.

The tables are plain HTML. Plots are drawn in the browser by plotly.js, which is in the page: plotly,
because its Python package carries the whole script in one file. A content security policy in the page
forbids every request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from tokenzoo._core.needs import need
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.maps import Maps
from tokenzoo.evaluation.report_hard import hard_table
from tokenzoo.evaluation.report_maps import maps_section
from tokenzoo.evaluation.report_tables import (
    COLUMNS,
    budget_text,
    kinds_table,
    line_row,
    spoken,
    task_id,
)
from tokenzoo.evaluation.summary import Line, Summary, budget_order


def page(
    found: Sequence[Summary],
    pictures: Mapping[str, str] | None = None,
    maps: Mapping[str, Maps] | None = None,
) -> str:
    """Return the page.

    Args:
        found: the tasks.
        pictures: images as `data:` URLs, by what they show.
        maps: of what was merged, by `task_id`.

    Raises:
        BadArgumentError: there is nothing to show.
        MissingDependencyError: plotly is not installed.
    """
    if not found:
        raise BadArgumentError("there are no rows to report; run `tokenzoo eval` first")
    library = need("plotly.offline", "eval").get_plotlyjs()
    keeps = {repr(one.key.keep): one.key.keep for task in found for one in task.lines}
    budgets = [budget_text(keep) for keep in sorted(keeps.values(), key=budget_order)]
    heads = [
        f'<th scope="col" data-kind="{kind}"{" class=text" if kind == "text" else ""}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name, kind in COLUMNS
    ]
    return Template(_part("page.html")).substitute(
        style=_part("page.css"),
        script=_part("page.js"),
        library=library,
        about=_about(found),
        tasks="".join(_option(task_id(one), f"{one.task} on {one.model}") for one in found),
        budgets="".join(_option(text, text) for text in budgets),
        plots="\n".join(_plot(place, one) for place, one in enumerate(found)),
        head="".join(heads),
        rows="\n".join(
            line_row(line, one)
            for one in found
            for line in (*([one.bare] if one.bare else []), *one.lines)
        ),
        kinds="\n".join(kinds_table(one) for one in found if len(one.metrics) > 1),
        hard="\n".join(hard_table(one) for one in found),
        maps="\n".join(
            maps_section(one, drawn)
            for one in found
            if (drawn := (maps or {}).get(task_id(one))) is not None
        ),
        pictures=_pictures(pictures or {}),
        refused=_refused(found),
        commands="\n".join(_commands(one) for one in found),
        data=_json([_plot_data(place, one) for place, one in enumerate(found)]),
    )


def _part(name: str) -> str:
    return (files("tokenzoo.evaluation") / "report_page" / name).read_text(encoding="utf-8")


def _option(value: str, text: str) -> str:
    return f'<option value="{escape(value)}">{escape(text)}</option>'


def _json(content: Any) -> str:
    """Return JSON that cannot end the script element that it is in."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def _about(found: Sequence[Summary]) -> str:
    lines = sum(len(one.lines) for one in found)
    libraries: dict[str, dict[str, None]] = {}
    for one in found:
        for library, versions in one.versions.items():
            libraries.setdefault(library, {}).update(dict.fromkeys(versions))
    named = ", ".join(f"{name} {' and '.join(versions)}" for name, versions in libraries.items())
    tasks = "1 task" if len(found) == 1 else f"{len(found)} tasks"
    return escape(f"{tasks}, {lines} recipes and budgets" + (f"; {named}" if named else ""))


def _plot(place: int, one: Summary) -> str:
    if not one.metrics:
        return ""
    title = f"{one.task} on {one.model}"
    text = (
        f"{one.metrics[0]} of each recipe against its time or operations; the table has the numbers"
    )
    return (
        f'<section data-task="{escape(task_id(one))}">\n<h2>{escape(title)}</h2>\n'
        f'<p class="note">{escape(spoken(one))}</p>\n'
        f'<div class="plot" id="plot-{place}" role="img" aria-label="{escape(text)}"></div>\n</section>'
    )


def _plot_data(place: int, one: Summary) -> dict[str, Any]:
    metric = one.metrics[0] if one.metrics else ""
    return {
        "id": f"plot-{place}",
        "task": task_id(one),
        "metric": metric,
        "bare": None if one.bare is None else _point(one.bare, one, metric),
        "lines": [_point(line, one, metric) for line in one.lines],
    }


def _point(line: Line, one: Summary, metric: str) -> dict[str, Any]:
    score = line.estimates[metric]
    text = [f"<b>{escape(line.name)}</b> {budget_text(line.key.keep)}", f"{escape(metric)} {score}"]
    if line.time:
        text.append("time {:.2f} ({:.2f}-{:.2f})".format(*line.time))
    if line.flops is not None:
        text.append(f"operations {line.flops:.2f}")
    return {
        "task": task_id(one),
        "name": line.name,
        "budget": budget_text(line.key.keep),
        "control": line.control,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "time": list(line.time),
        "flops": [] if line.flops is None else [line.flops] * 3,
        "text": "<br>".join(text),
    }


def _pictures(pictures: Mapping[str, str]) -> str:
    if not pictures:
        return ""
    shown = [
        f'<figure><img src="{escape(url)}" alt="{escape(name)}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, url in pictures.items()
    ]
    return "<section>\n<h2>Pictures</h2>\n" + "\n".join(shown) + "\n</section>"


def _refused(found: Sequence[Summary]) -> str:
    parts = [
        f'<section data-task="{escape(task_id(one))}">\n<h2>Do not run: {escape(one.task)} on '
        f"{escape(one.model)}</h2>\n<ul>"
        + "".join(
            f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in one.refused.items()
        )
        + "</ul>\n</section>"
        for one in found
        if one.refused
    ]
    return "\n".join(parts)


def _commands(one: Summary) -> str:
    said = "\n".join(one.commands) or "the rows have no command"
    return f"<h3>{escape(one.task)} on {escape(one.model)}</h3>\n<pre>{escape(said)}</pre>"
