"""What Ray and MLflow read from the environment, set in one place before either is imported.

Each name is only a default: a value that is already set stays.
"""

import os

ENVIRONMENT = {
    # Every listener is on loopback. Left unset, Ray's answer depends on whether this user ever made a token.
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A model is a handful of files; a bar per download would only fill the log.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # `uv run` is not how workers start here.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # The default shuffle spends seconds per group-by, whatever the size of the data.
    "RAY_DATA_DEFAULT_SHUFFLE_STRATEGY": "sort_shuffle_pull_based",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # One training process per logical CPU: threads of their own would only get in each other's way.
    "OMP_NUM_THREADS": "1",
    # A worker reports once a second or so in a short run; the default poll of 2 s would be most of an epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Jobs say themselves what Tune does.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ctrl-C ends the job, not only the search.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}

FAST_SERVE = {
    # HAProxy asks the replicas of the gateway directly; one thread of it is more than they can answer.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Requests are counted by who answers them. HAProxy's own count is a log line of each, which Python parses.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # A replica answers in its main loop; replicas ask each other by gRPC. A batch of 64 requests takes some MB.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 2**20),
    # The controller compares what is with what should be; ten times a second, that is 5 % of a core that nobody asks.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    # On a busy machine HAProxy takes longer to start than the 5 seconds after which Ray gives it up.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    # A replica that stops refuses what comes a second later, and HAProxy asks another one; Ray waits for 30.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
"""The fast profile of Ray Serve. Read when Serve is started, on every node; Serve's own defaults are several times
slower."""


def prepare_environment() -> None:
    """Set what is not set. Call it before `ray` or `mlflow` is imported; `session.connect` calls it too."""
    for name, value in {**ENVIRONMENT, **FAST_SERVE}.items():
        os.environ.setdefault(name, value)


def in_submitted_job() -> bool:
    """Whether this process was submitted to a Ray cluster and runs in an unpacked copy of the repository."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
