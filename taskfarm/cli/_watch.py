"""How the job stands, by what its hub says, for the process that launched it; see `taskfarm.cli._watchdog`."""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
from collections.abc import Sequence

from taskfarm.runtime.lines import Lines
from taskfarm.runtime.survival.outpost import launcher_grace_s
from taskfarm.runtime.survival.vitals import LOST_STATUS, SILENCE_OF_HOST

__all__ = ["Watch"]

STRANGER_S = 5.0  # for a connection to say who it is
MAX_STRANGERS = 64
_BAD_PEER = (OSError, ValueError, KeyError, TypeError, RecursionError)


class Watch:
    """What is known of the job: from whom, and since when.

    Parameters
    ----------
    listener : socket
        Where the hub connects.
    secret : str
        What it begins with, or is dropped.
    """

    def __init__(self, listener: socket.socket, secret: str) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._secret = secret.encode()
        self._strangers: dict[socket.socket, tuple[Lines, float]] = {}
        self._hub: tuple[socket.socket, Lines] | None = None
        self._host = ""
        self._limit_s = 0.0
        self._heard_at = 0.0
        self._is_over = False  # the hub has said all that it has to say
        self.status = LOST_STATUS
        self.kill_at: float | None = None  # when the launcher is to be ended

    def look(self, now: float) -> str:
        """Take in what has come; return a line for the user, or an empty string."""
        with contextlib.suppress(BlockingIOError):
            while len(self._strangers) < MAX_STRANGERS:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                self._strangers[sock] = (Lines(), now)
        for sock, (lines, since) in list(self._strangers.items()):
            self._hear_stranger(sock, lines, since, now)
        if self._hub is not None:
            self._hear_hub(*self._hub, now)
        if self._hub is None or self._is_over or now - self._heard_at <= SILENCE_OF_HOST * self._limit_s:
            return ""
        self._is_over = True
        self.kill_at = now + launcher_grace_s(self._limit_s)
        return (
            f"host {self._host} with rank 0 is lost: not heard of for {SILENCE_OF_HOST * self._limit_s:g} s; "
            f"ending the job with status {LOST_STATUS}"
        )

    def _hear_stranger(self, sock: socket.socket, lines: Lines, since: float, now: float) -> None:
        try:
            found = lines.feed(_received(sock))
            if found:
                secret, limit_s, host = found[0].split(b" ", 2)
                if self._hub is not None or not hmac.compare_digest(secret, self._secret):
                    raise ValueError("a stranger")
                self._limit_s, self._host, self._heard_at = float(limit_s), host.decode(), now
                self._hub = (sock, lines)
                del self._strangers[sock]
                self._take(found[1:], now)
            elif now - since > STRANGER_S:
                raise ValueError("says nothing")
        except _BAD_PEER:
            self._strangers.pop(sock, None)
            sock.close()

    def _hear_hub(self, sock: socket.socket, lines: Lines, now: float) -> None:
        try:
            self._take(lines.feed(_received(sock)), now)
        except _BAD_PEER:  # it is gone: the launcher has seen that, unless it has lost the host
            sock.close()
            self._hub = None
            if not self._is_over:
                self._is_over = True
                self.kill_at = now + self._limit_s

    def _take(self, lines: Sequence[bytes], now: float) -> None:
        for line in lines:
            self._heard_at = now
            message = json.loads(line)
            if "end" in message:
                status, grace_s = message["end"]
                self._is_over = True
                self.status, self.kill_at = int(status), now + float(grace_s)
            elif "free" in message:
                self._is_over = True


def _received(sock: socket.socket) -> bytes:
    try:
        data = sock.recv(65536)
    except BlockingIOError:
        return b""
    if not data:
        raise OSError("closed")
    return data
