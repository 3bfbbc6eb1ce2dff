"""Programs that leave connections open, each in its own way: python3 programs.py WAY PORT. They end when their standard input does.
Libraries are imported by the ways that use them."""

import asyncio
import http.client
import os
import socket
import socketserver
import sys
import threading
import time

way, port = sys.argv[1], int(sys.argv[2])


def with_the_test():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=with_the_test, daemon=True).start()
kept = []


def listener():
    listening = socket.create_server(("127.0.0.1", port), backlog=512)
    print("ready", flush=True)
    return listening


def request(connection):
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"ok"


def connection():
    one = http.client.HTTPConnection("127.0.0.1", port)
    request(one)
    return one


def leaking_server():
    """Reads to the end, and does not close."""
    listening = listener()
    while True:
        accepted, _ = listening.accept()
        while accepted.recv(4096):
            pass
        kept.append(accepted)


def hung_server():
    """Accepts, and reads from none."""
    listening = listener()
    while True:
        kept.append(listening.accept()[0])


def forgetful_server():
    """Does not close its first three connections, and closes all others."""
    listening = listener()
    while True:
        accepted, _ = listening.accept()
        while accepted.recv(4096):
            pass
        if len(kept) < 3:
            kept.append(accepted)
        else:
            accepted.close()


def leaking_client():
    """A new session for each request, none of which is closed."""
    print("ready", flush=True)
    while True:
        kept.append(connection())
        time.sleep(0.4)


def idle_pool():
    """Five connections that nothing uses any more."""
    kept.extend(connection() for _ in range(5))
    print("ready", flush=True)
    while True:
        time.sleep(60)


def used_pool():
    """Five connections, one of which is used now and then: the server has closed it by then, and there is a new one in its place."""
    kept.extend(connection() for _ in range(5))
    print("ready", flush=True)
    while True:
        time.sleep(4)
        one = kept.pop(0)
        try:
            request(one)
        except (http.client.RemoteDisconnected, OSError):
            one = connection()
        kept.append(one)


def leaking_asyncio_server():
    """Reads each stream to its end, and closes no writer: until then asyncio leaves a half-closed connection open."""

    async def serve(reader, writer):
        kept.append(writer)
        while await reader.read(4096):
            pass

    async def run():
        server = await asyncio.start_server(lambda reader, writer: serve(reader, writer), "127.0.0.1", port)
        print("ready", flush=True)
        await server.serve_forever()

    asyncio.run(run())


def leaking_threads():
    """A server of socketserver whose requests are not shut down."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            while self.request.recv(4096):
                pass
            kept.append(self.request)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

        def shutdown_request(self, request):
            pass

    server = Server(("127.0.0.1", port), Handler)
    print("ready", flush=True)
    server.serve_forever()


def leaking_parent():
    """A child serves and ends; its parent keeps a copy of each descriptor."""
    listening = listener()
    while True:
        accepted, _ = listening.accept()
        child = os.fork()
        if child == 0:
            while accepted.recv(4096):
                pass
            os._exit(0)
        os.waitpid(child, 0)
        kept.append(accepted)


def stopped_server():
    """Accepts one, and is stopped."""
    listening = listener()
    kept.append(listening.accept()[0])
    os.kill(os.getpid(), 19)


def slow_reader():
    """Reads a little of each, now and then."""
    listening = listener()

    def accept():
        while True:
            kept.append(listening.accept()[0])

    threading.Thread(target=accept, daemon=True).start()
    while True:
        for one in list(kept):
            one.recv(16)
        time.sleep(0.5)


def requests_leak():
    import requests

    print("ready", flush=True)
    while True:
        session = requests.Session()
        session.get(f"http://127.0.0.1:{port}/")
        kept.append(session)
        time.sleep(0.4)


def requests_stream_leak():
    import requests

    print("ready", flush=True)
    while True:
        kept.append(requests.get(f"http://127.0.0.1:{port}/", stream=True))
        time.sleep(0.4)


def urllib3_leak():
    import urllib3

    print("ready", flush=True)
    while True:
        pool = urllib3.PoolManager()
        pool.request("GET", f"http://127.0.0.1:{port}/")
        kept.append(pool)
        time.sleep(0.4)


def requests_pool():
    """Five threads have used one session at the same time."""
    import requests

    session = requests.Session()
    barrier = threading.Barrier(6)

    def use():
        response = session.get(f"http://127.0.0.1:{port}/", stream=True)
        barrier.wait()
        response.content

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    barrier.wait()
    for thread in threads:
        thread.join()
    print("ready", flush=True)
    time.sleep(1 << 30)


def urllib3_pool():
    """Used now and then."""
    import urllib3

    pool = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=5)
    responses = [pool.request("GET", "/", preload_content=False) for _ in range(5)]
    for response in responses:
        response.read()
        response.release_conn()
    print("ready", flush=True)
    while True:
        time.sleep(4)
        pool.request("GET", "/")


def aiohttp_pool():
    import aiohttp

    async def run():
        async with aiohttp.ClientSession() as session:

            async def use():
                async with session.get(f"http://127.0.0.1:{port}/") as response:
                    await response.read()

            await asyncio.gather(*(use() for _ in range(5)))
            print("ready", flush=True)
            while True:
                await asyncio.sleep(4)
                await use()

    asyncio.run(run())


def redis_leak():
    import redis

    print("ready", flush=True)
    while True:
        client = redis.Redis(port=port)
        client.ping()
        kept.append(client)
        time.sleep(0.4)


def redis_pool():
    """Five connections, then nothing."""
    import redis

    pool = redis.ConnectionPool(port=port)
    connections = [pool.get_connection("PING") for _ in range(5)]
    for one in connections:
        one.send_command("PING")
        one.read_response()
    for one in connections:
        pool.release(one)
    kept.append(pool)
    print("ready", flush=True)
    time.sleep(1 << 30)


globals()[way]()
