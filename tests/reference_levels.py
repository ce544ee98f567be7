"""The slow and obvious twin of ``LevelMatrix``: one value after the other."""

import numpy as np


def quantize(values, widths, ranges, range_size, group_size, dtype):
    """Codes, and the values that they stand for."""
    wide = np.float64 if dtype == np.float64 else np.float32
    codes = np.zeros(values.size, int)
    decoded = np.zeros(values.size, wide)
    for i, value in enumerate(values.reshape(-1)):
        least, greatest = (wide(v) for v in ranges[i // range_size])
        top = wide(2 ** int(widths[i // group_size]) - 1)
        step = (greatest - least) / top
        if step > 0:
            codes[i] = min(max(round(float((wide(value) - least) / step)), 0), int(top))
        decoded[i] = least + wide(codes[i]) * step
    return codes.reshape(values.shape), decoded.reshape(values.shape).astype(dtype)


def packed_bits(codes, widths, group_size):
    """The streams of all widths as one text of bits, each filled up to whole bytes."""
    text = ""
    for bits in sorted(set(widths)):
        stream = ""
        for i, code in enumerate(codes.reshape(-1)):
            if widths[i // group_size] == bits:
                stream += f"{code:0{bits}b}"[::-1]
        text += stream + "0" * (-len(stream) % 8)
    return text
