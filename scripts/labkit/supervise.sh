#!/bin/sh
# Run one process of the lab and file how it ended.
#   supervise.sh DIRECTORY COMMAND...
# DIRECTORY/pid gets "PID START-TIME" (clock ticks since boot, so that a number that
# was used again is not taken for it), /exit the exit code, /log what it prints.
# A shell, because waiting for a child in Python would cost 10 MB for each agent.
directory=$1
shift
sh -c '
    directory=$1
    shift
    start_time() { shift 21; echo "$1"; }
    read -r stat <"/proc/$$/stat"
    echo "$$ $(start_time $stat)" >"$directory/.pid"
    mv "$directory/.pid" "$directory/pid"
    exec "$@"
' sh "$directory" "$@" >>"$directory/log" 2>&1
echo "$?" >"$directory/.exit"
mv "$directory/.exit" "$directory/exit"
