"""docs/models.md is what its script would write: the same models, and some of them tried again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import transformers

from benchmarks import make_models_table, models_to_try
from tokenzoo.tools import model_loading
from tokenzoo.tools.compatibility import examine

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
WORKS = re.compile(
    r"^\| `(\S+)` \| (\w+) \| (\S+) \| (\d+ → [\d, ]+) \| ([\d.]+) \|$", re.MULTILINE
)
REFUSED = re.compile(r"^\| `(\S+)` \| (\w+) \| (\D.+) \|$", re.MULTILINE)
TABLES = {
    "timm": "timm",
    "With all their blocks": "whole",
    "torchvision and open_clip": "elsewhere",
    "transformers": "transformers",
}
"""The models of the script, by the title of their section."""
OPTIONS: dict[str, Any] = {
    "recipe": make_models_table.RECIPE,
    "keep": make_models_table.KEEP,
    "batch": make_models_table.BATCH,
    "depth": make_models_table.DEPTH,
}


def part(title: str) -> str:
    """The text of one section of the page."""
    return re.split(r"^## ", PAGE.partition(f"## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(title: str) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The models of a section that work, and those that are refused."""
    works, refused = (
        {name: tuple(rest) for name, *rest in form.findall(part(title))}
        for form in (WORKS, REFUSED)
    )
    return works, {name: rest for name, rest in refused.items() if name not in works}


@pytest.mark.parametrize("title", TABLES)
def test_the_tables_have_the_models_of_the_script(title) -> None:
    works, refused = rows(title)
    names = models_to_try.named(TABLES[title])
    assert sorted([*works, *refused]) == sorted(set(names)) == sorted(names)
    lines = [line for line in part(title).splitlines() if line.startswith("| `")]
    assert len(lines) == len(names)  # no line of a third kind
    for name, (_, identity, _, flops) in works.items():
        assert 0 <= float(identity) <= 1e-5, name
        assert 0 < float(flops) < 1, name


def test_there_are_enough_and_they_are_counted() -> None:
    others = models_to_try.named("others")
    works = {name for title in TABLES for name in rows(title)[0]}
    refused = {name for title in TABLES for name in rows(title)[1]} | set(others)
    assert len(models_to_try.named("timm")) >= 90
    assert f"\n{len(works)} models work, {len(refused)} are refused." in PAGE
    assert re.findall(r"`(\S+)`", part("Other models of timm")) == others
    for name in models_to_try.named("elsewhere"):
        assert name.partition(":")[0] in model_loading.LIBRARIES


def test_every_module_of_timm_is_there() -> None:
    """Of the version that the page was made with: a newer one may have more."""
    models = {name: names.split() for name, names in models_to_try.MODELS.items()}
    pairs = [pair.split(":") for pair in models_to_try.OTHERS.split()]
    others = {module: [name] for module, name in pairs}
    assert len(others) == len(pairs)
    assert not models.keys() & others.keys()
    if f"timm {timm.__version__}," in PAGE:
        assert sorted(models | others) == timm.list_modules()
        for module, names in (models | others).items():
            assert set(names) <= set(timm.list_models(module=module)), module
        assert set(models_to_try.named("whole")) <= set(timm.list_models())


@pytest.mark.parametrize(
    "name",
    [  # that the oldest timm has, too
        *("test_vit", "test_vit3", "vit_wee_patch16_reg1_gap_256", "deit_tiny_patch16_224"),
        *("vit_tiny_r_s16_p8_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"),
        *("vit_small_patch16_rope_mixed_224", "vit_relpos_small_patch16_224"),
        "vit_srelpos_small_patch16_224",
    ],
)
def test_a_model_that_works_does(name) -> None:
    verdict = examine(name, **OPTIONS)
    family, _, tokens, flops = rows("timm")[0][name]
    assert (verdict.verdict, verdict.family) == ("works", family)
    line = make_models_table.works_table([verdict]).splitlines()[-1]
    assert line.startswith(f"| `{name}` | {family} | ")
    assert tokens in line
    assert f"{verdict.flops:.2f}" == flops


def test_the_refusals_are_those_of_the_table() -> None:
    version = re.search(r"that transformers\s+(\S+)\s+lists", part(make_models_table.REFUSED))
    assert version is not None
    if transformers.__version__ != version[1]:
        pytest.skip(f"the page is of transformers {version[1]}")
    assert make_models_table.with_text(PAGE, make_models_table.refusals_section()) == PAGE


def test_a_tower_of_transformers_is_reduced_as_the_table_says() -> None:
    """Of less than its own width: the tokens are the same, and the rest would take minutes."""
    name = "transformers:qwen2_5_vl_vision"
    narrow = {"hidden_size": 48, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 32}
    verdict = examine(name, **OPTIONS, **narrow)
    family, _, tokens, _ = rows("transformers")[0][name]
    assert (verdict.verdict, verdict.family) == ("works", family)
    assert f" {tokens} " in make_models_table.works_table([verdict])


@pytest.mark.parametrize(
    ("title", "name"),
    [
        *(("timm", f"{name}_224") for name in ("vit_base_patch16_xp", "cait_xxs24", "pit_ti")),
        *(("timm", f"{name}_224") for name in ("swin_tiny_patch4_window7", "xcit_nano_12_p16")),
        *(("timm", name) for name in ("naflexvit_base_patch16_gap", "crossvit_tiny_240")),
        *(("transformers", f"transformers:{name}") for name in ("swin", "paddleocr_vl")),
    ],
)
def test_a_model_that_is_refused_is(title, name) -> None:
    verdict = examine(name)
    family, reason = rows(title)[1][name]
    assert (verdict.verdict, verdict.family) == ("refused", family)
    first, _, ending = verdict.reason.partition(". ")
    assert first == reason
    assert f"- {ending}" in part(title)
