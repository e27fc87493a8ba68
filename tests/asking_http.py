"""A client of HTTP/1.1 for load tests, which costs little: one connection, one request at a time."""

import asyncio


class Connection:
    """A connection that is opened when it is first used, and again after the server closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, headers: str = "") -> tuple[int, bytes]:
        """Sends a body as JSON; returns the status and the body of the answer."""
        return await self._ask("POST", path, body, f"Content-Type: application/json\r\n{headers}")

    async def get(self, path: str) -> tuple[int, bytes]:
        """Returns the status and the body of the answer."""
        return await self._ask("GET", path, b"", "")

    async def _ask(self, method: str, path: str, body: bytes, headers: str) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, limit=1 << 22)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        head_lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in head_lines[1:] if line)
        if b"content-length" in fields:
            answer = await reader.readexactly(int(fields[b"content-length"]))
        else:
            answer = b"".join([chunk async for chunk in _chunks(reader)])
        if fields.get(b"connection") == b"close":
            self.close()
        return int(head_lines[0].split(b" ", 2)[1]), answer

    def close(self) -> None:
        """Closes the connection."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def _chunks(reader: asyncio.StreamReader):
    """The parts of a body in chunked transfer encoding."""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
