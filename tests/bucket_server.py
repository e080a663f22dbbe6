"""A real S3 server on loopback, in a thread of the process that asks for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NAME = "artifacts"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "an-access-key",
    "AWS_SECRET_ACCESS_KEY": "a-very-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "2",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Serve a bucket ``NAME``; give the environment in which it is found."""
    server = pytest.importorskip("moto.server", reason="no S3 server: pip install 'spo-bench[test]'")
    s3fs = pytest.importorskip("s3fs", reason="no S3 client: pip install 'spo-bench[test]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    thread = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    thread.start()
    try:
        host, port = thread.get_host_and_port()
        environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().mkdir(NAME)
            yield environment
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        thread.stop()
