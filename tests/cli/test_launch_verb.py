"""``cygnet launch``: the socket that it listens on."""

from __future__ import annotations

import asyncio
import socket

import pytest

from cygnet.cli.launch import _bound
from cygnet.errors import RequestError


def test_answers_are_not_held_back() -> None:
    async def main() -> int:
        found = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = _bound("127.0.0.1", 0)
        server = await asyncio.start_server(serve, sock=bound)
        _, writer = await asyncio.open_connection(*bound.getsockname())
        flag: int = await found
        writer.close()
        server.close()
        return flag

    assert asyncio.run(main()) != 0


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} .*choose another --port"):
            _bound("127.0.0.1", port)
    with pytest.raises(RequestError, match="from 0 "):
        _bound("127.0.0.1", 70000)
