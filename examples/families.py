"""An image and a question for a vision-language model of a family: with all visual tokens, and with fewer.

    python examples/families.py internvl              # downloads OpenGVLab/InternVL3-8B-hf (16 GB)
    python examples/families.py paligemma --keep 64
    python examples/families.py minicpm --recipe cdpruner
    python examples/families.py qwen3_vl              # also gemma3, smolvlm, lfm2_vl, glm4v, molmo2
    python examples/families.py cosmos3_edge          # with transformers 5.24
    python examples/families.py internvl --tiny       # downloads nothing, answers nonsense

`--keep` counts the tokens of one image or tile. MiniCPM-V and Molmo 2 are reduced after their projectors
alone, so they need a recipe that works there.

    pip install 'tokenzoo[transformers,demo]'
"""

from __future__ import annotations

from comparing import compare, load, options, prompt
from llava import shown

FAMILIES = {
    "internvl": ("OpenGVLab/InternVL3-8B-hf", "evoprune"),
    "paligemma": ("google/paligemma2-3b-mix-224", "evoprune"),
    "minicpm": ("openbmb/MiniCPM-V-4.6", "divprune"),
    "qwen3_vl": ("Qwen/Qwen3-VL-8B-Instruct", "evoprune"),
    "gemma3": ("google/gemma-3-4b-it", "evoprune"),
    "smolvlm": ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "evoprune"),
    "lfm2_vl": ("LiquidAI/LFM2-VL-1.6B", "evoprune"),
    "glm4v": ("zai-org/GLM-4.1V-9B-Thinking", "evoprune"),
    "molmo2": ("allenai/Molmo2-8B", "divprune"),
    "cosmos3_edge": ("nvidia/Cosmos3-Edge", "evoprune"),
}
"""Of each family a checkpoint, and a recipe that works on it."""
PACKED = ("qwen3_vl", "glm4v", "cosmos3_edge")


def main() -> None:
    """Ask, and compare."""
    parser = options(__doc__, "", "Describe the flower")
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("--image", help="a path or URL (default: a photograph of a flower)")
    parser.set_defaults(keep=0.25, recipe=None)
    given = parser.parse_args()
    checkpoint, recipe = FAMILIES[given.family]
    given.model, given.recipe = given.model or checkpoint, given.recipe or recipe
    model, processor = load(given)
    text = prompt(processor, given.question, "image")
    # The processors of other packed models return them without being asked.
    types = {"return_mm_token_type_ids": True} if given.family == "cosmos3_edge" else {}
    inputs = processor(images=[shown(given.image)], text=[text], return_tensors="pt", **types)
    tokens = None  # those of a tile; where sizes differ, of the image
    if given.family == "minicpm":  # of the first tile
        tokens = int(inputs["target_sizes"][0].prod()) // 16
    elif given.family in PACKED:
        tokens = int(inputs["image_grid_thw"][0].prod()) // 4
    elif given.family == "molmo2":  # of the view of the whole image
        tokens = int(inputs["image_grids"][0, :2].prod())
    compare(model, processor, inputs, given, tokens)


if __name__ == "__main__":
    main()
