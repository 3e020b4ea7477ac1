"""Every golden mapping takes any number of images: a batch of several gives what each gives alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.golden_mappings import MAPPINGS, Case, Outputs, case_names, read_case, rows

FOLDER = Path(__file__).parent / "golden"
# Whole models make their images themselves: see test_golden.py.
FILES = [path for path in sorted(FOLDER.glob("*.npz")) if path.stem != "tome_model"]
# Inputs that all images share.
SHARED = ("ln", "wq", "wk", "ln_w", "ln_b", "w_proj")
# By method, the inputs without a batch axis; (): all.
WITHOUT_BATCH_AXIS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("divprune", "gprune", "vscan_qwen", "holitom", "ipcv"), ()),
    "fastvid": ("frame_attn", "frame_global"),
}
# A case by its method: the first of the file, unless another one is more telling.
CHOSEN = [
    *((path.stem, case_names(path)[0]) for path in FILES),
    ("trim", "case006"),  # of a fixed count; the first is adaptive
    ("sparsevlm", "case04"),
    ("ats", "made"),
    ("fopru", "made"),
]


@dataclass(frozen=True)
class Recorded(Case):
    """A case that notes what the mapping makes of its inputs, and compares nothing."""

    ours: dict[str, Tensor] = field(default_factory=dict)

    @property
    def unstable(self) -> bool:
        return True

    def compare(self, ours: Outputs, score: Any = None) -> None:
        self.ours.update(ours)


def ours_of(method: str, case: Case) -> Outputs:
    recorded = Recorded(case.label, case.meta, case.entry, case.inputs, case.outputs)
    MAPPINGS[method](recorded)
    return recorded.ours


def made(method: str) -> Case:
    """A case of a method without a file in the folder."""
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    if method == "ats":
        inputs = {"attn": drawn(1, 2, 10, 10).softmax(-1), "v": drawn(1, 2, 10, 4)}
        inputs["mask"] = torch.ones(1, 10, dtype=torch.bool)
        entry: dict[str, Any] = {"inputs": "made", "params": {"sample_count": 6}}
    else:
        inputs = {"feats": drawn(1, 576, 4), "attn": drawn(1, 1, 576, 576)}
        entry = {"inputs": "made_logits", "params": {"keep": 20, "strategy": "rank"}}
    return Case(method, {}, entry, inputs, {"ids": torch.zeros(1, 6, dtype=torch.long)})


def is_shared(name: str) -> bool:
    return name in SHARED or name.startswith("w.")


def without_batch(method: str, name: str) -> bool:
    names = WITHOUT_BATCH_AXIS.get(method)
    return names is not None and (not names or name in names)


def other_image(method: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Another image of the same kind: every axis of each input shuffled, but that of the batch."""
    draw = torch.Generator().manual_seed(1)
    result = dict(inputs)
    for name, value in inputs.items():
        if not is_shared(name):
            for axis in range(0 if without_batch(method, name) else 1, value.ndim):
                value = value.index_select(axis, torch.randperm(value.shape[axis], generator=draw))
            result[name] = value
    return result


@torch.no_grad()
@pytest.mark.parametrize(("method", "name"), CHOSEN)
def test_several_images_give_what_each_gives_alone(method: str, name: str) -> None:
    one = made(method) if name == "made" else read_case(FOLDER / f"{method}.npz", name)
    other = replace(one, inputs=other_image(method, one.inputs))

    def joined(key: str, value: Tensor) -> Tensor:
        if is_shared(key):
            return value
        join = torch.stack if without_batch(method, key) else torch.cat
        return join([value, other.inputs[key]])

    inputs = {key: joined(key, value) for key, value in one.inputs.items()}
    first, second = ours_of(method, one), ours_of(method, other)
    outputs = {key: rows([*first[key], *second[key]]) for key in first}
    several = replace(one, inputs=inputs, outputs=outputs)
    MAPPINGS[method](several)
    # The last image counts as the first does.
    turned = replace(several, outputs={key: value.flip(0) for key, value in outputs.items()})
    with pytest.raises(AssertionError):
        MAPPINGS[method](turned)


def test_every_mapping_is_tried() -> None:
    assert {method for method, _ in CHOSEN} == set(MAPPINGS) - {"tome_model"}


@torch.no_grad()
@pytest.mark.parametrize("batch", [False, True])
def test_cdpruner_with_one_prompt_for_all_images(batch: bool) -> None:
    """Two texts that both images share, each image scaled alone or both together (the authors' batch)."""
    one = read_case(FOLDER / "cdpruner.npz", case_names(FOLDER / "cdpruner.npz")[0])
    other, text = other_image("cdpruner", one.inputs), one.inputs["text_embeds"]
    x, clip = (torch.cat([one.inputs[k], other[k]]) for k in ("proj_feats", "image_embeds"))
    options = {"keep": one.params["keep"], "relevance": "clip", "match_reference": batch}
    shown = {"text": text.expand(2, -1, -1), "at": {"clip": {"x": clip}}}
    indices = tokenzoo.build("cdpruner", **options).reduce(x, **shown).plan.keep
    inputs = {"proj_feats": x, "image_embeds": clip, "text_embeds": text}
    MAPPINGS["cdpruner"](replace(one, inputs=inputs, outputs={"indices": indices}))
