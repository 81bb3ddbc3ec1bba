"""Small parts of error messages."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    r"""What an error says in its first line, or its type where it says nothing.

    Example:
        >>> first_line(ValueError("bad shape\nlong story")), first_line(EOFError())
        ('bad shape', 'EOFError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
