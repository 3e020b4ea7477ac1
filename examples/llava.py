"""An image and a question for a LLaVA: the answer with all visual tokens, and with fewer.

    python examples/llava.py                                  # downloads LLaVA-1.5 7B (14 GB)
    python examples/llava.py --model llava-hf/llava-v1.6-mistral-7b-hf
    python examples/llava.py --model llava-hf/llava-onevision-qwen2-0.5b-ov-hf --keep 182
    python examples/llava.py --image photo.jpg --question "What is on the table?" --recipe fastv
    python examples/llava.py --tiny                           # downloads nothing, answers nonsense

`--keep` counts the tokens of one image, or of one crop of an image that the model cuts into crops.

    pip install 'tokenzoo[transformers,demo]'
"""

from __future__ import annotations

from typing import Any

from comparing import compare, load, options, prompt
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers.image_utils import load_image


def shown(where: str | None) -> Any:
    """The image at a path or URL; without one, a photograph of a flower that comes with scikit-learn."""
    if where is None:
        return Image.fromarray(load_sample_image("flower.jpg"))
    return load_image(where)


def main() -> None:
    """Ask, and compare."""
    parser = options(__doc__, "llava-hf/llava-1.5-7b-hf", "What is shown in this image?")
    parser.add_argument("--image", help="a path or URL (default: a photograph of a flower)")
    given = parser.parse_args()
    if given.keep is None:
        given.keep = 16 if given.tiny else 64
    model, processor = load(given)
    text = prompt(processor, given.question, "image")
    inputs = processor(images=[shown(given.image)], text=[text], return_tensors="pt")
    compare(model, processor, inputs, given)


if __name__ == "__main__":
    main()
