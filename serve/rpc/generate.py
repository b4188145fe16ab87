"""Makes the Python of `recommender.proto`: `python -m serve.rpc.generate`, after the file was changed."""

import sys
from importlib.resources import files
from pathlib import Path

from cluster.errors import TowerlineError
from cluster.provenance import ROOT

PROTO = Path("serve", "rpc", "recommender.proto")


def generate(folder: Path) -> None:
    """Write `serve/rpc/recommender_pb2.py`, its types and its servicer below `folder`.

    Raises:
        TowerlineError: the compiler refused the file; it has said why on standard error.
    """
    from grpc_tools import protoc

    outputs = [f"--{kind}={folder}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    imports = (f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}")
    if protoc.main(["protoc", *imports, *outputs, str(ROOT / PROTO)]):
        raise TowerlineError(f"{PROTO} does not compile; the compiler's message is above")


if __name__ == "__main__":
    try:
        generate(ROOT)
    except TowerlineError as error:
        sys.exit(f"error: {error}")
