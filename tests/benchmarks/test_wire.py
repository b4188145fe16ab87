import socket

from benchmarks.wire import bytes_sent

COUNT = 300_000


def test_what_was_sent_is_counted_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        before = bytes_sent()
        with socket.create_connection(server.getsockname()) as here, server.accept()[0] as there:
            here.sendall(b"x" * 1000)
            assert len(there.recv(1000, socket.MSG_WAITALL)) == 1000
            first = bytes_sent() - before
            here.setblocking(True)
            sent = 0
            while sent < COUNT:
                here.sendall(b"x" * 10_000)
                sent += len(there.recv(10_000, socket.MSG_WAITALL))
            assert bytes_sent() - before - first == COUNT
        assert bytes_sent() == before
