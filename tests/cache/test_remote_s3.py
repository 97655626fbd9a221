"""Stores on S3, against a server of that protocol on this machine: values, locks, and every way it can refuse."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
import zarr
from moto import server as moto_server

from madkit.cache import TokenCache, remote_files, verify_cache
from madkit.cache.remote import RemoteStore
from madkit.cache.remote_copy import RemoteCopy
from madkit.cache.remote_files import RemoteFolder
from madkit.cache.remote_lock import RemoteLock
from madkit.cache.writer import StoreWriter
from madkit.cli.main import main
from madkit.core.errors import CacheError

LENGTHS = [3, 0, 5, 130]


@dataclass
class Server:
    """A server of S3's protocol, with one bucket."""

    url: str
    client: Any

    def post(self, path: str, data: bytes) -> None:
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "text/plain"}, method="POST"
        )
        urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **keys)
    client.create_bucket(Bucket="bucket")
    yield Server(url, client)
    client.close()
    running.stop()


def renew() -> None:
    """Forget the clients: each has read the environment when it was made."""
    for system in list(s3fs.S3FileSystem._cache.values()):
        if system._s3 is not None:
            system.close_session(system.loop, system._s3)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(autouse=True)
def environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "MADKIT_CACHE_DIR": str(tmp_path / "mirrors"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote_files, "DELAYS", (0.0,))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    renew()


@pytest.fixture
def written(maker: Any, tmp_path: Path) -> Any:
    """A complete local store."""
    return maker(tmp_path / "cache" / "test-mini-vcr-000000000000", LENGTHS)


def put(written: Any, base: str) -> RemoteStore:
    store = RemoteStore.at(f"{base}/{written.path.name}")
    with StoreWriter(store.mirror, written.plan, remote=RemoteCopy(store)) as writer:
        written.fill(writer)
    return store


def forget(tmp_path: Path) -> None:
    """Be another machine."""
    subprocess.run(["rm", "-rf", str(tmp_path / "mirrors")], check=True)


@pytest.fixture
def there(written: Any, tmp_path: Path) -> RemoteStore:
    """The same store on S3; no mirror of it."""
    store = put(written, f"s3://bucket/{tmp_path.name}/caches")
    forget(tmp_path)
    return store


def test_what_was_written_is_what_is_read(written: Any, there: RemoteStore, tmp_path: Path) -> None:
    files = json.loads((written.path / "manifest.json").read_text())["files"]
    assert {name: there.files.read(name) for name in files} == {
        name: (written.path / name).read_bytes() for name in files
    }
    rows = np.array([24, 0, 7, 7])
    with TokenCache.open(there.url) as cache:
        assert np.array_equal(cache.images.tokens(rows), written.images[rows])
        words = cache.texts.tokens([3, 1, 0])
        assert np.array_equal(words.tokens, np.concatenate([written.tokens[row] for row in (3, 1, 0)]))
    assert verify_cache(there).ok


def test_zarr_python_reads_it_where_it_lies(written: Any, there: RemoteStore) -> None:
    group = zarr.open_group(there.url, mode="r")
    assert np.array_equal(group["images/tokens"][:], written.images)
    assert np.array_equal(group["images/globals"][:], written.image_globals)
    assert np.array_equal(group["texts/globals"][:], written.text_globals)
    with TokenCache.open(written.path) as cache:
        for row in (0, 2, 3):
            start, end = group["texts/extents"][row]
            assert np.array_equal(group["texts/tokens"][start:end], written.tokens[row])
            assert np.array_equal(group["texts/spans"][start:end], cache.texts.tokens([row]).spans)
    array = zarr.open_array(f"{there.url}/images/tokens", mode="r")
    assert array.shards == (written.plan.images.unit, 4, 6)
    assert group.attrs["madkit"]["key"] == written.plan.document()["key"]
    for node in (group, array):  # zarr-python itself leaves its client open
        zarr.core.sync.sync(node.store.fs._s3.close())


def test_of_two_writers_one_gets_the_lock(there: RemoteStore) -> None:
    first, second = RemoteLock(there.files), RemoteLock(there.files)
    first.acquire()
    with pytest.raises(CacheError, match=f"is being written by process {os.getpid()}"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    assert ".lock" not in there.files.sizes()
    assert there.files.create("once", b"1")
    assert not there.files.create("once", b"2")
    assert there.files.read("once") == b"1"


def test_a_truncated_object_is_found(written: Any, there: RemoteStore, server: Server) -> None:
    name = "images/tokens/c/1/0/0"
    key = f"{there.url.removeprefix('s3://bucket/')}/{name}"
    server.client.put_object(Bucket="bucket", Key=key, Body=there.files.read(name)[:-7])
    with TokenCache.open(there) as cache, pytest.raises(CacheError) as caught:
        cache.images.tokens([written.plan.images.unit])
    size = (written.path / name).stat().st_size
    assert f"{there.url}/{name} is not what its manifest says: {size - 7:,} bytes" in caught.value.message
    (problem,) = verify_cache(there).problems
    assert (problem.file, problem.kind) == (name, "truncated")


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = main(["cache", *arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return code, captured.err.splitlines()


def test_no_bucket(capsys: pytest.CaptureFixture[str], written: Any) -> None:
    code, (said, hint) = failure(capsys, "list", "--cache", "s3://nowhere/caches")
    assert (code, said) == (1, "Error: The bucket of s3://nowhere/caches does not exist.")
    assert hint.startswith("Try: make it")
    with pytest.raises(CacheError, match=r"The bucket of s3://nowhere/x/.*lock does not exist"):
        put(written, "s3://nowhere/x")


def test_no_credentials(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    renew()
    code, (said, hint) = failure(capsys, "list", "--cache", "s3://bucket/caches")
    assert (code, said) == (1, "Error: There are no credentials for s3://bucket/caches (Unable to locate credentials).")
    assert "AWS_ACCESS_KEY_ID" in hint


def test_no_permission(capsys: pytest.CaptureFixture[str], server: Server, there: RemoteStore) -> None:
    server.post("/moto-api/reset-auth", b"0")  # from now on, keys must be known
    try:
        code, (said, hint) = failure(capsys, "info", "--cache", there.url.rpartition("/")[0])
        assert code == 1
        assert said.startswith(f"Error: No permission for {there.url.rpartition('/')[0]} (")
        assert hint == "Try: check the credentials and what they may do"
        with pytest.raises(CacheError, match=f"No permission for {there.url}/manifest.json"):
            TokenCache.open(there)
    finally:
        server.post("/moto-api/reset-auth", b"inf")


def test_no_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    registered = sys.modules["fsspec.registry"].__dict__["_registry"]
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(registered, "s3", raising=False)
    code, (said, hint) = failure(capsys, "list", "--cache", "s3://bucket/caches")
    assert code == 1
    assert said.startswith("Error: s3://bucket/caches cannot be opened: ")
    assert hint == "Try: pip install 'madkit[s3]'"


def test_the_network_goes_down_in_the_middle(
    capsys: pytest.CaptureFixture[str], written: Any, there: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TokenCache.open(there)
    cache.images.tokens([0])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    renew()
    assert np.array_equal(cache.images.tokens([1]), written.images[[1]])  # what is in the mirror is enough
    with pytest.raises(CacheError) as caught:
        cache.images.tokens([24])
    cache.close()
    assert caught.value.message.startswith(f"{there.url}/images/tokens/c/2/0/0 cannot be reached after 2 attempts (")
    assert "which goes on from here" in str(caught.value.hint)


def test_nothing_is_left_open(there: RemoteStore, tmp_path: Path) -> None:
    script = (
        f"from madkit.cache import TokenCache\nwith TokenCache.open({there.url!r}) as cache: cache.images.tokens([0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], stderr=subprocess.PIPE, text=True, timeout=120, check=True
    )
    assert done.stderr == ""


def test_list_info_verify_and_prune(capsys: pytest.CaptureFixture[str], there: RemoteStore) -> None:
    base = there.url.rpartition("/")[0]
    assert main(["cache", "list", "--cache", base, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["stores"]
    assert (row["path"], row["state"]) == (there.url, "complete")
    assert main(["cache", "info", "--cache", base, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stores"][0]["path"] == there.url
    assert main(["cache", "verify", "--cache", base]) == 0
    assert "sound" in capsys.readouterr().out
    there.files.remove(["images/globals/c/0/0"])
    assert main(["cache", "verify", "--cache", base]) == 3
    assert "images/globals/c/0/0" in capsys.readouterr().out
    assert main(["cache", "prune", "--cache", base, "--store", there.name]) == 0
    assert there.files.sizes()
    assert main(["cache", "prune", "--cache", base, "--store", there.name, "--yes"]) == 0
    assert not RemoteFolder(base).sizes()
