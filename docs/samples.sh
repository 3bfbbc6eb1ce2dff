#!/bin/sh
# The output that the book's pages show: an agent, a server on port 8080 that leaks, one on 8081 that does not, and a client of
# both with 1,024 ephemeral ports, in a network namespace of their own. Run as root:
#
#   unshare --net docs/samples.sh target/release/tcpclose [SECONDS]
set -eu
tcpclose=$(realpath "$1")
seconds=${2:-200}
cd "$(mktemp -d)"
ip link set lo up
sysctl -qw net.ipv4.ip_local_port_range="32768 33791" net.ipv4.tcp_tw_reuse=0
ulimit -n 4096

cat > server.py <<'PYTHON'
import socket, sys, threading, time
port, leaks = int(sys.argv[1]), sys.argv[2] == "leaks"
listener = socket.create_server(("127.0.0.1", port), backlog=512)
held = []
def serve(connection, number):
    if leaks:
        # Two of three are read to their end, none is closed.
        if number % 3:
            while connection.recv(64):
                pass
        held.append(connection)
        return
    connection.recv(64)
    connection.sendall(b"ok")
    connection.recv(64)
    time.sleep(0.004)
    connection.close()
number = 0
while True:
    connection, _ = listener.accept()
    number += 1
    threading.Thread(target=serve, args=(connection, number), daemon=True).start()
PYTHON
cat > client.py <<'PYTHON'
import socket, time
turn = 0
while True:
    turn += 1
    for port in ([8080] if turn % 4 == 0 else []) + [8081]:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(b"hello")
        if port == 8081:
            connection.recv(64)
        connection.close()
    time.sleep(0.15)
PYTHON

"$tcpclose" agent --listen 127.0.0.1:9923 --socket agent.sock --state-dir . --netns current --stuck-after 30s,10m,1h \
    --name-port 8080 --name-port 8081 --allow-kill > agent.log 2>&1 &
started=$!
trap 'kill $started' EXIT
sleep 4
for command in "server.py 8080 leaks" "server.py 8081 fine"; do
    python3 $command &
    started="$started $!"
done
sleep 1
python3 client.py &
started="$started $!"
sleep "$seconds"

cat agent.log
sample() {
    echo
    echo "\$ tcpclose $*"
    "$tcpclose" "$@" --socket agent.sock || echo "(exit status $?)"
}
sample stuck --port 8080
sample stuck --port 8080 --sockets --limit 4
sample ports
sample ports --no-agent
sample exhaustion --limit 2
sample kill --older-than 30s --port 8080 --limit 2
sample kill --older-than 30s --port 8080 --limit 2 --yes
sample verify --for 10s
echo
echo '$ tcpclose watch --port 8081'
timeout 3 "$tcpclose" watch --port 8081 --socket agent.sock | head -7
timeout 3 "$tcpclose" watch --port 8081 --handshake --socket agent.sock | head -11
timeout 3 "$tcpclose" watch --port 8081 --json --socket agent.sock | head -2
echo
curl -s http://127.0.0.1:9923/metrics | grep -E '^tcpclose_(sockets|stuck|oldest|closes).*port="80(80|81)"'
sample stuck --port 8080 --json | cut -c1-1500
