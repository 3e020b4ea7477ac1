"""The tables of `tokenzoo bench`, how to read them, and all figures as JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from tokenzoo import __version__
from tokenzoo.cli.options import is_control
from tokenzoo.errors import UnknownNameError
from tokenzoo.tools.benchmark import AGAIN, BARE, Row, Table, Workload
from tokenzoo.tools.timing import Timing

WIDTH = 112
PACKAGES = ("timm", "transformers", "flash_attn", "triton")
DIGITS = 4  # after the decimal point, in the file


def title(work: Workload) -> str:
    """Return the title: the model, reduced sizes, device, dtype and batch."""
    setting, sizes = work.setting, work.sizes
    said = [setting.device, setting.dtype, f"batch {sizes.batch}", *sizes.shrunk(), *work.notes]
    if len(work.images) > sizes.batch:  # frames, slices of a video, crops
        said.insert(3, f"{len(work.images)} images and frames")
    return f"{work.name} ({', '.join(said)})"


def show(console: Console, work: Workload, table: Table) -> None:
    """Print one table and how to read it."""
    # A narrower table would lose figures; a line that the terminal wraps does not.
    console.width = max(console.width, WIDTH)
    rows = table.rows
    problems = list(dict.fromkeys(row.problem for row in rows if row.problem))
    columns = _columns(work, table)
    grid = Grid(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    grid.add_column("recipe", no_wrap=True)
    for heading in ("keep", *columns):
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = Text(row.name, "bold" if row.name in (BARE, AGAIN) else "")
        name.append(" (control)" if control(row.name) else "", "yellow")
        cells = [""] if row.keep is None else [str(row.keep)]
        if row.problem:
            cells += [f"[{problems.index(row.problem) + 1}]"]
        else:
            cells += [cell(row) for cell in columns.values()]
        grid.add_row(name, *map(Text, cells))
    console.print(Text(f"{title(work)}, {table.mode}", "bold"), soft_wrap=True)
    console.print(grid)
    for number, problem in enumerate(problems, 1):
        console.print(Text(f"[{number}] {problem}"), soft_wrap=True)
    for line in _reading(work, table):
        console.print(Text(line), soft_wrap=True)
    console.print()


def _columns(work: Workload, table: Table) -> dict[str, Callable[[Row], str]]:
    """Return the headings, each with the function that formats a row's cell."""
    found: dict[str, Callable[[Row], str]] = {"tokens": _tokens}
    if work.multimodal:
        found["prompt"] = _prompt
    found["encoder\n(floor)"] = partial(_time, "encoder")
    found["efficiency"] = _efficiency
    found["selection"] = partial(_time, "selection")
    if work.multimodal:
        found["rest"] = partial(_time, "rest")
        found["prefill\n(floor)"] = partial(_time, "prefill")
        found["first token\n(floor)"] = partial(_time, "first_token")
    if table.rows[0].memory is not None:
        found["memory"] = partial(_memory, table.rows[0])
    return found


def _tokens(row: Row) -> str:
    return ", ".join(map(str, row.tokens)) or "?"


def _prompt(row: Row) -> str:
    return str(row.prompt)


def _time(part: str, row: Row) -> str:
    if part not in row.time:
        return "-"
    floor = f" ({row.floor[part]:.2f})" if part in row.floor else ""
    return f"{row.time[part].ratio:.2f}{floor}"


def _efficiency(row: Row) -> str:
    value = row.efficiency("encoder")
    return "-" if value is None else f"{value:.2f}"


def _memory(bare: Row, row: Row) -> str:
    if row.memory is None or bare.memory is None or not bare.memory.working:
        return "-"
    return f"{row.memory.working / bare.memory.working:.2f}"


def _reading(work: Workload, table: Table) -> list[str]:
    again = table.rows[-1]
    whole = "first_token" if work.multimodal else "encoder"
    lines = [
        f"Times relative to the bare model's in the same round: medians of {table.rounds} interleaved "
        f"rounds; the bare model against itself {again.time[whole]}: smaller differences are noise. In "
        "brackets the floor: the matrix products that the plan leaves; efficiency: floor / time of the "
        "encoder.",
    ]
    if "selection" in again.time:
        lines.append("selection: finding and merging, relative to the bare model's encoder.")
    if work.multimodal:
        lines.append("rest: projector, pooling, prompts, head: all that is no tower and no layer.")
    if again.memory is not None:
        lines.append("memory: what one call allocates on top of weights and inputs, at its peak.")
    return lines


def control(recipe: str) -> bool:
    """Whether a row is a control, a baseline for methods; a row without a recipe is not."""
    try:
        return is_control(recipe)
    except UnknownNameError:
        return False


def write_json(path: Path, work: Workload, tables: Sequence[Table], warmup: int) -> None:
    """Write the figures of every row, and the setup of the measurement."""
    sizes, setting = work.sizes, work.setting
    gpu = work.device.type == "cuda"
    content = {
        "command": shlex.join(["tokenzoo", *sys.argv[1:]]),
        "model": work.name,
        "shrunk": [*sizes.shrunk(), *work.notes],
        "weights": "random",
        "machine": {
            "device": torch.cuda.get_device_name(work.device) if gpu else "cpu",
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "tokenzoo": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
        "dtype": setting.dtype,
        "attention": setting.attention,
        "batch": sizes.batch,
        "images": {str(n): work.images.count(n) for n in dict.fromkeys(work.images)},
        "warmup": warmup,
        "tables": [
            {"mode": table.mode, "rounds": table.rounds, "rows": [*map(_row, table.rows)]}
            for table in tables
        ],
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _row(row: Row) -> dict[str, Any]:
    efficiency = {part: row.efficiency(part) for part in row.floor}
    return {
        "recipe": row.name,
        "keep": row.keep,
        "control": control(row.name),
        "problem": row.problem or None,
        "tokens": list(row.tokens),
        "prompt": row.prompt,
        "floor": _rounded(row.floor),
        "time": {part: _timing(time) for part, time in row.time.items()},
        "efficiency": _rounded(efficiency),
        "share_of_the_bare_call": {part: _timing(time) for part, time in row.share.items()},
        "memory": None
        if row.memory is None
        else {"peak": row.memory.peak, "working": row.memory.working},
    }


def _timing(timing: Timing) -> dict[str, Any]:
    quartiles = [round(timing.low, DIGITS), round(timing.high, DIGITS)]
    return {"median": round(timing.ratio, DIGITS), "quartiles": quartiles}


def _rounded(values: Any) -> dict[str, float]:
    return {name: round(value, DIGITS) for name, value in values.items()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
