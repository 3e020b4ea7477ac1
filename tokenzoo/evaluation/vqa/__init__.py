"""Questions about collages, and a small LLaVA that answers them: the parts of the task `collage-vqa`.

    collages.py     images of 4 x 4 coloured digits, with what is in each cell
    questions.py    questions of eight kinds, with answers of one word
    words.py        the vocabulary
    model.py        the trained ViT-S/14 as a tower, a projector and a small Llama
"""
