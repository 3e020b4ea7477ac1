"""Models by name: their real sizes without weights, what may be told of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import Qwen2VLVideoProcessor

from benchmarks.synthetic_clips import write
from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.tools.benchmark import NAMES, Setting, Sizes, load, multimodal
from tokenzoo.tools.benchmark.prompts import grid_of_film
from tokenzoo.tools.video import read_frames

WORDS = 32
# Of each shape the tokens of its images, and the blocks of its tower: as the papers say.
TOKENS = {
    "vit-b/16": ([196], 12),
    "vit-l/16-384": ([576], 24),
    "siglip-so400m-384": ([729], 26),
    "clip-l-336": ([576], 23),
    "llava-1.5-7b": ([576], 23),
    "llava-video-7b": ([729] * 64, 26),
    "llava-video-0.5b": ([729] * 8, 26),
    "llava-onevision-0.5b": ([729] * 8, 26),
    "qwen2-vl-7b": ([1036] + [192] * 4, 32),
    "qwen2.5-vl-7b": ([1036] + [192] * 4, 32),
    "qwen2.5-vl-0.5b": ([1036] + [192] * 4, 16),
    "internvl3-8b": ([256] * 5, 24),
    "internvl3-0.5b": ([256] * 5, 24),
    "paligemma2-3b": ([256], 27),
    "qwen3-vl-8b": ([768] + [140] * 4, 27),
    "qwen3-vl-0.5b": ([768] + [140] * 4, 24),
    "gemma-3-4b": ([256], 27),
    "smolvlm-2b": ([81] * 13, 27),
}
PROMPTS = {
    "llava-1.5-7b": 576,
    "llava-video-7b": 64 * 169 + 1,  # a newline ends a video
    "llava-video-0.5b": 8 * 169 + 1,
    "llava-onevision-0.5b": 8 * 196 + 1,
    **{name: 1036 + 4 * 192 for name in TOKENS if "qwen2" in name},
    **{name: 768 + 4 * (140 + 1) for name in TOKENS if "qwen3" in name},  # a time before each slice
    "internvl3-8b": 5 * 256,
    "internvl3-0.5b": 5 * 256,
    "paligemma2-3b": 256,
    "gemma-3-4b": 256,
    "smolvlm-2b": 13 * 81,
}
BILLIONS = {
    "llava-1.5-7b": 7.05,
    "llava-video-7b": 8.03,
    "qwen2.5-vl-7b": 8.29,
    "internvl3-8b": 7.94,
    "paligemma2-3b": 3.03,
    "qwen3-vl-8b": 8.77,
    "gemma-3-4b": 4.30,
    "smolvlm-2b": 2.25,
    "vit-b/16": 0.087,
}


def test_each_shape_has_its_row_here():
    assert set(TOKENS) == set(NAMES)
    assert set(PROMPTS) == set(multimodal.SHAPES)


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_can_be_made_in_its_real_size(name):
    work = load(name, setting=Setting("meta"))
    tokens, depth = TOKENS[name]
    assert work.adapter is not None
    assert list(work.images) == tokens
    assert len(work.adapter.blocks()) == depth
    assert work.multimodal == (name in PROMPTS)
    if work.multimodal:
        assert work.given["input_ids"].shape == (1, WORDS + PROMPTS[name])
    if name in BILLIONS:
        count = sum(parameter.numel() for parameter in work.model.parameters())
        assert count / 1e9 == pytest.approx(BILLIONS[name], rel=0.02)


def test_a_frame_is_averaged_as_in_the_paper():
    base = load("llava-video-0.5b", Sizes(tiny=True, frames=1)).model.model
    frame = torch.randn(2, 81, 5)  # 9 x 9 to 4 x 4
    pooled = base.apply_pooling(frame)
    assert pooled.shape == (2, 16, 5)
    corner = frame[:, [0, 1, 9, 10]].mean(1)
    torch.testing.assert_close(pooled[:, 0], corner)


def test_what_is_told_is_what_is_made():
    work = load("vit-b/16", Sizes(batch=3, depth=2, tiny=True), Setting(dtype="bfloat16"))
    assert work.given.shape == (3, 3, 112, 112)
    assert work.given.dtype == next(work.model.parameters()).dtype == torch.bfloat16
    assert len(work.model.blocks) == 2
    assert work.images == (49,) * 3
    assert work.sizes.shrunk() == ("a tiny model of this kind", "2 blocks in the tower")
    work = load("qwen2.5-vl-0.5b", Sizes(batch=2, depth=3, layers=1, frames=4, tiny=True))
    assert work.given["image_grid_thw"].tolist() == [[1, 8, 12]] * 2
    assert work.given["video_grid_thw"].tolist() == [[2, 4, 6]] * 2
    assert len(work.model.model.visual.blocks) == 3
    assert len(work.model.model.language_model.layers) == 1
    assert sorted(work.images) == [6] * 4 + [24] * 2


def test_other_models_by_the_names_of_their_libraries(tmp_path):
    work = load("vit_tiny_patch16_224", Sizes(depth=2))
    assert (work.images, work.multimodal) == ((196,), False)
    load("clip-l-336", Sizes(tiny=True)).model.config.save_pretrained(tmp_path)
    work = load(str(tmp_path), Sizes(batch=2))
    assert (work.images, work.multimodal) == ((81, 81), False)
    work = load("resnet18")
    assert (work.adapter, work.images) == (None, ())


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Five frames of 64 x 96, each darker than the one before, brighter to the right and below."""
    ramp = torch.linspace(0, 120, 64)[:, None] + torch.linspace(0, 120, 96)  # [h, w]
    frames = ramp[None, ..., None] + 15 - 3 * torch.arange(5)[:, None, None, None]
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write(path, frames.expand(-1, -1, -1, 3).byte())


def test_a_llava_reads_the_frames_of_a_file(film):
    work = load("llava-onevision-0.5b", Sizes(tiny=True, frames=4, batch=2), video=film)
    pixels = work.given["pixel_values_videos"]
    assert pixels.shape == (2, 4, 3, 126, 126)
    shrunk = interpolate(pixels[0], (64, 96), mode="area").movedim(1, -1)
    frames = read_frames(film, 4).frames
    assert float(((shrunk + 1) * 127.5 - frames).abs().mean()) < 1
    assert work.notes == ("frames of film.mp4",)


@pytest.mark.parametrize("name", ["qwen2.5-vl-0.5b", "qwen3-vl-0.5b"])
def test_a_qwen_reads_the_frames_of_a_file_as_its_processor_has_them(film, name):
    """Three frames: the last is there twice."""
    work = load(name, Sizes(tiny=True, frames=3), video=film)
    assert work.given["video_grid_thw"].tolist() == [[2, 4, 6]]
    patch = work.model.config.vision_config.patch_size
    processor = Qwen2VLVideoProcessor(
        patch_size=patch, do_sample_frames=False, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": 1, "longest_edge": 4 * 24 * patch**2},
    )  # fmt: skip
    frames = read_frames(film, 3).frames.movedim(-1, 1)  # [f, 3, h, w]
    sized = interpolate(frames.float(), (4 * patch, 6 * patch), mode="bilinear", antialias=True)
    wanted = processor([sized.round().byte()], return_tensors="pt")
    assert wanted["video_grid_thw"].tolist() == [[2, 4, 6]]
    gap = work.given["pixel_values_videos"] - wanted["pixel_values_videos"]
    assert gap.abs().max() < 0.005  # a rounded level


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(9, 16, (20, 38)), (16, 9, (36, 22)), (1, 99, (2, 384))]
)
def test_a_slice_has_the_proportions_of_the_file(height, width, grid):
    assert grid_of_film((24, 32), torch.zeros(1, height, width, 3)) == grid


BAD = [
    (lambda: load("vit-b/16", Sizes(frames=4)), "vit-b/16 has no video"),
    (lambda: load("vit-b/16", video=Path("a.mp4")), "vit-b/16 has no video"),
    (lambda: load("internvl3-8b", video=Path("a.mp4")), r"video=a\.mp4 of internvl3-8b"),
    (lambda: load("llava-1.5-7b", Sizes(frames=4), Setting("meta")), r"frames=4 of llava-1\.5-7b"),
    (lambda: load("resnet18", Sizes(tiny=True)), "no tiny resnet18"),
    (lambda: load("vit-b/16", setting=Setting(attention="eager")), "attention='eager' of vit-b/16"),
    (
        lambda: load("llava-1.5-7b", Sizes(tiny=True), Setting(attention="nonsense")),
        "attention='nonsense'",
    ),
    (lambda: Sizes(depth=0), "depth=0"),
    (lambda: Setting(dtype="int8"), "dtype='int8'"),
    (lambda: Setting("gpu"), "device='gpu'"),
    *([] if torch.cuda.is_available() else [(lambda: Setting("cuda"), "no CUDA device")]),
]


@pytest.mark.parametrize(("make", "named"), BAD)
def test_what_cannot_be_made_says_so(make, named):
    with pytest.raises(BadArgumentError, match=named):
        make()


def test_a_shape_that_is_not_known():
    with pytest.raises(UnknownNameError, match=r"llava-1\.5-7b"):
        load("llava-1.5-8b")
