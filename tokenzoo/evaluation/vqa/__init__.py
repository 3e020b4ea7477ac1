"""Questions about images, and small LLaVAs that answer them.

`llava` is the model: the trained ViT-S/14 with a projector and a small Llama; `vocabulary` has what its
words are, `subject` the scores. For the task `collage-vqa`, `collages` draws images of 4 x 4 digits,
`questions` asks about them in the words of `words`, and `model` loads the weights. For the task
`documents`, `documents` prints pages of a form, and `page_questions` asks about them.
"""
