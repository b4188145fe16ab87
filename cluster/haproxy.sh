#!/bin/sh
# The HAProxy that Ray Serve starts, in four ways a better guest: it ends with the process that started it, even if that
# is killed; its metrics and statistics are on loopback, like every other listener; it takes slow clients upon itself:
# a replica is asked when the head of a request and its first 16 KB are there, and who takes 10 s for these gets a 408;
# and events that a replica has been sent are not sent to another one, which might store them twice.
# $TOWERLINE_HAPROXY is the real one; "-f" is followed by the configuration, which Ray has just written.
set -eu
previous=
for argument in "$@"; do
  if [ "$previous" = -f ]; then
    sed -i -E -e 's/^( *bind )\*?:([0-9]+)$/\1127.0.0.1:\2/' \
      -e '/^frontend http_frontend$/a \    http-request disable-l7-retry if { path /v1/feedback }' \
      -e '/^defaults$/a \    option http-buffer-request\n    timeout http-request 10s' "$argument"
  fi
  previous=$argument
done
exec setpriv --pdeathsig KILL -- "$TOWERLINE_HAPROXY" "$@"
