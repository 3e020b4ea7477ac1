"""Every method against the numbers that its authors' own code returned.

The folder TOKENZOO_GOLDEN (default: tests/golden) decides what is compared: every case of every file in
it. A file without a mapping fails, and nothing is skipped. What is compared, and how, stands in the
docstrings of the mappings; mind that of `tome_model`.
"""

from __future__ import annotations

import json
import os
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden_mappings import MAPPINGS, case_names, check, read_case, read_meta, tome_pass

OURS = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("TOKENZOO_GOLDEN", OURS))
FILES = sorted(OURS.glob("*.npz"))
MODELS = OURS / "tome_model.npz"


def cases_in(folder: Path) -> list[Any]:
    """A file without a mapping, or without a case, is one case that fails."""
    found: list[Any] = []
    for path in sorted(folder.glob("*.npz")):
        names = case_names(path) if path.stem in MAPPINGS else []
        found += [pytest.param(path, name, id=f"{path.stem}-{name}") for name in names or [None]]
    return found


@pytest.mark.parametrize(("path", "case"), cases_in(FOLDER))
def test_equals_the_authors_code(path: Path, case: str | None) -> None:
    check(path, case)


def test_the_folder_has_files() -> None:
    """An empty folder would be a run that compares nothing."""
    assert cases_in(FOLDER), f"TOKENZOO_GOLDEN: no *.npz in {FOLDER}"


# The tests above can fail ----------------------------------------------------------------------------


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def rewrite(source: Path, folder: Path, change: dict[str, Any], **entry: Any) -> Path:
    """Copy a golden file with some arrays changed, and `entry` in the meta of every case."""
    meta = read_meta(source)
    for each in meta["cases"]:
        each |= entry
    target = folder / source.name
    np.savez(target, **arrays(source) | {"meta_json": np.array(json.dumps(meta))} | change)
    return target


def altered(values: np.ndarray) -> np.ndarray:
    """One number in the middle is another one: the next integer, or a float 1e-3 away."""
    values = values.copy()
    values.flat[values.size // 2] += 1 if values.dtype.kind in "iu" else 1e-3
    return values


def first_outputs(path: Path) -> list[tuple[Path, str, str]]:
    name = case_names(path)[0]
    return [(path, name, key) for key in arrays(path) if name in key.split("/")]


@pytest.mark.parametrize(
    ("source", "case", "key"),
    [each for path in FILES for each in first_outputs(path)],
    ids=lambda value: getattr(value, "stem", None),
)
def test_an_altered_number_fails(source: Path, case: str, key: str, tmp_path: Path) -> None:
    path = rewrite(source, tmp_path, {key: altered(arrays(source)[key])})
    with pytest.raises(AssertionError, match=re.escape(f"{source.stem} {case}")):
        check(path, case)


@pytest.mark.parametrize("output", ["base_logits", "logits", "counts", "size", "source"])
def test_an_altered_number_fails_without_images(output: str, tmp_path: Path) -> None:
    """A file that cannot rebuild its images still determines something about each of its outputs."""
    case = case_names(MODELS)[-1]
    meta = {key: value for key, value in read_meta(MODELS).items() if "images" not in key}
    path = rewrite(MODELS, tmp_path, {"meta_json": np.array(json.dumps(meta))})
    check(path, case)
    key = f"{case}/{output}"
    rewrite(path, tmp_path, {key: altered(arrays(path)[key])})
    with pytest.raises(AssertionError, match=case):
        check(path, case)


def test_a_third_image_of_a_model(tmp_path: Path) -> None:
    """The models make as many images as the file has outputs for."""
    case = case_names(MODELS)[-1]
    two = read_case(MODELS, case).outputs
    three = {
        f"{case}/{name}": (value if name == "counts" else torch.cat([value, value[-1:]])).numpy()
        for name, value in two.items()
    }
    with pytest.raises(AssertionError, match="logits differs"):  # the third is not the second
        check(rewrite(MODELS, tmp_path, three), case)
    ours = tome_pass("deit_tiny_distilled_patch16_224", 0, (20, 0, 30, 0, 10), False, 0, 3)
    for name in ("logits", "size", "source"):
        read_case(MODELS, case).equal(name, ours[name][:2], two[name])


def test_an_output_that_nobody_compares_fails(tmp_path: Path) -> None:
    source = OURS / "divprune.npz"
    case = case_names(source)[0]
    path = rewrite(source, tmp_path, {f"out/{case}/extra": np.zeros(3)})
    with pytest.raises(AssertionError, match="extra"):
        check(path, case)


KEPT = {"tome": "source", "visionzip": "dominant", "fastv": "keep", "dart": "keep"}
KEPT |= dict.fromkeys(("divprune", "cdpruner", "fastervlm"), "indices")
OF_CLIPS = {"holitom": "tokens", "fastvid": "hidden", "prunevid": "merged"}


@pytest.mark.parametrize("method", OF_CLIPS)
def test_an_unstable_case_of_clips_is_compared_by_shape_and_score(
    method: str, tmp_path: Path
) -> None:
    source = OURS / f"{method}.npz"
    case = case_names(source)[0]
    key = f"out/{case}/{OF_CLIPS[method]}"
    values = arrays(source)[key]
    turned = {key: values[..., ::-1]}
    check(rewrite(source, tmp_path, turned, f64_index_equal=False), case)
    with pytest.raises(AssertionError, match="differs"):
        check(rewrite(source, tmp_path, turned), case)
    fewer = {key: values[..., :-1, :]}
    with pytest.raises(AssertionError, match="not"):
        check(rewrite(source, tmp_path, fewer, f64_index_equal=False), case)


@pytest.mark.parametrize(
    ("method", "flag"), [*zip(KEPT, ["stable_1e-6", "f64_index_equal"] * 4, strict=False)]
)
def test_an_unstable_case_is_compared_by_count_and_score(
    method: str, flag: str, tmp_path: Path
) -> None:
    """Another order of equally good tokens passes; fewer of them, or worse ones, do not."""
    source, kept = OURS / f"{method}.npz", KEPT[method]
    case = case_names(source)[1]
    outputs = {name: value.numpy() for name, value in read_case(source, case).outputs.items()}
    other = next(name for name in outputs if name != kept or len(outputs) == 1)

    def verdict(name: str, values: np.ndarray, **entry: Any) -> None:
        check(rewrite(source, tmp_path, {f"out/{case}/{name}": values}, **entry), case)

    # Numbers other than the kept set, or its order, may differ; but only where the file says so.
    verdict(other, outputs[other][..., ::-1], **{flag: False})
    with pytest.raises(AssertionError, match="differs"):
        verdict(other, outputs[other][..., ::-1])
    with pytest.raises(AssertionError, match="not"):
        verdict(kept, outputs[kept][..., :-1], **{flag: False})
    # The first so many tokens are a worse choice, and everything into one token a worse merge.
    worse = np.broadcast_to(np.arange(outputs[kept].shape[-1]), outputs[kept].shape)
    with pytest.raises(AssertionError, match="scores"):
        verdict(kept, 0 * worse if method == "tome" else worse, **{flag: False})


def test_a_run_over_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is collected: a file without a mapping and an altered number fail."""
    source = OURS / "divprune.npz"
    first, *others = case_names(source)
    rewrite(source, tmp_path, {}).rename(tmp_path / "unheard_of.npz")
    rewrite(source, tmp_path, {f"out/{first}/order": altered(arrays(source)[f"out/{first}/order"])})
    monkeypatch.setenv("TOKENZOO_GOLDEN", str(tmp_path))
    test = runpy.run_path(__file__)["test_equals_the_authors_code"]
    (mark,) = test.pytestmark
    failed: dict[str, str] = {}
    for case in mark.args[1]:
        try:
            test(*case.values)
        except AssertionError as error:
            failed[case.id] = str(error)
    cases = [case.id for case in mark.args[1]]
    assert cases == [*(f"divprune-{name}" for name in (first, *others)), "unheard_of-None"]
    assert [*failed] == [cases[0], "unheard_of-None"]
    assert "unheard_of.npz has no mapping" in failed["unheard_of-None"]


def test_the_folder_is_small_and_says_where_it_comes_from() -> None:
    assert sum(path.stat().st_size for path in FILES) < 12.5e6
    readme = (OURS / "README.md").read_text()
    for path in FILES:
        repository, commit = read_meta(path)["source"].split()[0].split("@")
        assert f"| `{path.name}` | {repository}@{commit[:7]} " in readme
        assert case_names(path)
    assert {path.stem for path in FILES} <= set(MAPPINGS)
