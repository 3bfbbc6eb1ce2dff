# The packages' binary in a guest: it starts, attaches, serves, answers and ends as it is told to.
set -e
tcpclose --version
tcpclose agent --listen 127.0.0.1:9923 &
agent=$!
tries=0
until wget -q -O /tmp/metrics http://127.0.0.1:9923/metrics; do
    tries=$((tries + 1))
    [ $tries -lt 120 ]
    sleep 1
done
grep '^tcpclose_build_info' /tmp/metrics
grep '^tcpclose_hook_info' /tmp/metrics
tcpclose stuck
tcpclose ports
kill -TERM $agent
wait $agent
echo "the agent has ended"
