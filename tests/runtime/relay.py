"""A TCP relay on loopback for tests: counts bytes at the socket, and breaks links.

It knows nothing of frames, TLS or HTTP/2: what it counts is all that a connection
carries above TCP, whoever sends it. `up` is from who connects to the target.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine

HOST = "127.0.0.1"
READ_BYTES = 2**16
WAIT_SECONDS = 30.0


class Relay:
    """Forwards connections on `port` to a target port; a context.

    Args:
      target: port on loopback.
      port: to listen on; 0 takes a free one.

    Attributes:
      port: where it listens.
      connections: how many were taken.
      bytes_up: that were forwarded to the target.
      bytes_down: that were forwarded from it.
      refuse: whether new connections are reset at once.
    """

    def __init__(self, target: int, port: int = 0):
        self.target, self.port = target, port
        self.connections = 0
        self.bytes_up = self.bytes_down = 0
        self.refuse = False
        self._error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay")
        self._tasks: set[asyncio.Task] = set()

    def __enter__(self) -> "Relay":
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def cut(self) -> None:
        """Resets all connections, at both ends; new ones are taken."""
        self._do(self._cut())

    def hold(self, up: bool = True, down: bool = True) -> None:
        """Stops forwarding, also of an end, and closes nothing: half-open."""

        async def work():
            for direction, holds in (("up", up), ("down", down)):
                if holds:
                    self._flows[direction].clear()

        self._do(work())

    def release(self) -> None:
        """Goes on, with what has come meanwhile."""

        async def work():
            for flow in self._flows.values():
                flow.set()

        self._do(work())

    def _do(self, work: Coroutine) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # for the thread that waits
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._flows = {"up": asyncio.Event(), "down": asyncio.Event()}
        for flow in self._flows.values():
            flow.set()
        server = await asyncio.start_server(self._accept, HOST, self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        await self._cut()
        await server.wait_closed()

    def _accept(self, reader, writer) -> None:
        # A plain function: asyncio would log it when a task of its own is canceled.
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cut(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader, writer) -> None:
        writers = [writer]
        try:
            if self.refuse:
                raise ConnectionAbortedError
            self.connections += 1
            far_reader, far = await asyncio.open_connection(HOST, self.target)
            writers.append(far)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump("up", reader, far))
                group.create_task(self._pump("down", far_reader, writer))
        except* (OSError, asyncio.CancelledError):
            for each in writers:
                _reset(each)
        finally:
            for each in writers:
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _pump(self, direction: str, reader, writer) -> None:
        flow = self._flows[direction]
        while True:
            try:
                data = await reader.read(READ_BYTES)
            except OSError:
                await flow.wait()  # a reset is held back, too
                raise
            await flow.wait()
            if not data:
                writer.write_eof()
                return
            # First counted: who gets the bytes may look at once.
            if direction == "up":
                self.bytes_up += len(data)
            else:
                self.bytes_down += len(data)
            writer.write(data)
            await writer.drain()


def _reset(writer) -> None:
    """Closes a connection so that its peer gets an error, not an end."""
    linger = struct.pack("ii", 1, 0)
    with contextlib.suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
