"""Pictures say what the plan says: pixels are looked at, not taste."""

from __future__ import annotations

import sys

import pytest
import torch

from tokenzoo.errors import BadArgumentError, MissingDependencyError
from tokenzoo.token_map import TokenMap
from tokenzoo.tools import viz
from tokenzoo.tools.viz import Panel, gallery, merged_groups, shrunk_image

GRID = (4, 6)
PREFIX = 1


def make_plan(owners, groups):
    """One image whose patches go to these outputs (-1: dropped), after one prefix token."""
    dst = torch.tensor([[0, *(-1 if owner < 0 else owner + 1 for owner in owners)]])
    keep = torch.tensor([[0, *(owners.index(group) + 1 for group in range(groups))]])
    plan = TokenMap(keep, dst)
    plan.check()
    return plan


def middle(picture, patch, grid=GRID):
    """The middle of a patch, where no line is: `[3, h, w]`."""
    rows, columns = grid
    row, column = divmod(patch, columns)
    h, w = picture.shape[1] // rows, picture.shape[2] // columns
    return picture[
        :, row * h + h // 4 : row * h + 3 * h // 4, column * w + w // 4 : column * w + 3 * w // 4
    ]


@pytest.fixture
def image():
    return 0.3 + 0.6 * torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))


# Two groups of three, far-away patches among them; two singles; the rest dropped.
OWNERS = [0, 0, -1, -1, -1, 1, 2, -1, -1, -1, -1, -1, -1, -1, 3, -1, -1, -1, 0, -1, -1, -1, 1, 1]


def test_a_group_has_one_colour_the_mean_of_its_patches(image) -> None:
    picture = merged_groups(image, make_plan(OWNERS, 4), GRID, PREFIX)
    patches = image.unfold(1, 2, 2).unfold(2, 2, 2).reshape(3, 24, 4).mean(-1)  # [3, patches]
    for group in range(4):
        members = [i for i, owner in enumerate(OWNERS) if owner == group]
        wanted = patches[:, members].mean(1)
        for patch in members:
            pixels = middle(picture, patch).flatten(1)
            torch.testing.assert_close(pixels, wanted[:, None].expand_as(pixels))


def test_dropped_patches_are_darker_and_hatched(image) -> None:
    picture = merged_groups(image, make_plan(OWNERS, 4), GRID, PREFIX)
    for patch in (i for i, owner in enumerate(OWNERS) if owner < 0):
        pixels, before = middle(picture, patch), middle(image, patch)
        assert pixels.mean() < 0.5 * before.mean()
        assert pixels.std() > 0.01


def test_lines_run_between_groups_and_not_within(image) -> None:
    plain = torch.full_like(image, 0.5)
    picture = merged_groups(plain, make_plan([0] * 12 + [1] * 12, 2), GRID, PREFIX)
    rows_with_lines = (picture - 0.5).abs().amax((0, 2)) > 0.05
    h = len(rows_with_lines)
    assert rows_with_lines[h // 2 - 1 : h // 2 + 1].all()
    assert not rows_with_lines[: h // 2 - 8].any()
    assert not rows_with_lines[h // 2 + 8 :].any()


def test_far_away_patches_of_a_token_share_their_line_colour(image) -> None:
    plain = torch.full_like(image, 0.5)
    owners = [0, *[-1] * 10, 1, *[-1] * 11, 0]
    picture = merged_groups(plain, make_plan(owners, 2), GRID, PREFIX)
    h, w = picture.shape[1] // GRID[0], picture.shape[2] // GRID[1]
    first, other, last = (
        picture[:, 0, w - 1],
        picture[:, h + h // 2, 5 * w],
        picture[:, 3 * h + 1, 5 * w],
    )
    torch.testing.assert_close(first, last)
    assert (first - other).abs().max() > 0.1


def test_the_photograph_can_shine_through(image) -> None:
    plan = make_plan([0] * 24, 1)
    flat = merged_groups(image, plan, GRID, PREFIX)
    assert flat.flatten(1).std(1).max() < 1e-6
    seen = merged_groups(image, plan, GRID, PREFIX, see_through=1.0)
    scale = seen.shape[1] // image.shape[1]
    torch.testing.assert_close(seen[:, ::scale, ::scale], image)


def test_the_image_of_a_batch_is_chosen_by_index(image) -> None:
    a, b = make_plan([0] * 24, 1), make_plan([*[0] * 23, -1], 1)
    both = TokenMap(torch.cat([a.keep, b.keep]), torch.cat([a.dst, b.dst]))
    for index, single in enumerate((a, b)):
        assert torch.equal(
            merged_groups(image, both, GRID, PREFIX, index=index),
            merged_groups(image, single, GRID, PREFIX),
        )


@pytest.mark.parametrize("size", [(8, 12), (9, 13), (100, 151), (500, 700)])
def test_any_size_of_image(size) -> None:
    picture = merged_groups(torch.rand(3, *size), make_plan(OWNERS, 4), GRID, PREFIX)
    scale = picture.shape[1] // size[0]
    assert picture.shape[1:] == (scale * size[0], scale * size[1])
    assert min(picture.shape[1:]) >= viz.SIDE
    torch.testing.assert_close(picture.clamp(0, 1), picture)


def test_a_shrunk_image_keeps_its_pixels_and_shows_its_grid() -> None:
    image = torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(1))
    picture = shrunk_image(image, (2, 4))
    scale = picture.shape[1] // 16
    inside = picture[:, scale // 2 :: scale, scale // 2 :: scale]
    torch.testing.assert_close(inside, image)
    w = picture.shape[2]
    for x in (w // 4, w // 2, 3 * w // 4):
        assert (picture[:, :, x] - torch.tensor(viz.LINE)[:, None]).abs().max() < 0.2


BAD = [
    ({"image": torch.rand(1, 3, 8, 12)}, r"image has shape \(1, 3, 8, 12\)"),
    ({"image": torch.zeros(3, 8, 12, dtype=torch.uint8)}, "torch.uint8"),
    ({"image": torch.rand(3, 2, 12)}, "2 x 12 pixels has no grid of 4 x 6"),
    ({"grid": (4, 5)}, "begins with 25 tokens; prefix=1 and a grid of 4 x 5 make 21"),
    ({"prefix": 0}, "prefix=0"),
    ({"index": 1}, "index=1; the plan has images 0 to 0"),
    ({"see_through": 2.0}, "see_through=2.0"),
]


@pytest.mark.parametrize(("change", "complaint"), BAD)
def test_bad_arguments_are_named(image, change, complaint) -> None:
    options = {"image": image, "plan": make_plan(OWNERS, 4), "grid": GRID, "prefix": PREFIX}
    with pytest.raises(BadArgumentError, match=complaint):
        merged_groups(**(options | change))


def test_a_gallery_is_a_png_with_a_column_per_method(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    square, wide = torch.rand(3, 40, 40), torch.rand(3, 20, 40)
    rows = [[Panel(square, "7"), Panel(wide, "reads 1", good=False)]] * 2
    path = gallery(rows, [("a", "4 tokens"), ("b", "")], tmp_path / "g.png", caption="what it is")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_gallery_needs_full_rows(tmp_path) -> None:
    panel = Panel(torch.rand(3, 8, 8))
    for rows in ([], [[panel]], [[panel, panel], [panel]]):
        with pytest.raises(BadArgumentError, match="one panel per column"):
            gallery(rows, [("a", ""), ("b", "")], tmp_path / "g.png")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tokenzoo\[viz\]'"):
        gallery([[Panel(torch.rand(3, 8, 8))]], [("a", "")], tmp_path / "g.png")
