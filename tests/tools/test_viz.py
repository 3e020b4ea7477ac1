"""Pictures say what the plan says: pixels are looked at, not taste."""

from __future__ import annotations

import sys

import pytest
import torch

from tokenzoo.errors import BadArgumentError, MissingDependencyError
from tokenzoo.token_map import TokenMap
from tokenzoo.tools import pixels
from tokenzoo.tools.viz import Panel, gallery, merged_groups, shrunk_image

GRID = (4, 6)
PREFIX = 1


def make_plan(owners):
    """One image whose patches go to these outputs (-1: dropped), after one prefix token."""
    dst = torch.tensor([[0, *(-1 if owner < 0 else owner + 1 for owner in owners)]])
    keep = torch.tensor([[0, *(owners.index(group) + 1 for group in range(max(owners) + 1))]])
    plan = TokenMap(keep, dst)
    plan.check()
    return plan


def middle(picture, patch):
    """The middle of a patch, where no line is: `[3, h, w]`."""
    row, column = divmod(patch, GRID[1])
    h, w = picture.shape[1] // GRID[0], picture.shape[2] // GRID[1]
    top, left = row * h + h // 4, column * w + w // 4
    return picture[:, top : top + h // 2, left : left + w // 2]


@pytest.fixture
def image():
    return 0.3 + 0.6 * torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))


# Two groups of three, far-away patches among them; two singles; the rest dropped.
OWNERS = [0, 0, -1, -1, -1, 1, 2, -1, -1, -1, -1, -1, -1, -1, 3, -1, -1, -1, 0, -1, -1, -1, 1, 1]


def test_a_group_has_the_mean_of_its_patches_and_the_dropped_are_dark_and_hatched(image) -> None:
    picture = merged_groups(image, make_plan(OWNERS), GRID, PREFIX)
    patches = image.unfold(1, 2, 2).unfold(2, 2, 2).reshape(3, 24, 4).mean(-1)  # [3, patches]
    for patch, owner in enumerate(OWNERS):
        pixels = middle(picture, patch)
        if owner < 0:
            assert pixels.mean() < 0.5 * middle(image, patch).mean()
            assert pixels.std() > 0.01
        else:
            wanted = patches[:, [i for i, other in enumerate(OWNERS) if other == owner]].mean(1)
            torch.testing.assert_close(pixels, wanted[:, None, None].expand_as(pixels))


def test_lines_run_between_groups_and_not_within() -> None:
    plain = torch.full((3, 8, 12), 0.5)
    picture = merged_groups(plain, make_plan([0] * 12 + [1] * 12), GRID, PREFIX)
    rows_with_lines = (picture - 0.5).abs().amax((0, 2)) > 0.05
    h = len(rows_with_lines)
    assert rows_with_lines[h // 2 - 1 : h // 2 + 1].all()
    assert not rows_with_lines[: h // 2 - 8].any()
    assert not rows_with_lines[h // 2 + 8 :].any()


def test_far_away_patches_of_a_token_share_their_line_colour() -> None:
    owners = [0, *[-1] * 10, 1, *[-1] * 11, 0]
    picture = merged_groups(torch.full((3, 8, 12), 0.5), make_plan(owners), GRID, PREFIX)
    h, w = picture.shape[1] // GRID[0], picture.shape[2] // GRID[1]
    at = ((0, w - 1), (h + h // 2, 5 * w), (3 * h + 1, 5 * w))
    first, other, last = (picture[:, row, column] for row, column in at)
    torch.testing.assert_close(first, last)
    assert (first - other).abs().max() > 0.1


def test_the_photograph_can_shine_through(image) -> None:
    plan = make_plan([0] * 24)
    flat = merged_groups(image, plan, GRID, PREFIX)
    assert flat.flatten(1).std(1).max() < 1e-6
    seen = merged_groups(image, plan, GRID, PREFIX, see_through=1.0)
    scale = seen.shape[1] // image.shape[1]
    torch.testing.assert_close(seen[:, ::scale, ::scale], image)


def test_the_image_of_a_batch_is_chosen_by_index(image) -> None:
    plans = make_plan([0] * 24), make_plan([*[0] * 23, -1])
    both = TokenMap(*(torch.cat([getattr(p, name) for p in plans]) for name in ("keep", "dst")))
    for index, single in enumerate(plans):
        found = merged_groups(image, both, GRID, PREFIX, index=index)
        assert torch.equal(found, merged_groups(image, single, GRID, PREFIX))


@pytest.mark.parametrize("size", [(8, 12), (9, 13), (100, 151), (500, 700)])
def test_any_size_of_image(size) -> None:
    picture = merged_groups(torch.rand(3, *size), make_plan(OWNERS), GRID, PREFIX)
    scale = picture.shape[1] // size[0]
    assert picture.shape[1:] == (scale * size[0], scale * size[1])
    assert min(picture.shape[1:]) >= pixels.SIDE
    torch.testing.assert_close(picture.clamp(0, 1), picture)


def test_a_shrunk_image_keeps_its_pixels_and_shows_its_grid() -> None:
    image = torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(1))
    picture = shrunk_image(image, (2, 4))
    scale, w = picture.shape[1] // 16, picture.shape[2]
    inside = picture[:, scale // 2 :: scale, scale // 2 :: scale]
    torch.testing.assert_close(inside, image)
    lines = picture[:, :, [w // 4, w // 2, 3 * w // 4]]
    assert (lines - torch.tensor(pixels.LINE)[:, None, None]).abs().max() < 0.2


BAD = [
    ({"image": torch.rand(1, 3, 8, 12)}, r"image has shape \(1, 3, 8, 12\)"),
    ({"image": torch.zeros(3, 8, 12, dtype=torch.uint8)}, "torch.uint8"),
    ({"image": torch.rand(3, 2, 12)}, "2 x 12 pixels.* 4 x 6"),
    ({"grid": (4, 5)}, "25 tokens; prefix=1 and a grid of 4 x 5"),
    ({"prefix": 0}, "prefix=0"),
    ({"index": 1}, "index=1"),
    ({"see_through": 2.0}, "see_through=2.0"),
]


@pytest.mark.parametrize(("change", "named"), BAD)
def test_bad_arguments_are_named(image, change, named) -> None:
    options = {"image": image, "plan": make_plan(OWNERS), "grid": GRID, "prefix": PREFIX}
    with pytest.raises(BadArgumentError, match=named):
        merged_groups(**(options | change))


def test_a_gallery_is_a_png_with_a_column_per_method(tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    square, wide = Panel(torch.rand(3, 40, 40), "7"), Panel(torch.rand(3, 20, 40), "no", good=False)
    columns = [("a", "4 tokens"), ("b", "")]
    path = gallery([[square, wide]] * 2, columns, tmp_path / "g.png", caption="what it is")
    assert path.read_bytes().startswith(b"\x89PNG")
    for rows in ([], [[square]], [[square, wide], [wide]]):
        with pytest.raises(BadArgumentError, match="one panel per column"):
            gallery(rows, columns, tmp_path / "g.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tokenzoo\[viz\]'"):
        gallery([[square, wide]], columns, tmp_path / "g.png")
