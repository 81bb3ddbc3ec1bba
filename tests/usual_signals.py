"""Signals as a program in the foreground has them.

What is started in the background, or by nohup, ignores interrupts or hang-ups and hands that on to its children, where
tests of what these signals do would wait for ever.
"""

from __future__ import annotations

import signal


def usual_signals() -> None:
    """No signal that tests send is ignored from here on, in this process and its children."""
    usual = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL, "SIGTERM": signal.SIG_DFL}
    for name, handler in usual.items():
        number = getattr(signal, name, None)  # Windows has no hang-ups
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
