"""`tokenzoo doctor`: what is installed; with a model's name, whether a recipe works on it."""

from __future__ import annotations

import importlib
import json
import logging
import platform
import warnings
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.text import Text

from tokenzoo import plugins
from tokenzoo.cli.options import parse_keep
from tokenzoo.tools.compatibility import CompatibilityReport, examine

PACKAGES = ("tokenzoo", "torch", "timm", "torchvision", "open_clip_torch", "transformers")
NO = 1  # exit code for a model that does not work

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("doctor")
def run(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model of timm; torchvision:NAME, open_clip:NAME, transformers:TYPE; or the folder of a "
            "transformers checkpoint, of which only config.json is read."
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="The recipe to try.")] = "evoprune",
    keep: Annotated[str, typer.Option(help="Tokens to keep: 64, 0.25 or 25%.")] = "0.25",
    depth: Annotated[
        int | None, typer.Option(min=1, help="Number of blocks of the model. [default: its own]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what is installed; with MODEL, whether a recipe works on it, and if not, why.

    The model is made with random weights, and the recipe is attached and run; nothing is downloaded. Exit
    code 0: it works; 1: it is refused, or broken, which would be a bug of ours.
    """
    console = Console(highlight=False)
    if model is None:
        here = surroundings()
        if as_json:
            console.print_json(json.dumps(here))
        else:
            _show(console, here)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # libraries warn of random weights, which are intended
        try:
            verdict = examine(model, recipe=recipe, keep=parse_keep(keep).value, depth=depth)
        finally:
            logging.disable(logging.NOTSET)
    if as_json:
        console.print_json(json.dumps({**asdict(verdict), "recipe": recipe, "keep": keep}))
    else:
        _say(console, verdict, f"{recipe}, keep {keep}")
    if verdict.verdict != "works":
        raise typer.Exit(NO)


def _say(console: Console, v: CompatibilityReport, what: str) -> None:
    """Print a report, one fact a line."""
    colour = "green" if v.verdict == "works" else "red"
    console.print(Text.assemble((v.verdict, f"bold {colour}"), f"  {v.name} ({v.family}), {what}"))
    if v.reason:
        console.print(Text(v.reason), soft_wrap=True)
    if v.identity is None:
        return
    same = "as planned" if v.counts == v.planned else f"{_list(v.planned)} were planned"
    rows = {
        "identity error": f"{v.identity:.1e} of the largest output, with all tokens kept",
        "tokens": f"{v.tokens} -> {_list(v.counts)} ({same})"
        if v.counts
        else f"{v.tokens} all through the vision tower, in which this recipe does not reduce",
        "FLOPs": "" if v.flops is None else f"{v.flops:.3f} of the blocks', as planned",
    }
    for name, value in rows.items():
        console.print(Text(f"{name:<15}{value}"), soft_wrap=True)


def _list(counts: tuple[int, ...]) -> str:
    return ", ".join(map(str, counts))


def surroundings() -> dict[str, Any]:
    """Return installed versions, device, fused attention, and plugins."""
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "device": _device(),
        "fused attention": _fused(),
        "plugins": [_plugin(name) for name, _ in plugins.manager().list_name_plugin()],
    }


def _show(console: Console, here: dict[str, Any]) -> None:
    """Print the surroundings, one fact a line."""
    rows = {name: found or "not installed" for name, found in here["versions"].items()}
    rows |= {"device": here["device"]}
    rows |= {
        f"fused, {name}": "on" if on else "off" for name, on in here["fused attention"].items()
    }
    for name, value in rows.items():
        console.print(Text(f"{name:<24}{value}"), soft_wrap=True)
    for plugin in here["plugins"]:
        console.print(Text(f"\nplugin {plugin['name']} of {plugin['distribution']}", style="bold"))
        for kind, names in plugin["parts"].items():
            console.print(Text(f"  {kind}: {', '.join(names)}"), soft_wrap=True)
        if plugin["adapter"]:
            console.print(Text(f"  adapter: {plugin['adapter']}"), soft_wrap=True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device() -> str:
    """Return the accelerators in words, or the CPU."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"CUDA {torch.version.cuda}: {', '.join(names)}"
    if torch.backends.mps.is_available():
        return "MPS"
    return f"CPU, {torch.get_num_threads()} threads"


def _fused() -> dict[str, bool]:
    """Return which fused attentions are enabled; without any, there is no evidence about attention."""
    found = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
    }
    if _version("timm"):
        found["timm"] = bool(importlib.import_module("timm.layers").use_fused_attn())
    return found


def _plugin(name: str) -> dict[str, Any]:
    """Return a plugin's parts, and the first line of its adapter's docstring."""
    hooks = plugins.manager().hook
    parts: dict[str, list[str]] = {}
    for kind in plugins.KINDS:
        for implementation in getattr(hooks, f"tokenzoo_{kind}").get_hookimpls():
            if implementation.plugin_name == name:
                parts[kind] = sorted(implementation.function())
    adapter = ""
    for implementation in hooks.tokenzoo_adapter.get_hookimpls():
        if implementation.plugin_name == name:
            adapter = (implementation.function.__doc__ or "(no docstring)").splitlines()[0]
    return {
        "name": name,
        "distribution": plugins.distribution_of(name),
        "parts": parts,
        "adapter": adapter,
    }
