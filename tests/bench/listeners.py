"""Many live-status streams at once, as a program of its own: one of all tasks, and one of each of the first tasks.
Says `open` when all are, and reads until it is ended.

    python -m tests.bench.listeners PORT TOKEN STREAMS
"""

import asyncio
import sys

#: Connections that are being opened at a time.
AT_ONCE = 50


async def _listen(port: int, token: str, address: str, gate: asyncio.Semaphore, begun: asyncio.Event) -> None:
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer.split(b"\r\n")[0] or b"text/event-stream" not in answer:
            raise ConnectionError(f"{address} answered {answer[:80]!r}")
    begun.set()
    while await reader.read(65_536):
        pass
    raise ConnectionError(f"{address} was ended")


async def _main(port: int, token: str, streams: int) -> None:
    addresses = ["/api/v1/task/events"]
    addresses += [f"/api/v1/task/{number}/events" for number in range(1, streams)]
    gate = asyncio.Semaphore(AT_ONCE)
    begun = [asyncio.Event() for _ in addresses]
    async with asyncio.TaskGroup() as group:
        for address, event in zip(addresses, begun, strict=True):
            group.create_task(_listen(port, token, address, gate, event))
        for event in begun:
            await event.wait()
        print("open", flush=True)  # noqa: T201


if __name__ == "__main__":
    try:
        asyncio.run(_main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    except* OSError as errors:
        sys.exit(str(errors.exceptions[0]))
