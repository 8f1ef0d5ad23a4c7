r"""Whether an interrupt is a user's, or the way in which a callback ends training.

Note [Two interrupts]
---------------------
skorch's callbacks end training by ``raise KeyboardInterrupt``, and Ctrl-C raises the same exception, in
callbacks as well. The first ends one training as planned; to take the second for it would have a
search score a model half trained and go on. Nothing in the exception tells them apart, but the
instruction at which it came up does: a statement raises the first, while Python (from 3.11 on) looks
for signals at calls and jumps only. An interrupt without such an instruction counts as the user's, so
that at worst too much ends.
"""

from __future__ import annotations

import dis

__all__ = ["is_raised_by_statement"]


def is_raised_by_statement(error: BaseException) -> bool:
    """Whether a ``raise`` statement raised it. See Note [Two interrupts].

    Parameters
    ----------
    error : BaseException
        That was caught.
    """
    last = error.__traceback__
    if last is None:
        return False
    while last.tb_next is not None:
        last = last.tb_next
    instruction = last.tb_frame.f_code.co_code[last.tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"
