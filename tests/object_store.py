"""An S3 server on this machine, that can be told to fail; and runs at addresses for tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from pipeline.storage import RemotePath, file_system

# What a request is answered with instead, or None: (method, path with query) -> status.
Fault = Callable[[str, str], int | None]


def clean_memory() -> Iterator[Any]:
    """Gives the storage at ``memory://``, empty before and after: for a fixture."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


class ObjectStore:
    """A server that speaks S3, in threads of this process.

    Attributes:
        requests: (method, path with query) of every request so far.
        fault: Asked about each request before it is served.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.requests: list[tuple[str, str]] = []
        self.fault: Fault = lambda method, path: None
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _serve(self, environ: Any, start_response: Any) -> Any:
        query = environ.get("QUERY_STRING", "")
        path = environ["PATH_INFO"] + (f"?{query}" if query else "")
        self.requests.append((environ["REQUEST_METHOD"], path))
        status = self.fault(environ["REQUEST_METHOD"], path)
        if status is not None:
            # A body that was sent must be read, or the connection is broken.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = b"<?xml version='1.0'?><Error><Code>ServiceUnavailable</Code><Message>asked for by the test</Message></Error>"
            start_response(f"{status} Fault", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        return self._application(environ, start_response)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process finds the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Starts a server with an empty bucket, and has this process find it."""
    import boto3
    import s3fs

    store = ObjectStore()
    before = dict(os.environ)
    os.environ.update(store.environment)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield store
    finally:
        store.close()
        s3fs.S3FileSystem.clear_instance_cache()
        os.environ.clear()
        os.environ.update(before)


def put_files(address: str, files: dict[str, bytes]) -> None:
    system, path = file_system(address)
    for name, data in files.items():
        system.pipe_file(f"{path}/{name}", data)


def names_at(address: str) -> list[str]:
    """Gives the names of all files below an address."""
    try:
        return sorted(name for name, *_ in RemotePath(address).find_files())
    except FileNotFoundError:
        return []


def copy_here(address: str, folder: Path) -> Path:
    """Downloads all below an address."""
    for name in names_at(address):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        RemotePath(f"{address}/{name}").download(path)
    return folder
