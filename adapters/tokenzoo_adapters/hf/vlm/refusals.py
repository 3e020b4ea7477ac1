"""Why vision-language models of transformers are refused: a reason for each folder of transformers.models.

Each sentence was written after reading the modeling file of that folder. A folder whose model has a spec is
not in this table; one that is in neither was never read, and is refused in general words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

AFTER = "zoo.reduce(features), after the tower"
PROJECTED = "zoo.reduce(features), after the projector"
NEWLINES = "zoo.reduce(features, protected=newlines), after the projector"
ANY = "zoo.reduce(x), of any tokens [b, n, c]"
FOLDERS = "transformers.models."


@dataclass(frozen=True)
class Refusal:
    """One reason, of all models that it holds for.

    Attributes:
        why: completes the sentence "... is not supported: ".
        folders: of transformers.models.
        instead: what works on these models.
        tower: whether a supported tower is in them, and all that reads it reads restored tokens as well.
    """

    why: str
    folders: tuple[str, ...]
    instead: str = AFTER
    tower: bool = False


def _refusal(why: str, folders: str, instead: str = AFTER, *, tower: bool = False) -> Refusal:
    return Refusal(why, tuple(folders.split()), instead, tower)


REFUSALS: tuple[Refusal, ...] = (
    # What the language model reads is not the tower's tokens.
    _refusal(
        "a query transformer reads what leaves the tower, and the language model reads its queries, whose "
        "number is fixed",
        "blip_2 idefics2 instructblip instructblipvideo kosmos2 kosmos2_5",
        "zoo.reduce(features), between the tower and the query transformer",
    ),
    _refusal(
        "its projector has queries for the numbers of patches that its config lists, and raises KeyError "
        "at any other",
        "aria",
        PROJECTED,
    ),
    _refusal(
        "its text reads the image by cross-attention: image tokens have no places in the prompt, and a "
        "merged one would count once",
        "blip idefics mllama pix2struct pp_formulanet",
    ),
    _refusal(
        "its decoder reads the image by cross-attention: image tokens have no places in the prompt, and a "
        "merged one would count once",
        "vision_encoder_decoder",
        tower=True,
    ),
    _refusal(
        "an image is a sequence of entries of a VQ codebook, and there is no vision transformer",
        "apertus1p5 chameleon emu3",
        "zoo.reduce(embeddings), of the image's embedded entries",
    ),
    _refusal(
        "there is no vision transformer: patches are embedded one by one and go to the language model",
        "fuyu gemma4_unified inkling",
        "zoo.reduce(embeddings), of the embedded patches",
    ),
    _refusal(
        "there is no vision transformer: patches are embedded one by one and joined with the words in "
        "their boxes",
        "udop",
        ANY,
    ),
    _refusal("its vision tower is a convolutional network", "fast_vlm gemma3n"),
    _refusal(
        "its vision tower attends in windows and over channels, with convolutions on the grid in between",
        "florence2",
    ),
    # Further readers of the tower.
    _refusal(
        "the language model adds the features of inner blocks of the tower to its own tokens (deepstack), "
        "and these blocks have other tokens left",
        "cohere_compass cosmos3_omni granite4_vision granite_docling qwen3_omni_moe",
        "zoo.reduce(features), after the tower, and the same rows (plan.keep) of the deepstack features",
    ),
    _refusal(
        "two encoders read an image, one of them in windows of a fixed grid (SAM), and both are joined by "
        "place",
        "deepseek_ocr2 unlimited_ocr",
        NEWLINES,
    ),
    _refusal(
        "two encoders read an image, one of them in windows of a fixed grid (SAM), and both are joined by "
        "place",
        "deepseek_vl_hybrid",
        PROJECTED,
        tower=True,
    ),
    _refusal("its tower attends in windows of a fixed grid (SAM)", "got_ocr2"),
    _refusal(
        "it has a tower for images and another one for videos, and an adapter follows one",
        "video_llava",
        tower=True,
    ),
    _refusal(
        "the frames of a video are pooled on their grid between the tower and the projector",
        "llava_next_video",
        PROJECTED,
        tower=True,
    ),
    _refusal(
        "it is an encoder and a decoder, and patches are averaged on their square grid",
        "t5gemma2",
        PROJECTED,
        tower=True,
    ),
    _refusal(
        "a second transformer reads the cache of its prompt and counts positions from its length",
        "pi0",
        tower=True,
    ),
    _refusal("image tokens come before the prompt, which has no placeholders for them", "git"),
    # What stands between the tower and the prompt needs the whole grid.
    _refusal(
        "a prompt has a token for the end of each row of patches, and positions in the tower are those of "
        "the grid",
        "mistral3 mistral_large4",
        PROJECTED,
    ),
    _refusal(
        "a learned newline is put after each row of patches between the tower and the prompt",
        "hunyuan_vl hy_v4_vl phi4_multimodal",
        NEWLINES,
    ),
    _refusal(
        "its CLS token comes last in the tower, and patches are joined on their square grid",
        "llama4",
    ),
    _refusal(
        "its projector joins patches on their square grid, and this tower is not one of those that are "
        "followed",
        "ovis2 perception_lm qianfan_ocr",
        PROJECTED,
    ),
    _refusal(
        "its projector joins patches on the grid of each image",
        "lighton_ocr muse_glimmer muse_spark paddleocr_vl video_llama_3",
        PROJECTED,
    ),
    _refusal(
        "its projector joins patches on their square grid, and there is no spec of it yet",
        "aya_vision cohere2_vision",
        PROJECTED,
        tower=True,
    ),
    _refusal("its tower averages the frames of a video by their grid", "kimi_k25"),
    _refusal(
        "the slices of a video are joined in pairs by their grid", "ernie4_5_vl_moe", PROJECTED
    ),
    _refusal(
        "patches are joined by the grid of each image, and the model prunes videos itself (EVS)",
        "nemotron_h_omni",
        PROJECTED,
    ),
    _refusal(
        "its tower has convolutions on the grid of an image between or after its blocks",
        "lfm3_vl step3p7",
    ),
    _refusal(
        "its tower averages patches by their positions, in a padded batch", "diffusion_gemma gemma4"
    ),
    _refusal(
        "a module amid the blocks of its tower joins windows of 2 x 2 patches on the grid",
        "minicpm_ocr minicpmv4_7",
        PROJECTED,
    ),
    # Nobody has written it.
    _refusal(
        "images of any size are one sequence in its tower, and this packed tower is not one of those that "
        "are followed",
        "dots3_note exaone4_5 glm5_next glm_ocr inkling2 inkling2_loop minimax_m3_vl "
        "qwen2_5_omni qwen4_exp",
    ),
    _refusal("its vision tower is not one of those that are followed", "janus"),
    _refusal("there is no spec of it yet", "deepseek_vl vipllava", tower=True),
    _refusal("there is no spec of it yet", "hyperclovax_vision_v2"),
    # They are listed with models that read images, and read none.
    _refusal(
        "it reads sound and no images",
        "fun_asr_nano glmasr granite_speech granite_speech_plus kyutai_speech_to_text "
        "moss_transcribe_diarize nemotron3_5_transcribe omniasr qwen2_audio qwen3_asr vibevoice_asr "
        "voxtral voxtral_realtime",
        ANY,
    ),
    _refusal("it reads proteins and no images", "evolla", ANY),
    _refusal("it reads text and no images", "mistral4", ANY),
)


def refusal_of(model: Any) -> Refusal | None:
    """Why a whole model of transformers, or a subclass of one, is refused; None: nobody has read it."""
    folders = {
        kind.__module__.removeprefix(FOLDERS).partition(".")[0]
        for kind in type(model).__mro__
        if kind.__module__.startswith(FOLDERS)
    }
    if _is_part(model, folders):
        return None
    return next((one for one in REFUSALS if folders & set(one.folders)), None)


def reads_images(model: Any) -> bool:
    """Whether a model takes images to a language model, as far as can be told without reading it."""
    return hasattr(model, "get_image_features") and hasattr(model, "generate")


def _is_part(model: Any, folders: set[str]) -> bool:
    """Whether a model is a tower or a language model of a whole one, by its configuration."""
    config = getattr(model, "config", None)
    if getattr(config, "base_config_key", ""):
        return True
    return (
        not getattr(config, "sub_configs", {}) and getattr(config, "model_type", "") not in folders
    )
