"""Damage to the content of a file, as disks, copies and editors do it: a function of a random generator."""

import random

KINDS = ("flip", "cut", "zero", "double", "drop", "noise")


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    """Returns `content` with a flipped bit, without its end, or with a range zeroed, doubled, dropped or random."""
    result = bytearray(content)
    first, length = rng.randrange(len(result)), rng.randrange(1, max(2, min(200, len(result) // 3)))
    part = result[first : first + length]
    if kind == "flip":
        result[first] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del result[first:]
    else:
        changed = {"zero": bytes(len(part)), "double": part * 2, "drop": b"", "noise": rng.randbytes(len(part))}
        result[first : first + length] = changed[kind]
    return bytes(result)
