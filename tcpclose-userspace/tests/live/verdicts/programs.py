"""Programs that leave connections open, each in its own way: python3 programs.py WAY PORT. They end when their standard input does."""

import http.client
import os
import socket
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


globals()[way]()
