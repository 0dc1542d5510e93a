"""An IPython kernel on rank 0, with the other ranks at its service."""

from __future__ import annotations

from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from taskfarm.objects import _cells
from taskfarm.runtime import interrupts
from taskfarm.runtime.session import current

__all__ = ["start"]


class _FarmKernel(IPythonKernel):  # type: ignore[misc]  # a class of an untyped package
    """Lets an interrupt end a cell, but never tear a message apart; knows ``%%collective``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shell.register_magic_function(_cells.collective, "cell")

    def pre_handler_hook(self, *args: Any) -> None:
        """Before each cell the kernel installs the interpreter's own handler; ours takes its place."""
        super().pre_handler_hook(*args)
        controller = current().open_controller
        if controller is not None:
            interrupts.defer_on_controller(controller.transport)


def start(connection_file: str | None) -> None:
    """Serve clients until one of them shuts the kernel down.

    Parameters
    ----------
    connection_file : str or None
        Where to write how clients reach the kernel; by default a file in Jupyter's folder, whose name is printed.
    """
    words = [] if connection_file is None else [f"--IPKernelApp.connection_file={connection_file}"]
    IPKernelApp.launch_instance(argv=words, kernel_class=_FarmKernel)
