"""A Hub for tests, on this machine alone: repositories, commits, LFS, access and faults behind its HTTP interface.

What a client of the real Hub sees is answered as there: status codes, `X-Error-Code`, `ETag`s, ranges. Requests are
kept in `requests`, everything else that a test wants to look at or to break is an attribute.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from .hub_repositories import LFS_SUFFIXES, FolderRepository, Repository, describe, git_blob_id

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


class LocalHub(ThreadingHTTPServer):
    """The server. Tokens: `tokens` maps them to user names; those in `read_only` may not write.

    Faults, by file name, each entry used once: `cut` breaks off half-way, `corrupt` gives other bytes of the same
    number.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories, self.objects, self.requests = {}, {}, []
        self.tokens, self.read_only, self.users_seen = {}, set(), []
        self.cut, self.corrupt = [], []

    def handle_error(self, request, client_address):
        """A client that goes away is part of some tests."""

    def repository(self, name, kind="model"):
        return self.repositories[kind, name]

    def add(self, name, files, kind="model", **access):
        """A repository with these files (name -> bytes, or a folder)."""
        if not isinstance(files, dict):
            files = {str(p.relative_to(files)): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
        repository = Repository(name.split("/")[0], **access)
        repository.commit(dict(files), "initial commit")
        self.repositories[kind, name] = repository
        return repository


class Handler(BaseHTTPRequestHandler):
    """One request at a time, as the real Hub answers it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer are two packets: the second would wait 40 ms

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.route()

    def do_GET(self):
        self.route()

    def do_POST(self):
        self.route()

    def do_PUT(self):
        self.route()

    def do_DELETE(self):
        self.route()

    # --- answers ----------------------------------------------------------------------------------------------------

    def send(self, status, content=b"", headers=None, cut=False):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if cut:
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, code="", message=""):
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(status, {"error": message or code}, {key: value for key, value in headers.items() if value})

    # --- who asks for what ------------------------------------------------------------------------------------------

    def route(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self.read_chunk, b""))
        url = urlsplit(self.path)
        self.path_asked, self.query = unquote(url.path), parse_qs(url.query)
        self.server.requests.append((self.command, self.path_asked, self.headers.get("Range")))
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        self.token = token if scheme == "Bearer" else None
        self.user = self.server.tokens.get(self.token)
        self.server.users_seen.append(self.user)
        if self.token is not None and self.user is None:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, self.path_asked)
            if match and self.command in method:
                return answer(self, **match.groupdict())
        return self.refuse(404, "", f"no such page: {self.path_asked}")

    def read_chunk(self):
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def find(self, kind, name, *, write=False, content=False):
        """The repository if this user may see it (or write to it, or read its files); else the refusal is sent."""
        repository = self.server.repositories.get((KINDS.get(kind or "models", "model"), name))
        is_owner = repository is not None and self.user == repository.owner
        if repository is None or (repository.private and not is_owner):
            return self.refuse(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if write and (not is_owner or self.token in self.server.read_only):
            return self.refuse(403 if self.user else 401, "", "You do not have the rights to write")
        if content and repository.gated and not is_owner and self.user not in repository.granted:
            return self.refuse(403 if self.user else 401, "GatedRepo", f"Access to {name} is restricted")
        return repository

    # --- accounts and repositories ----------------------------------------------------------------------------------

    def whoami(self):
        if self.user is None:
            return self.refuse(401, "", "Invalid username or password.")
        role = "read" if self.token in self.server.read_only else "write"
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self.send(200, {"type": "user", "name": self.user, "orgs": [], "auth": auth})

    def validate_yaml(self):
        asked = json.loads(self.body)
        match = re.match(r"\s*---\r?\n(.*?)\r?\n---", asked["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(match.group(1)) if match else None
        except yaml.YAMLError as error:
            return self.send(400, {"errors": [{"message": f"not YAML: {error}"}], "warnings": []})
        if metadata is None:
            return self.send(200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        licence = metadata.get("license")
        errors = []
        if licence == "other" and not metadata.get("license_name"):
            errors.append({"message": '"license_name" is required if "license" is "other"'})
        if asked.get("repoType") == "space" and metadata.get("sdk") not in ("gradio", "docker", "static", "streamlit"):
            errors.append({"message": '"sdk" must be one of gradio, docker, static'})
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def create(self):
        asked = json.loads(self.body)
        if self.user is None or self.token in self.server.read_only:
            return self.refuse(403 if self.user else 401, "", "You do not have the rights to create")
        owner = asked.get("organization") or self.user
        if owner != self.user:
            return self.refuse(403, "", f"You do not have the rights to create under {owner}")
        kind, name = asked.get("type") or "model", f"{owner}/{asked['name']}"
        page = f"{self.server.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.server.repositories:
            return self.send(409, {"error": "You already created this repo", "url": page, "name": name})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, kind, private=private)
        self.send(200, {"url": page, "name": name, "id": "1"})

    def delete(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        kind = asked.get("type") or "model"
        if self.find(kind + "s", name, write=True):
            del self.server.repositories[kind, name]
            self.send(200, {})

    def settings(self, kind, name):
        repository = self.find(kind, name, write=True)
        if repository:
            asked = json.loads(self.body)
            if asked.get("gated", False) not in ("auto", "manual", False):
                return self.refuse(400, "", "gated must be auto, manual or false")
            repository.gated = bool(asked.get("gated", repository.gated))
            return self.send(200, asked)
        return None

    def add_reference(self, kind, name, what, reference):
        repository = self.find(kind, name, write=True)
        if repository:
            asked = json.loads(self.body or b"{}")
            if what == "tag":  # /tag/<revision>, the tag's name in the body
                repository.tags[asked["tag"]] = repository.at(reference).sha
            else:
                repository.branches[reference] = repository.at(asked.get("startingPoint") or "main").sha
            self.send(200, {})

    def references(self, kind, name):
        repository = self.find(kind, name)
        if repository:
            lists = {"branches": repository.branches, "tags": repository.tags}
            answer = {
                key: [{"name": one, "ref": f"refs/{one}", "targetCommit": sha} for one, sha in found.items()]
                for key, found in lists.items()
            }
            self.send(200, {**answer, "converts": []})

    # --- reading ----------------------------------------------------------------------------------------------------

    def commit_at(self, repository, revision):
        commit = repository.at(revision or "main")
        return commit or self.refuse(404, "RevisionNotFound", "Invalid rev id")

    def info(self, kind, name, revision="main"):
        repository = self.find(kind, name)
        commit = repository and self.commit_at(repository, revision)
        if commit:
            siblings = []
            for file, content in commit.files.items():
                entry = describe(file, content)
                one = {"rfilename": file, "blobId": entry["oid"], "size": entry["size"]}
                lfs = {"sha256": entry["lfs"]["oid"], **entry["lfs"]} if "lfs" in entry else None
                siblings.append({**one, "lfs": lfs} if lfs and "blobs" in self.query else one)
            answer = {"id": name, "sha": commit.sha, "siblings": siblings, "private": repository.private}
            self.send(200, {**answer, "gated": "auto" if repository.gated else False})

    def tree(self, kind, name, revision, folder=""):
        repository = self.find(kind, name)
        commit = repository and self.commit_at(repository, revision)
        if commit:
            entries, below = {}, f"{folder.strip('/')}/".lstrip("/")
            for file, content in commit.files.items():
                if file.startswith(below):
                    first, _, rest = file.removeprefix(below).partition("/")
                    if rest:
                        path = below + first
                        entries[path] = {"type": "directory", "path": path, "oid": "d" * 40, "size": 0}
                    if not rest or "true" in self.query.get("recursive", [""])[0].lower():
                        entries[file] = describe(file, content)
            self.send(200, list(entries.values()))

    def paths_info(self, kind, name, revision):
        repository = self.find(kind, name)
        commit = repository and self.commit_at(repository, revision)
        if commit:
            try:
                paths = json.loads(self.body)["paths"]
            except ValueError:
                paths = parse_qs(self.body.decode())["paths"]
            paths = [paths] if isinstance(paths, str) else paths
            found = [describe(one, commit.files[one]) for one in paths if one in commit.files]
            folders = [one for one in paths if any(file.startswith(one.rstrip("/") + "/") for file in commit.files)]
            self.send(200, found + [{"type": "directory", "path": one, "oid": "d" * 40} for one in folders])

    def resolve(self, kind, name, revision, file):
        repository = self.find(kind, name, content=True)
        commit = repository and self.commit_at(repository, revision)
        if not commit:
            return None
        if file not in commit.files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.sha})
        content, short_name = commit.files[file], Path(file).name
        entry = describe(file, content)
        is_lfs = "lfs" in entry
        etag = hashlib.sha256(content).hexdigest() if is_lfs else entry["oid"]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if is_lfs:
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{etag}"'}
        if self.command == "HEAD":
            return self.send(200, content, headers)
        if self.use("corrupt", short_name):
            content = content[:-1] + bytes([content[-1] ^ 255])
        status, start = 200, 0
        if self.headers.get("Range"):
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            status, start = 206, int(first)
            stop = min(int(last) + 1, len(content)) if last else len(content)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            content = content[:stop]
        return self.send(status, content[start:], headers, cut=self.use("cut", short_name))

    def use(self, fault, name):
        faults = getattr(self.server, fault)
        if name in faults:
            faults.remove(name)
            return True
        return False

    # --- writing ----------------------------------------------------------------------------------------------------

    def preupload(self, kind, name, revision):
        repository = self.find(kind, name, write=True)
        commit = repository and self.commit_at(repository, revision)
        if commit:
            answer = []
            for one in json.loads(self.body)["files"]:
                known = commit.files.get(one["path"])
                is_lfs = Path(one["path"]).suffix in LFS_SUFFIXES
                oid = None
                if known is not None:
                    oid = hashlib.sha256(known).hexdigest() if is_lfs else git_blob_id(known)
                mode = "lfs" if is_lfs else "regular"
                answer.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.send(200, {"files": answer})

    def lfs_batch(self, kind, name):
        if self.find(kind, name, write=True):
            objects = []
            for one in json.loads(self.body)["objects"]:
                upload = {"href": f"{self.server.url}/lfs-store/{one['oid']}"}
                actions = {} if one["oid"] in self.server.objects else {"actions": {"upload": upload}}
                objects.append({"oid": one["oid"], "size": one["size"], **actions})
            self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.refuse(400, "", "the content does not have this hash")
        self.server.objects[oid] = self.body
        return self.send(200)

    def commit(self, kind, name, revision):
        repository = self.find(kind, name, write=True)
        commit = repository and self.commit_at(repository, revision)
        if not commit:
            return None
        files, message = dict(commit.files), ""
        for line in self.body.splitlines():
            key, value = (json.loads(line)[part] for part in ("key", "value"))
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, commit.sha):
                    return self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.refuse(400, "", f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            elif key == "deletedFolder":
                files = {one: kept for one, kept in files.items() if not one.startswith(value["path"])}
        sha = repository.commit(files, message, revision)
        return self.send(200, {"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{NAME}"
PAGE = rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", "/api/repos/create", Handler.create),
    ("DELETE", "/api/repos/delete", Handler.delete),
    ("PUT", rf"{API}/settings", Handler.settings),
    ("POST", rf"{API}/(?P<what>branch|tag)/(?P<reference>.+)", Handler.add_reference),
    ("POST", rf"{API}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"{API}/commit/(?P<revision>.+)", Handler.commit),
    ("POST", rf"{API}/paths-info/(?P<revision>.+)", Handler.paths_info),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs-store/(?P<oid>[0-9a-f]+)", Handler.lfs_put),
    ("GET", rf"{API}/refs", Handler.references),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?P<folder>.*)", Handler.tree),
    ("GET", rf"{API}/revision/(?P<revision>.+)", Handler.info),
    ("GET", API, Handler.info),
    ("GET HEAD", rf"{PAGE}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.resolve),
]


@contextmanager
def local_hub(folder=None, repository=None):
    """A running server; with `folder`, its content is the dataset `repository`, whatever it holds at the moment."""
    server = LocalHub()
    if folder is not None:
        server.repositories["dataset", repository] = FolderRepository(folder, repository.split("/")[0])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
