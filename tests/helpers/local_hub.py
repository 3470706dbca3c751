"""A Hub for tests on this machine alone: enough of its HTTP interface to list a dataset repository and fetch files."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40


@contextmanager
def local_hub(folder: Path, repository: str):
    """Serves the files of `folder` as the dataset `repository`.

    Gives the address and a list of (method, path, Range) of the requests. Files named in its attribute `cut` break off
    half-way, once each.
    """
    requests = []

    def describe(path):
        name = str(path.relative_to(folder))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "d" * 40}
        content = path.read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def do_POST(self):
            wanted = self.rfile.read(int(self.headers["Content-Length"])).decode()
            requests.append(("POST", self.path, None))
            if "/paths-info/" not in self.path:
                return self.send(404, b"", {}, True)
            try:
                paths = json.loads(wanted)["paths"]
            except ValueError:
                paths = parse_qs(wanted)["paths"]
            paths = [paths] if isinstance(paths, str) else paths
            found = [describe(folder / one) for one in paths if (folder / one).exists()]
            self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, True)

        def answer(self, body):
            path = unquote(urlsplit(self.path).path)
            requests.append((self.command, path, self.headers.get("Range")))
            api = f"/api/datasets/{repository}"
            if path.startswith(f"{api}/tree/"):
                below = path.removeprefix(f"{api}/tree/").partition("/")[2]
                entries = [describe(one) for one in sorted((folder / below).glob("*"))]
                return self.send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, body)
            if path.startswith(api):
                names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
                siblings = [{"rfilename": name, "blobId": describe(folder / name)["oid"]} for name in names]
                info = {"id": repository, "sha": COMMIT, "siblings": siblings}
                return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
            prefix, _, name = path.removeprefix(f"/datasets/{repository}/resolve/").partition("/")
            file = folder / name
            if prefix not in (COMMIT, "main") or not file.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            content = file.read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            headers |= {"Accept-Ranges": "bytes", "X-Linked-Size": str(len(content))}
            status, start = 200, 0
            if self.headers.get("Range"):
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                status, start = 206, int(first)
                stop = min(int(last) + 1, len(content)) if last else len(content)
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
                content = content[:stop]
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
