"""files/fetch-model.sh at work: the real script and the real curl, from a server in this process."""

import contextlib
import hashlib
import hmac
import os
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from chart import CHART
from harness import Skip

SCRIPT = CHART / "files/fetch-model.sh"
FILES = {"manifest.json": b'{"format":1}\n', "model.onnx.data": os.urandom(300_000)}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        body = self.server.contents.get(self.path)
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(b"not here" if body is None else body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(contents):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.contents, server.requests = contents, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def folder(files=None):
    """A folder for the package, and the sums that are wanted of it."""
    with tempfile.TemporaryDirectory() as path:
        path = Path(path)
        sums = [f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in (files or FILES).items()]
        (path / "SHA256SUMS").write_text("".join(sums))
        yield path


def fetch(path, **variables):
    if not shutil.which("curl"):
        raise Skip("curl is missing")
    environment = {
        "PATH": os.environ["PATH"], "FETCH_SUMS": str(path / "SHA256SUMS"), "FETCH_TARGET": str(path / "package"), **variables,
    }
    return subprocess.run(["sh", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=False)


def contents_of(path):
    package = path / "package"
    return {file.name: file.read_bytes() for file in package.iterdir()} if package.exists() else {}


def from_http(_):
    """fetch over HTTP: the files are in place, with the header that was given; a second run asks for nothing"""
    with serving({f"/m/{name}": body for name, body in FILES.items()}) as (server, url), folder() as path:
        # What a quote or a backslash could break.
        secret = 'Basic a"b\\c'
        variables = {"FETCH_FROM": "http", "FETCH_URL": f"{url}/m", "FETCH_AUTHORIZATION": secret}
        done = fetch(path, **variables)
        assert done.returncode == 0, done.stderr
        assert contents_of(path) == FILES
        assert [headers["Authorization"] for _, headers in server.requests] == [secret] * 2
        assert secret not in done.stdout + done.stderr, "the secret is in the log"
        assert fetch(path, **variables).returncode == 0
        assert len(server.requests) == 2, "a package that is whole was fetched again"


def wrong_sum(_):
    """fetch: a file that differs is never put in place, and one that differs in place is fetched again"""
    served = {f"/{name}": body for name, body in FILES.items()}
    with serving({**served, "/manifest.json": b"{}\n"}) as (_, url), folder() as path:
        done = fetch(path, FETCH_FROM="http", FETCH_URL=url)
        assert done.returncode == 1 and "differs from model.fetch.files" in done.stderr, done.stderr
        assert contents_of(path) == {}
    with serving(served) as (_, url), folder() as path:
        (path / "package").mkdir()
        (path / "package/manifest.json").write_text("left by an accident")
        assert fetch(path, FETCH_FROM="http", FETCH_URL=url).returncode == 0
        assert contents_of(path) == FILES


def not_there(_):
    """fetch: a page that says 404 isn't the file"""
    with serving({}) as (_, url), folder({"manifest.json": b"not here"}) as path:
        done = fetch(path, FETCH_FROM="http", FETCH_URL=url)
        assert done.returncode != 0 and "404" in done.stderr, done.stderr
        assert contents_of(path) == {}


def from_hugging_face(_):
    """fetch from the Hugging Face hub: its paths, and the token as a bearer's"""
    served = {f"/o/n/resolve/abc/{name}": body for name, body in FILES.items()}
    with serving(served) as (server, url), folder() as path:
        done = fetch(path, FETCH_FROM="huggingface", FETCH_URL=f"{url}/o/n/resolve/abc", FETCH_TOKEN="hf_x")
        assert done.returncode == 0, done.stderr
        assert contents_of(path) == FILES
        assert server.requests[0][1]["Authorization"] == "Bearer hf_x"


def signature(secret, path, headers, region):
    """AWS's signature, version 4, of a GET request, as its documentation computes it."""
    authorization = headers["Authorization"]
    signed = authorization.split("SignedHeaders=")[1].split(",")[0]
    lower = {name.lower(): value.strip() for name, value in headers.items()}
    day = lower["x-amz-date"][:8]
    # S3 refuses requests that leave one of its own headers unsigned.
    unsigned = {name for name in lower if name.startswith("x-amz-")} - set(signed.split(";"))
    assert not unsigned, f"{unsigned} not signed"
    scope = f"{day}/{region}/s3/aws4_request"
    assert f"/{scope}," in authorization, authorization
    lines = [f"{name}:{lower[name]}\n" for name in signed.split(";")]
    request = "\n".join(["GET", path, "", "".join(lines), signed, lower["x-amz-content-sha256"]])
    text = "\n".join(["AWS4-HMAC-SHA256", lower["x-amz-date"], scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{secret}".encode()
    for part in [day, region, "s3", "aws4_request"]:
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


def from_s3(_):
    """fetch from S3: requests carry the signature that the secret key gives, and the session's token"""
    served = {f"/bucket/m/{name}": body for name, body in FILES.items()}
    with serving(served) as (server, url), folder() as path:
        done = fetch(
            path, FETCH_FROM="s3", FETCH_URL=f"{url}/bucket/m", FETCH_REGION="eu-west-1", FETCH_ACCESS_KEY_ID="AKID",
            FETCH_SECRET_ACCESS_KEY="se/cret+", FETCH_SESSION_TOKEN="session",
        )
        assert done.returncode == 0, done.stderr
        assert contents_of(path) == FILES
        for asked, headers in server.requests:
            got = headers["Authorization"]
            assert got.startswith("AWS4-HMAC-SHA256 Credential=AKID/"), got
            assert got.endswith("Signature=" + signature("se/cret+", asked, headers, "eu-west-1")), got
            assert {name.lower(): value for name, value in headers.items()}["x-amz-security-token"] == "session"


def from_registry(_):
    """fetch from an OCI registry, with the real oras"""
    oras = shutil.which("oras")
    if not oras:
        raise Skip("oras is missing: go install oras.land/oras/cmd/oras@v1.3.6")

    def digest(body):
        return "sha256:" + hashlib.sha256(body).hexdigest()

    layers = "".join(
        f'{{"mediaType":"application/octet-stream","digest":"{digest(body)}","size":{len(body)},'
        f'"annotations":{{"org.opencontainers.image.title":"{name}"}}}},' for name, body in FILES.items()
    )
    manifest = (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/x.model",'
        f'"config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{digest(b"{}")}","size":2}},'
        f'"layers":[{layers.rstrip(",")}]}}'
    ).encode()

    class Registry(Handler):
        def do_GET(self):
            body = self.server.contents.get(self.path)
            self.send_response(404 if body is None else 200)
            if "/manifests/" in self.path:
                self.send_header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
                self.send_header("Docker-Content-Digest", digest(manifest))
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET

    served = {f"/v2/m/blobs/{digest(body)}": body for body in [*FILES.values(), b"{}"]}
    served |= {f"/v2/m/manifests/{name}": manifest for name in ["1", digest(manifest)]}
    with serving(served) as (server, url), folder() as path:
        server.RequestHandlerClass = Registry
        done = fetch(
            path, FETCH_FROM="oci", FETCH_REFERENCE=f"{url.removeprefix('http://')}/m:1", FETCH_PLAIN_HTTP="true", HOME="/nowhere")
        assert done.returncode == 0, done.stderr
        assert contents_of(path) == FILES


ALL = [from_http, wrong_sum, not_there, from_hugging_face, from_s3, from_registry]
