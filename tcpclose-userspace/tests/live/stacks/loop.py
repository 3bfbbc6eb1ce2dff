"""An asyncio server that keeps connections whose peers have closed them, as leak.c does."""

import asyncio


class Keeping(asyncio.Protocol):
    held = []

    def connection_made(self, transport):
        self.held.append(transport)

    def eof_received(self):
        return True


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Keeping, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
