"""Telling functions and items apart across runs of a program."""

from __future__ import annotations

import functools
import hashlib
import types
from typing import Any

from taskfarm.errors import UsageError
from taskfarm.wire.codec import pack

__all__ = ["DIGEST_BYTES", "digest_of", "fingerprint", "name_of"]

DIGEST_BYTES = 16


def digest_of(obj: object) -> bytes:
    """Return a short digest of the pickle of `obj`.

    Raises
    ------
    UsageError
        If it does not pickle.
    """
    try:
        body, buffers = pack(obj)
    except Exception as exc:
        raise UsageError(f"journal: {obj!r:.100} does not pickle ({type(exc).__name__}: {exc}); give a key=") from exc
    digest = hashlib.blake2b(body, digest_size=DIGEST_BYTES)
    for buffer in buffers:
        digest.update(buffer)
    return digest.digest()


def name_of(fn: Any) -> str:
    """Return the name by which a journal knows `fn`."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"


def fingerprint(fn: Any) -> bytes:
    """Return what changes when the function's code, its defaults or what it holds change; not what it calls."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    _add(digest, fn)
    return digest.digest()


def _add(digest: hashlib.blake2b, fn: Any) -> None:
    if isinstance(fn, functools.partial):
        digest.update(b"partial")
        _add(digest, fn.func)
        digest.update(digest_of((fn.args, sorted(fn.keywords.items()))))
    elif isinstance(fn, types.MethodType):
        digest.update(b"method")
        _add(digest, fn.__func__)
        digest.update(digest_of(fn.__self__))
    elif isinstance(fn, types.FunctionType):
        _add_code(digest, fn.__code__)
        held = [cell.cell_contents for cell in fn.__closure__ or ()]
        for value in (*(fn.__defaults__ or ()), *sorted((fn.__kwdefaults__ or {}).items()), *held):
            if isinstance(value, types.FunctionType):
                _add(digest, value) if value is not fn else None
            else:
                digest.update(digest_of(value))
    else:
        digest.update(digest_of(fn))


def _add_code(digest: hashlib.blake2b, code: types.CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _add_code(digest, constant)
        elif isinstance(constant, frozenset):
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())
