"""The coordinator's port, shared: JAX's own connections pass through, and the processes' line.

JAX ends a process by an abort, with a stack trace and without the name of a host, as soon as its
connection to the coordinator closes. So it does not see that: process 0 listens on the address of
the coordinator in front of JAX's service, and each other process has a relay before JAX's client,
which keeps the client's connection open when the coordinator's is gone. `watch` ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

HELLO = b"light-llm "
"""How a process's own line begins; JAX's begin otherwise (HTTP/2 begins with PRI)."""

LOOPBACK = "127.0.0.1"
RETRY = 0.2  # seconds
_CHUNK = 1 << 16

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]
OnLine = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


async def listen_in_front(host: str, port: int, service: int, on_line: OnLine) -> None:
    """Listen on process 0's address: JAX's connections go on to the port `service` here.

    Args:
        on_line: gets each line of a process, with its first words.

    Raises:
        OSError: another program listens there.
    """

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
            first = await reader.readexactly(len(HELLO))
            if first == HELLO:
                await on_line(await reader.readline(), reader, writer)
            else:
                there = await asyncio.open_connection(LOOPBACK, service)
                there[1].write(first)
                await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
        writer.close()

    everywhere = host in ("::", "") and socket.has_dualstack_ipv6()
    listening = socket.create_server(
        ("::" if everywhere else host or "0.0.0.0", port),
        family=socket.AF_INET6 if everywhere or ":" in host else socket.AF_INET,
        dualstack_ipv6=everywhere,
        backlog=4096,
    )
    await asyncio.start_server(accepted, sock=listening, backlog=4096)


async def relay_to(host: str, port: int) -> int:
    """Listen on a port of the loopback interface that leads to process 0; returns it."""

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await connect(host, port)
        with contextlib.suppress(OSError):
            await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer, hold_open=True))

    server = await asyncio.start_server(accepted, LOOPBACK, 0)
    return int(server.sockets[0].getsockname()[1])


async def connect(host: str, port: int) -> Line:
    """A connection to process 0, tried until it listens."""
    while True:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(host, port)
        await asyncio.sleep(RETRY)


async def _pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, hold_open: bool = False
) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
    if not hold_open:
        sink.close()


@contextlib.contextmanager
def between(serve: Callable[[str], str], reach: Callable[[str, int, int], str]) -> Iterator[None]:
    """Change the addresses that jax.distributed.initialize uses while the context is open.

    It has no public way to do so. SLURM and others tell them to nobody but JAX itself.

    Args:
        serve: the address where JAX would listen -> where it is to listen.
        reach: (the coordinator's address, this process, how many there are) -> where to connect.
    """
    from jax._src import distributed

    real: Any = distributed._jax

    class Between:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        @staticmethod
        def get_distributed_runtime_service(address: str, *args: Any, **named: Any) -> Any:
            return real.get_distributed_runtime_service(serve(address), *args, **named)

        @staticmethod
        def get_distributed_runtime_client(
            address: str, process: int, *args: Any, **named: Any
        ) -> Any:
            count = distributed.global_state.num_processes
            address = reach(address, process, count)
            return real.get_distributed_runtime_client(address, process, *args, **named)

    setattr(distributed, "_jax", Between())  # noqa: B010
    try:
        yield
    finally:
        setattr(distributed, "_jax", real)  # noqa: B010
