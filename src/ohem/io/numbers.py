"""Numbers as text, the same in tables, sentences, charts and pages."""


def format_number(value: float, digits: int = 1, *, sign: bool = False) -> str:
    """Formats a number with `digits` decimals.

    Args:
        value: the number.
        digits: decimals after the point.
        sign: whether positive numbers begin with "+", as differences do.

    Returns:
        The text. A number that rounds to zero has no sign: "0.0", never "-0.0" or "+0.0".
    """
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.lstrip("+-") if not float(text) else text
