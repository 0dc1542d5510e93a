"""Cells of an interactive session that run on every rank."""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import sys
from types import CodeType
from typing import Any

from taskfarm.errors import RemoteError, UsageError
from taskfarm.objects._calls import call_all
from taskfarm.runtime.session import current

__all__ = ["collective", "run_cell"]

_ALL = ("-a", "--all")


def collective(line: str, cell: str) -> None:
    """Run the cell on every rank: what ``%%collective`` does.

    On rank 0 its names are those of the session; every other rank has a namespace of its own, which persists (and
    which `run_code` uses, too). The value of a last expression is shown as that of any cell. A failure on any rank
    ends the cell, not the farm; the error names the rank.

    Parameters
    ----------
    line : str
        ``--all`` (``-a``) shows what the other ranks print as well, after the cell, with the rank before each line.
    cell : str
        Python without magics, ``!`` commands and ``await``.

    Raises
    ------
    SyntaxError
        Before anything is sent.
    UsageError
        For another option.
    RemoteError
        If the cell failed on other ranks only. What rank 0 raises is raised as it is, the others' failures its notes.
    """
    __tracebackhide__ = True
    words = line.split()
    if any(word not in _ALL for word in words):
        raise UsageError(f"%%collective {line}: the one option is --all, which shows what all ranks print")
    name = _name_of(cell)
    _compile(cell, name)
    try:
        texts = call_all(run_cell, cell, name, bool(words))
    except RemoteError as exc:  # says all by itself; frames of ours would hide it
        raise exc.with_traceback(None) from exc.__cause__
    for rank, text in enumerate(texts):
        for printed in text.splitlines():
            print(f"[{rank}] {printed}")


def run_cell(cell: str, name: str, capture: bool) -> str:
    """Run a cell on this rank.

    Parameters
    ----------
    cell : str
        Its code.
    name : str
        What tracebacks call it.
    capture : bool
        On ranks above 0: catch what it prints, and the text of the value of its last expression.

    Returns
    -------
    str
        What was caught; empty on rank 0.
    """
    session = current()
    namespace = vars(sys.modules["__main__"]) if session.rank == 0 else session.code_namespace
    # So that tracebacks show the lines, on this rank, too.
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    body, last = _compile(cell, name)
    caught = io.StringIO()
    with contextlib.ExitStack() as stack:
        if capture and session.rank != 0:
            stack.enter_context(contextlib.redirect_stdout(caught))
        exec(body, namespace)
        value: Any = None if last is None else eval(last, namespace)
        if session.rank == 0:
            sys.displayhook(value)
        elif capture and value is not None:
            print(repr(value))
    return caught.getvalue()


def _name_of(cell: str) -> str:
    return f"<collective cell {hash(cell) & 0xFFFFFFFF:08x}>"


def _compile(cell: str, name: str) -> tuple[CodeType, CodeType | None]:
    """Return the statements of a cell, and its last expression if it ends with one that no semicolon silences.

    Nothing is inherited: not this module's own ``from __future__ import``.
    """
    tree = ast.parse(cell, name)
    last: CodeType | None = None
    if tree.body and isinstance(expression := tree.body[-1], ast.Expr) and not cell.rstrip().endswith(";"):
        tree.body.pop()
        last = compile(ast.Expression(expression.value), name, "eval", dont_inherit=True)
    return compile(tree, name, "exec", dont_inherit=True), last
