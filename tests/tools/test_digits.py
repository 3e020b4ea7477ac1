"""The digit collages are what they say, and the shipped model is as good as its card says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sklearn")
pytest.importorskip("timm")

from tokenzoo.errors import BadArgumentError
from tokenzoo.tools import digits

# What tokenzoo/weights/README.md reports on 5,000 test collages.
CARD = {"marked": 0.9962, "counts": 0.9821, "all counts": 0.9002}


def test_splits_share_no_digit_and_are_the_data_set() -> None:
    from sklearn.datasets import load_digits

    data, parts = load_digits(), digits.splits()
    assert {name: len(part.indices) for name, part in parts.items()} == {
        "train": 1204,
        "validation": 297,
        "test": 296,
    }
    every = torch.cat([part.indices for part in parts.values()])
    assert torch.equal(every.sort().values, torch.arange(1797))
    for part in parts.values():
        assert torch.equal(part.labels, torch.from_numpy(data.target).long()[part.indices])
        assert torch.equal(part.images * 16, torch.from_numpy(data.images).float()[part.indices])
        shares = part.labels.bincount(minlength=10) / len(part.labels)
        assert 0.09 < shares.min() < shares.max() < 0.11


@pytest.mark.parametrize("cells", [1, 2, 4])
@pytest.mark.parametrize("augment", [False, True])
def test_answer_and_counts_follow_from_the_digits(cells: int, augment: bool) -> None:
    drawn = digits.collages("train", 20, seed=3, cells=cells, augment=augment)
    assert drawn.images.shape == (20, 3, 16 * cells, 16 * cells)
    assert drawn.images.dtype == torch.float32
    assert -1 <= drawn.images.min() < drawn.images.max() <= 1
    assert drawn.digits.shape == (20, cells**2)
    marked = drawn.digits.gather(1, drawn.marked[:, None])[:, 0]
    assert torch.equal(drawn.answer, marked)
    assert torch.equal(drawn.counts, F.one_hot(drawn.digits, 10).sum(1))


def test_the_arguments_alone_decide_and_the_global_generator_is_left_alone() -> None:
    one = digits.collages("test", 12, seed=7)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    two = digits.collages("test", 12, seed=7)
    for name in ("images", "digits", "marked"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    others = ("test", 8, False), ("train", 7, False), ("validation", 7, False), ("test", 7, True)
    for split, seed, augment in others:
        other = digits.collages(split, 12, seed=seed, augment=augment)
        assert not torch.equal(one.images, other.images)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("split", "count", "cells", "named"),
    [("tset", 4, 4, "train, validation, test"), ("test", 0, 4, "count"), ("test", 4, 0, "cells")],
)
def test_bad_arguments_are_refused(split: str, count: int, cells: int, named: str) -> None:
    with pytest.raises(BadArgumentError, match=named):
        digits.collages(split, count, seed=0, cells=cells)


def test_accuracy_counts_the_wrong_answers() -> None:
    drawn = digits.collages("test", 40, seed=2)
    assert drawn.counts.max() > 4  # so that "4 or more" is at work
    counts = drawn.counts.clamp(max=digits.COUNT_CLASSES - 1)
    right = F.one_hot(counts, digits.COUNT_CLASSES).flatten(1)
    logits = torch.cat([F.one_hot(drawn.answer, 10), right], dim=1).float()  # [b, 60]
    perfect = {"marked": 1.0, "counts": 1.0, "all counts": 1.0}
    assert digits.accuracy(logits, drawn) == perfect
    # One marked digit of forty is wrong, and three counts of four hundred, in two collages.
    for row, first, last in ((0, 0, 10), (0, 10, 15), (0, 15, 20), (1, 55, 60)):
        logits[row, first:last] = logits[row, first:last].roll(1)
    found = digits.accuracy(logits, drawn)
    assert found == pytest.approx({"marked": 39 / 40, "counts": 397 / 400, "all counts": 38 / 40})


def test_the_architecture_is_the_promised_one() -> None:
    vit = digits.digits_vit()
    assert (len(vit.blocks), vit.patch_embed.num_patches, vit.training) == (12, 256, True)
    assert vit(torch.zeros(2, 3, 64, 64)).shape == (2, 60)


def test_the_shipped_model_is_as_good_as_its_card() -> None:
    """It reads the marked digit where it is drawn: digits or marks in other cells would be seen here."""
    vit = digits.load_digits_vit()
    assert not vit.training
    assert {p.dtype for p in vit.parameters()} == {torch.float32}
    drawn = digits.collages("test", 250, seed=11)
    with torch.inference_mode():
        logits = torch.cat([vit(part) for part in drawn.images.split(100)])
    found = digits.accuracy(logits, drawn)
    for name, claimed in CARD.items():
        # 250 collages leave "all counts" a standard error of three points; the others, below one
        assert found[name] >= claimed - (0.06 if name == "all counts" else 0.03), found
