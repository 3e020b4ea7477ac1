"""Small LLaVAs: the trained ViT-S/14 as a tower, a projector of two layers, and a small Llama.

The tower is that of `tokenzoo.evaluation.focus_vit`, frozen; the projector and the Llama of each task are
shipped with tokenzoo. The Llama reads the tower after its eighth block of twelve, since small shapes are
told apart less well after later ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from tokenzoo._core.needs import need
from tokenzoo.errors import MissingDependencyError
from tokenzoo.evaluation import focus_vit
from tokenzoo.evaluation.vqa.vocabulary import BOS, IMAGE, PAD, Vocabulary

TOKENS = (focus_vit.SIZE // focus_vit.PATCH) ** 2  # of an image: 256
LAYER = 8  # the hidden state of the tower that is read
WIDTH = 128
TOWER = "model.vision_tower."


def untrained(words: Vocabulary, tower: Any | None = None, **text: Any) -> Any:
    """Return the model with random weights in projector and Llama, in eval mode.

    Args:
        words: that it reads and says.
        tower: a `Dinov2Model`; None: one of random weights.
        **text: for the configuration of the Llama.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    transformers = need("transformers", "eval")
    seen: Any = focus_vit.backbone() if tower is None else tower
    said: dict[str, Any] = {
        "vocab_size": len(words.words),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "pad_token_id": words.index[PAD],
        "bos_token_id": words.index[BOS],
        "eos_token_id": None,
        "tie_word_embeddings": True,
        **text,
    }
    config = transformers.LlavaConfig(
        vision_config=seen.config,
        text_config=transformers.LlamaConfig(**said),
        image_token_id=words.index[IMAGE],
        vision_feature_layer=LAYER,
        vision_feature_select_strategy="default",  # without CLS
        tie_word_embeddings=True,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(seen.state_dict())
    return model


def load_llava(words: Vocabulary, weights: str, script: str, blocks: int | None = None) -> Any:
    """Return a trained model in eval mode: float16 on disk, float32 in memory.

    Args:
        words: its vocabulary.
        weights: the name of its file in `tokenzoo/weights/`.
        script: the name of the file in `benchmarks/` that trains it, for the message.
        blocks: how many blocks of the tower are there, at least `LAYER`; None: all 12. Those that are not
            read cost time, and change nothing.

    Raises:
        MissingDependencyError: its weights, or those of its tower, are not installed; says how.
        BadArgumentError: see `load_focus_vit`.
    """
    path = files("tokenzoo") / "weights" / weights
    if not path.is_file():
        raise MissingDependencyError(
            f"this installation has no weights/{weights}: make them with python benchmarks/{script}"
        )
    tower = focus_vit.load_focus_vit().backbone
    if blocks is not None:
        tower.encoder.layer = tower.encoder.layer[:blocks]
        tower.config.num_hidden_layers = blocks
    model = untrained(words, tower)
    state = {name: value.float() for name, value in load(path.read_bytes()).items()}
    model.load_state_dict(state | own_tower(model))
    model.tie_weights()
    return model


def own_tower(model: Any) -> dict[str, Tensor]:
    """Return the weights that are not shipped: those of the tower, and the tied ones of the head."""
    state: dict[str, Tensor] = model.state_dict()
    return {
        name: value
        for name, value in state.items()
        if name.startswith(TOWER) or name == "lm_head.weight"
    }


def prompts(words: Vocabulary, questions: Sequence[Sequence[str]]) -> Tensor:
    """Return the tokens `[q, 257 + w]` of questions of w words: the image first, then the question.

    Raises:
        BadArgumentError: a word is not in the vocabulary.
    """
    start = [words.index[BOS], *[words.index[IMAGE]] * TOKENS]
    return torch.tensor([[*start, *words.encode(one)] for one in questions])
