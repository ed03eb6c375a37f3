"""Damage to files, as disks, transfers, editors and typing errors cause it, drawn at random from a seed."""

import io
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np

from tests.fuzz.structure import STRUCTURED

Change = Callable[[bytes, Random], bytes]
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?")
ABSURD = (b"nan", b"inf", b"-inf", b"1e30", b"-5", b"0", b"99999999", b"", b"x")
OTHER_CONTENT = (b"{}", b"null", b"[]", b"0", b"\n", b"\0" * 100, b"<html><body>404</body></html>", b"[{}]", b'""')
TRIES = 20


def damage(path: Path, others: Sequence[Path], random: Random) -> str:
    """Damages the file `path` in one random way; returns a description.

    Args:
        path: An existing file.
        others: Files of other kinds, one of which may replace it.
        random: Decides the way and the place.
    """
    draw = random.random()
    if draw < 0.12:
        return _replace(path, others, random)
    content = path.read_bytes()
    for _ in range(TRIES):
        changes = BYTES if draw < 0.45 else _structured(path)
        name = random.choice(sorted(changes))
        changed = changes[name](content, random) if content else b"x"
        if changed != content:
            _write(path, changed)
            return name
        draw = random.random()
    _write(path, b"")
    return "empty"


def _structured(path: Path) -> dict[str, Change]:
    """Returns the changes after which a file of this kind is still one of its kind."""
    changes = {name: change for name, (suffixes, change) in STRUCTURED.items() if path.suffix in suffixes}
    text = path.suffix in (".txt", ".xml", ".json", ".yaml", ".csv", ".line")
    return (LINES | changes if text else changes) or BYTES


def _replace(path: Path, others: Sequence[Path], random: Random) -> str:
    """Replaces the file by something else."""
    way = random.choice(("missing", "empty", "directory", "dangling link", "content", "other file", "other file"))
    other = random.choice(list(others))
    content = other.read_bytes()
    path.unlink()
    if way == "directory":
        path.mkdir()
    elif way == "dangling link":
        path.symlink_to(path.parent / "nothing-here")
    elif way == "empty":
        path.touch()
    elif way == "content":
        content = random.choice(OTHER_CONTENT)
        path.write_bytes(content)
        return f"content {content[:30]!r}"
    elif way == "other file":
        path.write_bytes(content)
        return f"replaced by {other.name}"
    return way


def _write(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def difference(before: bytes, after: bytes) -> str:
    """Describes the first place at which the contents of two files differ."""
    common = min(len(before), len(after))
    unequal = np.flatnonzero(np.frombuffer(before, np.uint8, common) != np.frombuffer(after, np.uint8, common))
    same = int(unequal[0]) if len(unequal) else common
    start = max(0, same - 10)
    return f"at byte {same} of {len(before)}: {before[start : same + 25]!r} -> {after[start : same + 25]!r}"


# Bytes


def _range(size: int, random: Random) -> tuple[int, int]:
    """Returns a range of bytes; short ranges are as likely as long ones."""
    length = max(1, int(size ** random.random()))
    start = random.randrange(size - length + 1)
    return start, start + length


def _flip_bit(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _flip_byte(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    changed[random.randrange(len(content))] ^= random.randrange(1, 256)
    return bytes(changed)


def _truncate(content: bytes, random: Random) -> bytes:
    kept = random.choice((random.randrange(len(content)), max(0, len(content) - random.randrange(1, 64))))
    return content[:kept]


def _zero(content: bytes, random: Random) -> bytes:
    start, stop = _range(len(content), random)
    return content[:start] + b"\0" * (stop - start) + content[stop:]


def _duplicate(content: bytes, random: Random) -> bytes:
    start, stop = _range(len(content), random)
    return content[:stop] + content[start:]


def _insert(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.randbytes(random.choice((1, 2, 4, 64))) + content[at:]


def _swap(content: bytes, random: Random) -> bytes:
    cuts = sorted(random.randrange(len(content) + 1) for _ in range(4))
    a, b, c, d = cuts
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


BYTES: dict[str, Change] = {
    "flip a bit": _flip_bit,
    "flip a byte": _flip_byte,
    "truncate": _truncate,
    "zero a range": _zero,
    "duplicate a range": _duplicate,
    "insert bytes": _insert,
    "swap two ranges": _swap,
}


# Lines and numbers of text


def _digit(content: bytes, random: Random) -> bytes:
    places = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    if not places:
        return content
    at = random.choice(places)
    return content[:at] + str(random.randrange(10)).encode() + content[at + 1 :]


def _number(content: bytes, random: Random) -> bytes:
    numbers = list(NUMBER.finditer(content))
    if not numbers:
        return content
    one = random.choice(numbers)
    return content[: one.start()] + random.choice(ABSURD) + content[one.end() :]


def _drop_line(content: bytes, random: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.pop(random.randrange(len(lines)))
    return b"".join(lines)


def _duplicate_line(content: bytes, random: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    at = random.randrange(len(lines))
    return b"".join([*lines[: at + 1], *lines[at:]])


def _swap_lines(content: bytes, random: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    a, b = random.randrange(len(lines)), random.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


def _line_ends(content: bytes, random: Random) -> bytes:
    return content.replace(b"\n", random.choice((b"\r\n", b"\r", b"\n\n", b" \n")))


def _encoding(content: bytes, random: Random) -> bytes:
    text = io.TextIOWrapper(io.BytesIO(content), encoding="latin-1").read()
    return random.choice((b"\xef\xbb\xbf" + content, text.encode("utf-16"), text.encode("utf-16-le")))


LINES: dict[str, Change] = {
    "change a digit": _digit,
    "change a number": _number,
    "drop a line": _drop_line,
    "duplicate a line": _duplicate_line,
    "swap two lines": _swap_lines,
    "change line ends": _line_ends,
    "change the encoding": _encoding,
}
