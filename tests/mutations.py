"""Ways to damage a file of codes, or to make one up; each is ``(bytes, rng) -> bytes``."""

import json
import struct
from copy import deepcopy
from zlib import crc32

EVIL = (
    *(None, True, False, -1, 0, 1, 2, 3, 255, 256, 65536, 65537, 2**31, 2**63 - 1, 2**63, 2**64),
    *(10**12, 10**30, 0.5, 1.0, -0.0, 1e300, float("nan"), float("inf")),
    *("", "x", "1", "F16", "F32", "F64", "BF16", "U8", "I8", "00000000", "\ud800", "\0", "é" * 99),
    *([], {}, [0], [1], [1, 1], [10**6, 10**6], [2**62, 2**62], [[]], {"": 0}, [None], ["a", "a"]),
)


class Parts:
    """A file taken apart: its header as JSON, and its data."""

    def __init__(self, content):
        (length,) = struct.unpack("<Q", content[:8])
        self.header = json.loads(content[8 : 8 + length])
        self.metadata = self.header["__metadata__"]
        self.data = bytearray(content[8 + length :])

    def description(self):
        return json.loads(self.metadata["description"])

    def seal(self, text):
        """Put a description in, with its right checksum."""
        self.metadata["description"] = text
        checksum = crc32(text.encode("utf-8", "surrogatepass"))
        self.metadata["description_crc32"] = f"{checksum:08x}"
        return self

    def joined(self):
        # Escapes, since a lone surrogate has no UTF-8.
        text = json.dumps(self.header).encode("ascii")
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + bytes(self.data)


def flip(content, rng):
    """A few bytes, or bits, are others."""
    found = bytearray(content)
    for at in rng.integers(0, len(content), rng.integers(1, 9)):
        found[at] ^= 1 << rng.integers(8) if rng.random() < 0.5 else rng.integers(1, 256)
    return bytes(found)


def flip_data(content, rng):
    """The same, behind the header."""
    (length,) = struct.unpack("<Q", content[:8])
    return content[: 8 + length] + flip(content[8 + length :], rng)


def change_digit(content, rng):
    """A digit of the header is another, so that it is still JSON."""
    (length,) = struct.unpack("<Q", content[:8])
    digits = [i for i in range(8, 8 + length) if content[i : i + 1].isdigit()]
    found = bytearray(content)
    found[rng.choice(digits)] = ord(str(rng.integers(10)))
    return bytes(found)


def truncate(content, rng):
    """The end is missing, or there is more of it."""
    if rng.random() < 0.2:
        return content + rng.bytes(rng.integers(1, 100))
    return content[: rng.integers(len(content))]


def insert(content, rng):
    """There is something in between."""
    at = rng.integers(len(content))
    return content[:at] + rng.bytes(rng.integers(1, 20)) + content[at:]


def cut_out(content, rng):
    """Something in between is missing."""
    at = rng.integers(len(content))
    return content[:at] + content[at + rng.integers(1, 50) :]


def swap(content, rng):
    """Two pieces have changed places."""
    a, b = sorted(rng.integers(0, len(content), 2))
    length = rng.integers(1, 1 + max(1, min(b - a, len(content) - b, 64)))
    found = bytearray(content)
    found[a : a + length], found[b : b + length] = found[b : b + length], found[a : a + length]
    return bytes(found)


def other_length(content, rng):
    """The header is said to be longer or shorter."""
    (length,) = struct.unpack("<Q", content[:8])
    lengths = (0, 1, length - 1, length + 1, length + 8, len(content), 10**8, 10**8 + 1, 2**63)
    length = lengths[rng.integers(len(lengths))] if rng.random() < 0.7 else rng.integers(2**40)
    return struct.pack("<Q", int(length)) + content[8:]


def edit_header(content, rng):
    """One value of the header is another."""
    parts = Parts(content)
    _edit(parts.header, rng)
    return parts.joined()


def swap_offsets(content, rng):
    """Two tensors have each other's data."""
    parts = Parts(content)
    names = [name for name in parts.header if name != "__metadata__"]
    a, b = (parts.header[names[i]] for i in rng.integers(0, len(names), 2))
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    if rng.random() < 0.5:
        a["shape"], b["shape"], a["dtype"], b["dtype"] = (
            b["shape"],
            a["shape"],
            b["dtype"],
            a["dtype"],
        )
    return parts.joined()


def edit_description(content, rng):
    """One value of the description is another, and its checksum is right."""
    parts = Parts(content)
    description = parts.description()
    for _ in range(rng.integers(1, 3)):
        _edit(description, rng)
    return parts.seal(json.dumps(description)).joined()


def garble_description(content, rng):
    """The text of the description is damaged, and its checksum is right."""
    parts = Parts(content)
    text = parts.metadata["description"]
    at = int(rng.integers(len(text)))
    a, b = sorted(int(i) for i in rng.integers(0, len(text), 2))
    choices = (
        text[:at] + text[at + 1 :],
        text[:at] + chr(rng.integers(32, 127)) + text[at + 1 :],
        text[:b] + text[a:],  # a piece twice
        text[:at] + "[" * 10_000,
        text.replace('"n_codes"', '"n_books":1,"n_codes"', 1),  # a key twice
        text.replace(":1,", ":" + "1" * 5000 + ",", 1),
    )
    return parts.seal(choices[rng.integers(len(choices))]).joined()


def edit_data(content, rng):
    """Data is other data, and all checksums are right."""
    parts = Parts(content)
    for at in rng.integers(0, len(parts.data), rng.integers(1, 5)):
        parts.data[at] = rng.choice([0, 1, 255, rng.integers(256)])
    return reseal(parts).joined()


def reseal(parts):
    """Make all checksums those of the data."""
    description = parts.description()

    def checksum(name):
        begin, end = parts.header[name]["data_offsets"]
        return f"{crc32(parts.data[begin:end]):08x}"

    for name, entry in description["compressed"].items():
        for part in entry["crc32"]:
            entry["crc32"][part] = checksum(f"{name}.{part}")
    for name, entry in description["carried"].items():
        entry["crc32"] = checksum(name)
    return parts.seal(json.dumps(description, ensure_ascii=False))


def _edit(value, rng):
    """Change something within a JSON object or array: replace, delete, add, rename."""
    holders = [value]
    for holder in holders:
        inner = holder.values() if isinstance(holder, dict) else holder
        holders.extend(child for child in inner if isinstance(child, dict | list))
    holders = [holder for holder in holders if holder]
    holder = holders[rng.integers(len(holders))]
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = keys[rng.integers(len(keys))]
    other = keys[rng.integers(len(keys))]
    action = rng.integers(6)
    if action == 0:
        del holder[key]
    elif action == 1:
        holder[key], holder[other] = holder[other], holder[key]
    elif action == 2 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key) if rng.random() < 0.5 else deepcopy(holder[key])
    elif action == 3 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
        holder[key] += int(rng.integers(-2, 3))
    else:
        holder[key] = deepcopy(EVIL[rng.integers(len(EVIL))])


DAMAGE = (flip, flip_data, change_digit, truncate, insert, cut_out, swap)
DAMAGE += (other_length, edit_header, swap_offsets)
"""What checksums find."""

FORGERY = (edit_description, garble_description, edit_data)
"""What they do not: what comes out may be another file, and a valid one."""
