"""As leak.c."""

import socket
import sys
import time


def leak_0(connection):
    while connection.recv(64):
        pass


def leak_1(connection):
    while connection.recv(64):
        pass


def leak_2(connection):
    while connection.recv(64):
        pass


def leak_3(connection):
    while connection.recv(64):
        pass


def leak_4(connection):
    while connection.recv(64):
        pass


def main():
    leaks = [leak_0, leak_1, leak_2, leak_3, leak_4]
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    held = []
    for nth in range(int(sys.argv[1])):
        connection, _ = listener.accept()
        held.append(connection)
        leaks[nth % 5](connection)
    while True:
        time.sleep(1_000)


main()
