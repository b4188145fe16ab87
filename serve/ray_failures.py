"""What a call to a replica raises where the replica, not the request, is at fault."""

import grpc
import ray.exceptions
import ray.serve.exceptions

REPLICA_FAILURES = (ray.exceptions.RayError, ray.serve.exceptions.RayServeException, grpc.RpcError)
"""Ray makes an error of its own only of gRPC's UNAVAILABLE; one that is killed in the middle has others, too."""
