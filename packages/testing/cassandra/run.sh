#!/bin/sh
# Runs a command for as long as standard input stays open, which the caller holds. However the caller ends, kill -9
# included, its end of the pipe closes, and the command is ended: no server is left behind.
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
[ -z "$CASSANDRA_PID_FILE" ] || echo "$server" >"$CASSANDRA_PID_FILE"
(
  cat <&3 >/dev/null
  kill -TERM "$server"
  tenths=0
  while kill -0 "$server" && [ "$tenths" -lt 100 ]; do sleep 0.1; tenths=$((tenths + 1)); done
  kill -KILL "$server"
) 2>/dev/null &
watch=$!
wait "$server"
code=$?
kill "$watch" 2>/dev/null
exit "$code"
