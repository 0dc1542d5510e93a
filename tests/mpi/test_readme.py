"""Every block of README and documentation that is marked to run under MPI does, and prints what the page says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_blocks() -> ModuleType:
    """Return the script that reads and runs blocks, as a module."""
    spec = importlib.util.spec_from_file_location("docs_blocks", ROOT / "docs" / "blocks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


DOCS = load_blocks()
BLOCKS = [block for block in DOCS.all_blocks() if block.runs and block.needs_mpi]


def test_there_are_blocks() -> None:
    """The marks are found."""
    assert len(BLOCKS) > 10


@pytest.mark.parametrize("block", BLOCKS, ids=[block.name for block in BLOCKS])
def test_block(block: Any) -> None:
    """The block runs as pasted."""
    if block.needs and importlib.util.find_spec(block.needs) is None:
        pytest.skip(f"needs {block.needs}")
    assert list(DOCS.run_block(block)) == []
