"""Product quantization: from rows to codes, one file a step.

    importance -> scales of rows -> rotation -> scales of blocks -> codebooks, stage by stage

``fit.py`` is this line; ``encode.py`` goes the same way with a fitted decoder.
"""
