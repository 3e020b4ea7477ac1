"""Every method against the numbers that its authors' own code returned.

The folder TOKENZOO_GOLDEN (default: tests/golden) decides what is compared: every case of every file in
it. A file without a mapping fails, and nothing is skipped. What is compared, and how, stands in the
docstrings of the mappings; mind that of `tome_model`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden_mappings import MAPPINGS, case_names, check, read_case, read_meta, tome_pass

OURS = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("TOKENZOO_GOLDEN", OURS))


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


def rewrite(source: Path, target: Path, change: dict[str, Any], **entry: Any) -> Path:
    """Copy a golden file with some arrays changed, and `entry` in the meta of every case."""
    with np.load(source, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays["meta_json"]))
    for each in meta["cases"]:
        each |= entry
    arrays |= change | {"meta_json": np.array(json.dumps(meta))}
    np.savez(target, **arrays)
    return target


def altered(values: np.ndarray) -> np.ndarray:
    """One number in the middle is another one: the next integer, or a float 1e-3 away."""
    values = values.copy()
    middle = values.size // 2
    values.flat[middle] += 1 if values.dtype.kind in "iu" else 1e-3
    return values


def first_outputs(method: str) -> list[tuple[str, str, str]]:
    path = OURS / f"{method}.npz"
    name = case_names(path)[0]
    with np.load(path, allow_pickle=False) as file:
        keys = [key for key in file.files if name in key.split("/")]
    return [(method, name, key) for key in keys]


@pytest.mark.parametrize(
    ("method", "case", "key"),
    [each for path in sorted(OURS.glob("*.npz")) for each in first_outputs(path.stem)],
)
def test_an_altered_number_fails(method: str, case: str, key: str, tmp_path: Path) -> None:
    source = OURS / f"{method}.npz"
    check(source, case)
    with np.load(source, allow_pickle=False) as file:
        change = {key: altered(file[key])}
    with pytest.raises(AssertionError, match=re.escape(f"{method} {case}")):
        check(rewrite(source, tmp_path / source.name, change), case)


@pytest.mark.parametrize("output", ["base_logits", "logits", "counts", "size", "source"])
def test_an_altered_number_fails_without_images(output: str, tmp_path: Path) -> None:
    """A file that cannot rebuild its images still determines something about each of its outputs."""
    source = OURS / "tome_model.npz"
    case = case_names(source)[-1]
    meta = read_meta(source)
    del meta["images"], meta["images_seed"]
    with np.load(source, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files} | {"meta_json": np.array(json.dumps(meta))}
    path = tmp_path / source.name
    np.savez(path, **arrays)
    check(path, case)
    key = f"{case}/{output}"
    with pytest.raises(AssertionError, match=case):
        check(rewrite(path, path, {key: altered(arrays[key])}), case)


def test_a_third_image_of_a_model(tmp_path: Path) -> None:
    """The models make as many images as the file has outputs for."""
    source = OURS / "tome_model.npz"
    case = case_names(source)[-1]
    two = read_case(source, case).outputs
    three = {
        f"{case}/{name}": value.numpy() if name == "counts" else np.concatenate([value, value[-1:]])
        for name, value in two.items()
    }
    with pytest.raises(AssertionError, match="logits differs"):  # the third is not the second
        check(rewrite(source, tmp_path / source.name, three), case)
    ours = tome_pass("deit_tiny_distilled_patch16_224", 0, (20, 0, 30, 0, 10), False, 0, 3)
    for name in ("logits", "size", "source"):
        read_case(source, case).equal(name, ours[name][:2], two[name])


def test_an_output_that_nobody_compares_fails(tmp_path: Path) -> None:
    source = OURS / "divprune.npz"
    case = case_names(source)[0]
    path = rewrite(source, tmp_path / source.name, {f"out/{case}/extra": np.zeros(3)})
    with pytest.raises(AssertionError, match="extra"):
        check(path, case)


@pytest.mark.parametrize("flag", ["stable_1e-6", "f64_index_equal"])
@pytest.mark.parametrize(
    "method", ["tome", "visionzip", "divprune", "cdpruner", "fastervlm", "fastv", "dart"]
)
def test_an_unstable_case_is_compared_by_count_and_score(
    method: str, flag: str, tmp_path: Path
) -> None:
    """Another order of equally good tokens passes; fewer of them, or worse ones, do not."""
    source = OURS / f"{method}.npz"
    case = case_names(source)[1]
    outputs = {name: value.numpy() for name, value in read_case(source, case).outputs.items()}
    kept = {"tome": "source", "visionzip": "dominant", "fastv": "keep", "dart": "keep"}
    kept = kept.get(method, "indices")
    other = next(name for name in outputs if name != kept or len(outputs) == 1)

    def verdict(change: dict[str, Any], **entry: Any) -> None:
        change = {f"out/{case}/{name}": value for name, value in change.items()}
        check(rewrite(source, tmp_path / source.name, change, **entry), case)

    unstable = {flag: False}
    verdict({}, **unstable)
    # Numbers other than the kept set, or its order, may differ; but only where the file says so.
    turned = {other: outputs[other][..., ::-1]}
    verdict(turned, **unstable)
    with pytest.raises(AssertionError, match="differs"):
        verdict(turned)
    with pytest.raises(AssertionError, match="not"):
        verdict({kept: outputs[kept][..., :-1]}, **unstable)
    # The first so many tokens are a worse choice, and everything into one token a worse merge.
    worse = np.broadcast_to(np.arange(outputs[kept].shape[-1]), outputs[kept].shape)
    with pytest.raises(AssertionError, match="scores"):
        verdict({kept: 0 * worse if method == "tome" else worse}, **unstable)


def test_only_what_is_there_is_collected(tmp_path: Path) -> None:
    rewrite(OURS / "divprune.npz", tmp_path / "divprune.npz", {})
    rewrite(OURS / "divprune.npz", tmp_path / "unheard_of.npz", {})
    names = [each.id for each in cases_in(tmp_path)]
    assert names == [f"divprune-{name}" for name in case_names(OURS / "divprune.npz")] + [
        "unheard_of-None"
    ]


def test_a_run_over_another_folder(tmp_path: Path) -> None:
    """In pytest itself: a file without a mapping and an altered number fail, and nothing is skipped."""
    source = OURS / "divprune.npz"
    first, *others = case_names(source)
    rewrite(source, tmp_path / "unheard_of.npz", {})
    with np.load(source, allow_pickle=False) as file:
        change = {f"out/{first}/order": altered(file[f"out/{first}/order"])}
    rewrite(source, tmp_path / "divprune.npz", change)
    command = [*(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-k", "authors")]
    run = subprocess.run(
        [*command, str(Path(__file__))],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TOKENZOO_GOLDEN": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    failed = re.findall(r"^FAILED \S+\[(\S+)\]", run.stdout, re.M)
    passed = re.findall(r"^PASSED \S+\[(\S+)\]", run.stdout, re.M)
    assert sorted(failed) == [f"divprune-{first}", "unheard_of-None"]
    assert sorted(passed) == [f"divprune-{name}" for name in others]
    assert "unheard_of.npz has no mapping" in run.stdout
    assert "skipped" not in run.stdout


def test_the_folder_is_small_and_says_where_it_comes_from() -> None:
    files = sorted(OURS.glob("*.npz"))
    assert sum(path.stat().st_size for path in files) < 7.5e6
    readme = (OURS / "README.md").read_text()
    for path in files:
        repository, commit = read_meta(path)["source"].split()[0].split("@")
        assert f"| `{path.name}` | {repository}@{commit[:7]} " in readme
        assert case_names(path)
    assert {path.stem for path in files} <= set(MAPPINGS)


def test_masses_of_the_models_count_every_token() -> None:
    """The counts of the file include the prefix; its masses add up to all tokens."""
    path = OURS / "tome_model.npz"
    for name in case_names(path):
        outputs = read_case(path, name).outputs
        assert torch.all(outputs["size"].sum(-1) == outputs["source"].shape[-1])
