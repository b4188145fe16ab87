#!/bin/sh
# The HAProxy that Ray Serve starts, in two ways a better guest: it ends with the process that started it, even if that
# is killed, and its metrics and statistics are on loopback, like every other listener.
# $TOWERLINE_HAPROXY is the real one; "-f" is followed by the configuration, which Ray has just written.
set -eu
previous=
for argument in "$@"; do
  if [ "$previous" = -f ]; then
    sed -i -E 's/^( *bind )\*?:([0-9]+)$/\1127.0.0.1:\2/' "$argument"
  fi
  previous=$argument
done
exec setpriv --pdeathsig KILL -- "$TOWERLINE_HAPROXY" "$@"
