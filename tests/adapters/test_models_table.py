"""docs/models.md is what its script would write: the same models, and some of them tried again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm

from benchmarks import make_models_table, models_to_try
from tests.adapters.models import one_thread as one_thread
from tokenzoo.tools import model_loading
from tokenzoo.tools.compatibility import examine

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
WORKS = re.compile(
    r"^\| `(\S+)` \| (\w+) \| (\S+) \| (\d+ → [\d, ]+) \| ([\d.]+) \|$", re.MULTILINE
)
REFUSED = re.compile(r"^\| `(\S+)` \| (\w+) \| (\D.+) \|$", re.MULTILINE)


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


@pytest.mark.parametrize(
    ("title", "label"),
    [
        ("timm", "timm"),
        ("With all their blocks", "whole"),
        ("torchvision and open_clip", "elsewhere"),
        ("transformers", "transformers"),
    ],
)
def test_the_tables_have_the_models_of_the_script(title, label) -> None:
    works, refused = rows(title)
    names = models_to_try.named(label)
    assert len(names) == len(set(names))
    assert sorted([*works, *refused]) == sorted(names)
    lines = [line for line in part(title).splitlines() if line.startswith("| `")]
    assert len(lines) == len(names)  # no line of a third kind
    for name, (_, identity, _, flops) in works.items():
        assert 0 <= float(identity) <= 1e-5, name
        assert 0 < float(flops) < 1, name


def test_there_are_enough_and_they_are_counted() -> None:
    titles = ("timm", "torchvision and open_clip", "With all their blocks", "transformers")
    tables = [rows(title) for title in titles]
    works = {name for table, _ in tables for name in table}
    refused = {name for _, table in tables for name in table} | set(models_to_try.named("others"))
    assert len(models_to_try.named("timm")) >= 90
    assert f"\n{len(works)} models work, {len(refused)} are refused." in PAGE


def test_the_other_models_are_listed() -> None:
    assert re.findall(r"`(\S+)`", part("Other models of timm")) == models_to_try.named("others")


def test_every_module_of_timm_is_there() -> None:
    """Of the version that the page was made with: a newer one may have more."""
    listed = [
        *models_to_try.MODELS,
        *(pair.partition(":")[0] for pair in models_to_try.OTHERS.split()),
    ]
    assert len(listed) == len(set(listed))
    if f"timm {timm.__version__}," in PAGE:
        assert sorted(listed) == timm.list_modules()
        pairs = [
            (module, name)
            for module, names in models_to_try.MODELS.items()
            for name in names.split()
        ]
        pairs += [tuple(pair.split(":")) for pair in models_to_try.OTHERS.split()]
        for module, name in pairs:
            assert name in timm.list_models(module=module), (module, name)


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
    options = {
        "recipe": make_models_table.RECIPE,
        "keep": make_models_table.KEEP,
        "batch": make_models_table.BATCH,
    }
    verdict = examine(name, depth=make_models_table.DEPTH, **options)
    assert make_models_table.works_table([verdict]).splitlines()[-1].split(" | ")[:2] == [
        f"| `{name}`",
        rows("timm")[0][name][0],
    ]
    family, _, tokens, flops = rows("timm")[0][name]
    assert (verdict.verdict, verdict.family) == ("works", family)
    assert tokens in make_models_table.works_table([verdict])
    assert f"{verdict.flops:.2f}" == flops


def test_a_tower_of_transformers_is_reduced_as_the_table_says() -> None:
    """Of less than its own width: the tokens are the same, and the rest would take minutes."""
    name = "transformers:qwen2_5_vl_vision"
    narrow = {"hidden_size": 48, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 32}
    options = {
        "recipe": make_models_table.RECIPE,
        "keep": make_models_table.KEEP,
        "batch": make_models_table.BATCH,
    }
    verdict = examine(name, depth=make_models_table.DEPTH, **options, **narrow)
    family, _, tokens, _ = rows("transformers")[0][name]
    assert (verdict.verdict, verdict.family) == ("works", family)
    assert f" {tokens} " in make_models_table.works_table([verdict])


@pytest.mark.parametrize(
    ("title", "name"),
    [
        *(("timm", f"{name}_224") for name in ("vit_base_patch16_xp", "cait_xxs24", "pit_ti")),
        *(("timm", f"{name}_224") for name in ("swin_tiny_patch4_window7", "xcit_nano_12_p16")),
        *(("timm", name) for name in ("naflexvit_base_patch16_gap", "crossvit_tiny_240")),
        *(("transformers", f"transformers:{name}") for name in ("qwen3_vl", "glm4v")),
    ],
)
def test_a_model_that_is_refused_is(title, name) -> None:
    verdict = examine(name)
    family, reason = rows(title)[1][name]
    assert (verdict.verdict, verdict.family) == ("refused", family)
    first, _, ending = verdict.reason.partition(". ")
    assert first == reason
    assert f"- {ending}" in part(title)


def test_the_names_are_names() -> None:
    for name in models_to_try.named("elsewhere"):
        assert name.partition(":")[0] in model_loading.LIBRARIES
    if f"timm {timm.__version__}," in PAGE:
        names = [
            *models_to_try.named("timm"),
            *models_to_try.named("whole"),
            *models_to_try.named("others"),
        ]
        assert set(names) <= set(timm.list_models())
