"""A Hub for tests on this machine alone: enough of its HTTP interface to list a dataset repository and fetch files."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@contextmanager
def local_hub(folder: Path, repository: str):
    """Serves the files of `folder` as the dataset `repository`.

    Gives the address and a list of (method, path, Range) of the requests. Files named in its attribute `cut` break off
    half-way, once each.
    """
    requests = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = unquote(urlsplit(self.path).path)
            requests.append((self.command, path, self.headers.get("Range")))
            if path.startswith(f"/api/datasets/{repository}"):
                names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
                info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
            prefix = f"/datasets/{repository}/resolve/{COMMIT}/"
            file = folder / path.removeprefix(prefix)
            if not path.startswith(prefix) or not file.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            content = file.read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            headers |= {"Accept-Ranges": "bytes", "X-Linked-Size": str(len(content))}
            status, start = 200, 0
            if self.headers.get("Range"):
                start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
                status = 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(status, content[start:], headers, body, cut=file.name)

        def send(self, status, content, headers, body, cut=None):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not body:
                return
            if cut in server.cut:
                server.cut.remove(cut)
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.cut, server.requests = [], requests
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
