"""Run a program in this process as ``python script.py`` or ``python -m module`` would, and return its exit status.

The program gets a fresh ``__main__`` module, which stays in `sys.modules` afterwards: functions that it defined may
still be asked for by name. A traceback shows the program's frames only.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

__all__ = ["run_module", "run_script"]

CANNOT_RUN = 2  # exit status of `python` itself for a script that it cannot open
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def run_script(
    path: str, argv: Sequence[str], extra_globals: Mapping[str, object] | None = None, *, keep_path: bool = False
) -> int:
    """Run the script `path` as ``python path argv...`` would.

    Parameters
    ----------
    path : str
        A Python file, or a folder or zip archive that holds ``__main__.py``.
    argv : sequence of str
        Its arguments, without its own name.
    extra_globals : mapping, optional
        Names to define in its ``__main__`` before it starts.
    keep_path : bool, optional
        Put the script's folder before ``sys.path[0]`` instead of in its place.

    Returns
    -------
    int
        Exit status, 0..255: 0 at the end, that of its `SystemExit`, 1 after any other exception (whose traceback was
        shown by `sys.excepthook`), 130 after `KeyboardInterrupt`, 2 if the file cannot be read.
    """
    absolute = os.path.abspath(path)
    sys.argv[:] = [path, *argv]
    main = _fresh_main(extra_globals)
    if os.path.isdir(absolute) or _is_archive(absolute):
        _set_first_path(absolute, keep_path)
        return _exit_status(lambda: _run_found(main, PathFinder.find_spec("__main__", [absolute]), path))
    try:
        with io.open_code(absolute) as file:
            source = file.read()
    except OSError as exc:
        print(f"{sys.executable}: can't open file {absolute!r}: {exc}", file=sys.stderr)
        return CANNOT_RUN
    _set_first_path(os.path.dirname(os.path.realpath(path)), keep_path)
    main.__file__ = absolute
    main.__loader__ = SourceFileLoader("__main__", absolute)
    main.__dict__["__cached__"] = None
    return _exit_status(lambda: exec(compile(source, absolute, "exec", dont_inherit=True), main.__dict__))


def run_module(name: str, argv: Sequence[str]) -> int:
    """Run the module or package `name` as ``python -m name argv...`` would; the rest is as in `run_script`."""
    sys.argv[:] = ["-m", *argv]
    main = _fresh_main(None)
    _set_first_path(os.getcwd(), keep=False)
    return _exit_status(lambda: _run_found(main, _find_module(name), name))


def _find_module(name: str) -> ModuleSpec | None:
    """Return where the program of the module or package `name` is; its parent packages are imported for that."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(name + ".__main__")
    except ImportError as exc:
        if exc.name and f"{name}.".startswith(f"{exc.name}."):
            return None
        raise  # an import inside a parent package failed
    return spec


def _run_found(main: types.ModuleType, spec: ModuleSpec | None, name: str) -> None:
    """Run what an import system found for `name`, which may be nothing."""
    loader = None if spec is None else spec.loader
    get_code: Callable[[str], types.CodeType | None] | None = getattr(loader, "get_code", None)
    code = None if spec is None or get_code is None else get_code(spec.name)
    if spec is None or code is None:
        raise SystemExit(f"{sys.executable}: no module named {name} that can be run as a program")
    main.__spec__ = spec
    main.__package__ = spec.parent
    main.__loader__ = loader
    if spec.has_location:
        main.__file__ = spec.origin
        main.__dict__["__cached__"] = spec.cached
    if sys.argv[0] == "-m" and spec.origin is not None:
        sys.argv[0] = spec.origin
    exec(code, main.__dict__)


def _fresh_main(extra_globals: Mapping[str, object] | None) -> types.ModuleType:
    main = types.ModuleType("__main__")
    main.__dict__.update({"__builtins__": sys.modules["builtins"], "__annotations__": {}, **(extra_globals or {})})
    sys.modules["__main__"] = main
    return main


def _set_first_path(folder: str, keep: bool) -> None:
    """Make `folder` the first entry of `sys.path`, in the place of the one that the interpreter put there."""
    if getattr(sys.flags, "safe_path", False) or sys.flags.isolated:
        return
    if keep:
        sys.path.insert(0, folder)
    else:
        sys.path[:1] = [folder]


def _is_archive(path: str) -> bool:
    """Tell whether the file begins or ends as a zip archive does; `zipfile` is imported only if it may be one."""
    if path.endswith(".py"):
        return False
    import zipfile  # rare, and slow to import

    return zipfile.is_zipfile(path)


def _exit_status(program: Callable[[], None]) -> int:
    """Run the program and return its exit status: the one place where what it raises, whatever that is, is caught."""
    try:
        program()
    except BaseException as exc:  # noqa: BLE001 - as the interpreter itself does
        fault = exc
    else:
        return 0
    return _report(fault)  # no longer inside the handler: what a hook of the program raises has no context


def _report(exc: BaseException) -> int:
    """Do what the interpreter does with an exception that nobody caught, and return the exit status."""
    if isinstance(exc, SystemExit):
        code = exc.code
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF
        print(code, file=sys.stderr)
        return 1
    _drop_own_frames(exc)
    try:
        sys.excepthook(type(exc), exc, exc.__traceback__)
    except Exception as fault:  # noqa: BLE001 - the program's own hook
        _drop_own_frames(fault)
        print("Error in sys.excepthook:", file=sys.stderr)
        sys.__excepthook__(type(fault), fault, fault.__traceback__)
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(type(exc), exc, exc.__traceback__)
    return INTERRUPTED if isinstance(exc, KeyboardInterrupt) else 1


def _drop_own_frames(exc: BaseException) -> None:
    """Remove the leading frames that belong to this module or to the import machinery from the traceback of `exc`."""
    traceback = exc.__traceback__
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if filename != __file__ and not filename.startswith("<frozen importlib"):
            break
        traceback = traceback.tb_next
    exc.__traceback__ = traceback
