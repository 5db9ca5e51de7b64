#!/usr/bin/env bash
# A Ray cluster of this one machine to submit runs to, in the foreground: Ctrl-C (or SIGTERM) stops it, and only it.
#
#   launchers/local_cluster.sh                     all cores and GPUs, dashboard on http://127.0.0.1:8265
#   RAY_PORT=6380 DASHBOARD_PORT=8266 launchers/local_cluster.sh --num-cpus 8
#
# Further arguments go to `ray start`. Ray's ports execute code for whoever may speak to them: the dashboard listens on
# loopback, and all of them ask for the token (launchers/README.md), as Ray's inner ports listen on every interface.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH="$root/.venv/bin:$PATH"
port=${RAY_PORT:-6379}
dashboard=${DASHBOARD_PORT:-8265}
deadline=${START_DEADLINE:-120}

if ! command -v ray >/dev/null; then
    echo "local_cluster: there is no ray command; run \`make setup\` in $root first" >&2
    exit 2
fi
for taken in "$port" "$dashboard"; do
    if (: <"/dev/tcp/127.0.0.1/$taken") 2>/dev/null; then
        echo "local_cluster: port $taken is in use: stop what uses it, or set RAY_PORT and DASHBOARD_PORT" >&2
        exit 2
    fi
done

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Ray keeps the token in ~/.ray/auth_token, unless RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH says otherwise.
ray get-auth-token --generate >/dev/null

# The agent that takes jobs listens on 52365 unless told otherwise; with another Ray on the machine it would not come up,
# and the cluster would refuse jobs for ever with "No available agent".
agent=${AGENT_PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}

ray start --head --block --port "$port" --dashboard-agent-listen-port "$agent" \
    --include-dashboard true --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" "$@" &
head=$!
trap 'kill -TERM "$head" 2>/dev/null; wait "$head" || true' EXIT
trap 'exit 0' INT TERM

until (: <"/dev/tcp/127.0.0.1/$dashboard") 2>/dev/null; do
    if ! kill -0 "$head" 2>/dev/null; then
        echo "local_cluster: ray start ended before the cluster was up; its messages are above" >&2
        exit 5
    fi
    if ((SECONDS > deadline)); then
        echo "local_cluster: waited $deadline s for the dashboard on port $dashboard (START_DEADLINE)" >&2
        exit 5
    fi
    sleep 0.5
done

cat <<READY

The cluster is up.
  submit  RAY_AUTH_MODE=token rlpost submit configs/quickstart.yaml --address http://127.0.0.1:$dashboard
  jobs    RAY_AUTH_MODE=token ray job list --address http://127.0.0.1:$dashboard
  stop    Ctrl-C here, or: kill $$
READY
wait "$head"
