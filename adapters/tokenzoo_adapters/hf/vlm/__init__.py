"""Vision-language models of transformers, from the pixels to the answer."""
