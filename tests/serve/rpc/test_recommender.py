"""The Python of the proto file is that of the proto file."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from cluster.provenance import ROOT

RPC = ROOT / "serve" / "rpc"


def test_what_is_kept_is_what_the_compiler_makes(tmp_path: Path) -> None:
    proto = (RPC / "recommender.proto").read_text()
    (command,) = re.findall(r"^//   python (-m grpc_tools\.protoc .*)$", proto, re.MULTILINE)
    arguments = shlex.split(command.replace("_out=.", f"_out={tmp_path}"))
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, timeout=60)
    made = {path.name: path.read_text() for path in (tmp_path / "serve" / "rpc").iterdir()}
    assert set(made) == {"recommender_pb2.py", "recommender_pb2.pyi", "recommender_pb2_grpc.py"}
    assert {name: (RPC / name).read_text() for name in made} == made
