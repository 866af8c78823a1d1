"""A stand-in for Google Cloud Storage: as much of its JSON interface as gcsfs, orbax and tensorstore use, in memory."""

import json
import re
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)")
MOVE = re.compile(r"/storage/v1/b/bucket/o/([^/]+)/moveTo/o/([^/]+)")


class FakeGcs:
    """A server with one empty bucket, `bucket`; `objects` maps names to (content, generation, seconds since 1970)."""

    def __init__(self):
        self.objects: dict[str, tuple[bytes, int, float]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.lock = threading.RLock()
        self.generation = 1
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """Variables under which the libraries speak to it."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs, and the client that orbax asks about the bucket
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "project",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, name: str, content: bytes) -> dict[str, Any]:
        self.generation += 1
        self.objects[name] = content, self.generation, time.time()
        return self.facts(name)

    def facts(self, name: str) -> dict[str, Any]:
        content, generation, changed = self.objects[name]
        when = datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        facts = {"name": name, "bucket": "bucket", "size": str(len(content)), "generation": str(generation)}
        return {**facts, "kind": "storage#object", "timeCreated": when, "updated": when, "metageneration": "1"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients hang up."""


class _Handler(BaseHTTPRequestHandler):
    store: FakeGcs
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer("GET")

    def do_POST(self):
        self._answer("POST")

    do_PUT = do_POST

    def do_DELETE(self):
        self._answer("DELETE")

    def _answer(self, verb: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.store.lock:
            status, headers, content = self._act(verb, self.path, body)
        self._send(status, headers, content)

    def _send(self, status: int, headers: dict[str, str], content: bytes | dict) -> None:
        if isinstance(content, dict):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _act(self, verb: str, target: str, body: bytes) -> tuple[int, dict[str, str], bytes | dict]:
        url = urlsplit(target)
        query = dict(parse_qsl(url.query))
        if url.path.startswith("/batch/"):
            return self._batch(body)
        if url.path.startswith("/upload/"):
            return self._upload(query, body) if "/b/bucket/" in url.path else (404, {}, {})
        if match := MOVE.fullmatch(url.path):
            source, name = map(unquote, match.groups())
            if source not in self.store.objects:
                return 404, {}, {}
            return 200, {}, self.store.put(name, self.store.objects.pop(source)[0])
        if match := OBJECT.fullmatch(url.path):
            bucket, name = map(unquote, match.groups())
            if bucket != "bucket" or name not in self.store.objects:
                return 404, {}, {}
            return self._delete(name) if verb == "DELETE" else self._read(name, query)
        if url.path not in ("/storage/v1/b/bucket", "/storage/v1/b/bucket/o"):
            return 404, {}, {"error": {"code": 404, "message": "The specified bucket does not exist."}}
        return 200, {}, self._listed(query) if url.path.endswith("/o") else {"name": "bucket", "kind": "storage#bucket"}

    def _read(self, name: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes | dict]:
        content, generation, _ = self.store.objects[name]
        headers = {"X-Goog-Generation": str(generation)}
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, headers, b""
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return 412, {}, {}
        if query.get("alt") != "media" and not self.path.startswith("/download/"):
            return 200, headers, self.store.facts(name)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            if first >= len(content):
                return 416, headers, b""
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return 206, headers, content[first : last + 1]
        return 200, headers, content

    def _delete(self, name: str) -> tuple[int, dict[str, str], bytes]:
        del self.store.objects[name]
        return 204, {}, b""

    def _batch(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        answers = []
        for number, target in enumerate(re.findall(rb"DELETE (\S+) HTTP", body)):
            status = self._act("DELETE", target.decode(), b"")[0]
            words = f"Content-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\nHTTP/1.1 {status} OK"
            answers.append(f"--batch\r\n{words}\r\n\r\n\r\n")
        return 200, {"Content-Type": "multipart/mixed; boundary=batch"}, "".join([*answers, "--batch--\r\n"]).encode()

    def _listed(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names = sorted(name for name in self.store.objects if name.startswith(prefix))
        below = [name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "") for name in names]
        folders = {prefix + first + sign for first, sign, _ in below if sign}
        items = [self.store.facts(name) for name, (_, sign, _) in zip(names, below, strict=True) if not sign]
        return {"kind": "storage#objects", "prefixes": sorted(folders), "items": items}

    def _upload(self, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], dict]:
        name = query.get("name", "")
        match query["uploadType"]:
            case "resumable" if "upload_id" in query:
                parts = self.store.uploads[query["upload_id"]]
                parts += body
                if self.headers.get("Content-Range", "").endswith("/*"):
                    return 308, {"Range": f"bytes=0-{len(parts) - 1}"}, {}
                return 200, {}, self.store.put(query["upload_id"], bytes(parts))
            case "resumable":
                name = name or json.loads(body)["name"]
                self.store.uploads[name] = bytearray()
                where = f"{self.store.url}/upload/storage/v1/b/bucket/o?uploadType=resumable&upload_id={name}"
                return 200, {"Location": where}, {}
            case "multipart":
                boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
                assert boundary is not None
                _, facts, content, _ = body.split(b"--" + boundary[1].encode())
                name = name or json.loads(facts.split(b"\n\n" if b"\r\n" not in facts else b"\r\n\r\n", 1)[1])["name"]
                body = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1]
                body = body.removesuffix(b"\n").removesuffix(b"\r")
        held = str(self.store.objects[name][1]) if name in self.store.objects else "0"
        if query.get("ifGenerationMatch", held) != held:
            return 412, {}, {}
        return 200, {}, self.store.put(name, body)
