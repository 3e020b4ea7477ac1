"""Questions about collages, and a small LLaVA that answers them: the parts of the task `collage-vqa`.

`collages` draws images of 4 x 4 coloured digits, `questions` asks about them in the words of `words`, and
`model` is the trained ViT-S/14 with a projector and a small Llama.
"""
