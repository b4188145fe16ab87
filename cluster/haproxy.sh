#!/bin/sh
# The HAProxy that Ray Serve starts, in five ways a better guest: it ends with the process that started it, even if that
# is killed; its metrics and statistics are on loopback, like every other listener; it takes slow clients upon itself:
# a replica is asked when the head of a request and its first 16 KB are there, and who takes 10 s for these gets a 408;
# events that a replica has been sent are not sent to another one, which might store them twice; and Ray Serve is told
# not to watch recommendations, which the endpoint itself does at less cost (serve/disconnects.py, serve/limits.py).
# $TOWERLINE_HAPROXY is the real one; "-f" is followed by the configuration, which Ray has just written.
set -eu
previous=
for argument in "$@"; do
  if [ "$previous" = -f ]; then
    sed -i -E -e 's/^( *bind )\*?:([0-9]+)$/\1127.0.0.1:\2/' \
      -e '/^frontend http_frontend$/a \    http-request disable-l7-retry if { path /v1/feedback }' \
      -e '/^frontend http_frontend$/a \    acl recommendation path_beg /v1/recommend' \
      -e '/^frontend http_frontend$/a \    http-request set-header x-request-disconnect-disabled ?1 if recommendation' \
      -e '/^frontend http_frontend$/a \    http-request set-header x-request-timeout-seconds 0 if recommendation' \
      -e '/^defaults$/a \    option http-buffer-request\n    timeout http-request 10s\n    option dontlog-normal' "$argument"
  fi
  previous=$argument
done
exec setpriv --pdeathsig KILL -- "$TOWERLINE_HAPROXY" "$@"
