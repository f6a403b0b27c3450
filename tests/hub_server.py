"""As much of a model hub as its client asks for, over HTTP on this machine: downloads, and uploads by LFS in parts."""

import base64
import collections
import contextlib
import hashlib
import http.server
import json
import math
import threading
import urllib.parse
from typing import ClassVar

# What is larger goes by LFS, and in parts of this size.
REGULAR_BYTES, PART_BYTES = 10_000, 1 << 16


def file_headers(data, commit):
    return {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers for what `exists`, `revision` and `odd` of a subclass say."""

    protocol_version = "HTTP/1.1"
    # How often each method and path was asked for.
    asked: ClassVar = collections.Counter()

    def exists(self, repo):
        raise NotImplementedError

    def revision(self, repo, revision):
        """(commit, its files by name); None for the files where there is no such revision."""
        raise NotImplementedError

    def odd(self, repo, what, name):
        """Whether it has answered something that a hub in order would not."""
        return False

    def size(self, repo, data):
        return len(data)

    def split(self):
        """(repo, what is asked for, revision, file)."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.asked[self.command, path] += 1
        parts = path.strip("/").split("/")
        is_api = parts[:2] in (["api", "models"], ["api", "datasets"])
        parts = parts[2:] if is_api else parts[parts[0] == "datasets" :]
        return "/".join(parts[:2]), "".join(parts[2:3]), "".join(parts[3:4]) or "main", "/".join(parts[4:])

    def do_GET(self):
        repo, what, revision, name = self.split()
        if not self.exists(repo):
            return self.refuse(401, "RepoNotFound")
        if self.odd(repo, what, name) is not False:
            return None
        commit, files = self.revision(repo, revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        if what in ("", "revision"):
            siblings = [{"rfilename": name, "size": self.size(repo, data)} for name, data in files.items()]
            return self.tell({"id": repo, "sha": commit, "siblings": siblings})
        if what == "tree":
            tree = [{"type": "file", "path": n, "size": len(data), "oid": f"{n}{commit}"} for n, data in files.items()]
            return self.tell(tree)
        assert what == "resolve"
        if name not in files:
            return self.refuse(404, "EntryNotFound")
        return self.answer(files[name], file_headers(files[name], commit))

    do_HEAD = do_GET

    def refuse(self, status, code, message=""):
        self.answer(b"", {"X-Error-Code": code, "X-Error-Message": message}, status)

    def tell(self, content):
        self.answer(json.dumps(content).encode())

    def answer(self, data, headers=(), status=200):
        self.send_response(status)
        for name, value in {**dict(headers), "Content-Length": len(data)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


class WritableHub(Hub):
    """One that begins empty, and keeps what is committed to it. `fresh` makes one of its own for a test.

    Attributes:
      repos: by id, the commits of each: (its name, its message, its files).
      objects: of LFS, by their SHA-256.
      sent: of each LFS object, how many bytes of it came in.
      owners: by token, who may write for whom.
      failures: how often still a method and a kind of request fails with 503.
    """

    repos: ClassVar[dict]
    objects: ClassVar[dict]
    parts: ClassVar[dict]
    sent: ClassVar[collections.Counter]
    owners: ClassVar[dict]
    failures: ClassVar[collections.Counter]

    @classmethod
    def fresh(cls, owners):
        fields = {name: {} for name in ("repos", "objects", "parts")}
        counters = {name: collections.Counter() for name in ("sent", "failures", "asked")}
        return type("FreshHub", (cls,), fields | counters | {"owners": owners})

    def exists(self, repo):
        return repo in self.repos

    def revision(self, repo, revision):
        commits = self.repos[repo]
        found = commits[-1:] if revision == "main" else [commit for commit in commits if commit[0] == revision]
        return (found[0][0], found[0][2]) if found else (revision, None)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        repo, what, *_ = self.split()
        path = urllib.parse.urlsplit(self.path).path
        if self.failing("POST", what):
            return None
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if path.startswith("/complete/"):
            return self.complete(json.loads(body))
        owner = self.owners.get((self.headers["authorization"] or "").removeprefix("Bearer "))
        if owner is None:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            return self.create(json.loads(body), owner)
        repo = repo.removesuffix(".git")
        if repo.split("/")[0] != owner:
            return self.refuse(403, "", "you have no write permission")
        if what == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > REGULAR_BYTES else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.tell({"files": files})
        if what == "info":
            return self.tell({"transfer": "multipart", "objects": list(map(self.lfs, json.loads(body)["objects"]))})
        assert what == "commit", path
        return self.commit(repo, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self):
        """A part of an LFS object."""
        data = self.rfile.read(int(self.headers["content-length"]))
        _, oid, number = urllib.parse.urlsplit(self.path).path.strip("/").split("/")
        self.sent[oid] += len(data)
        if self.failing("PUT", "part"):
            return
        self.parts[oid, int(number)] = data
        self.answer(b"", {"ETag": hashlib.sha1(data).hexdigest()})

    def failing(self, method, what):
        if self.failures[method, what] <= 0:
            return False
        self.failures[method, what] -= 1
        self.refuse(503, "", "come again")
        return True

    def validate(self, content):
        errors = [{"message": '"license" must be one of ...'}] if "\nlicense: nonsense\n" in content else []
        self.answer(json.dumps({"errors": errors, "warnings": []}).encode(), status=400 if errors else 200)

    def create(self, fields, owner):
        repo = f"{fields['organization']}/{fields['name']}"
        if fields["organization"] != owner:
            return self.refuse(403, "", f"you may not make repositories of {fields['organization']}")
        if repo in self.repos:
            return self.answer(json.dumps({"error": "it exists", "url": f"{self.here}/{repo}"}).encode(), status=409)
        self.repos[repo] = [("0" * 40, f"visibility {fields.get('visibility')}", {".gitattributes": b"*.bin lfs"})]
        return self.tell({"url": f"{self.here}/{repo}", "id": repo, "name": repo})

    @property
    def here(self):
        return f"http://{self.headers['host']}"

    def lfs(self, wanted):
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.objects:
            return {"oid": oid, "size": size}
        parts = {str(i): f"{self.here}/part/{oid}/{i}" for i in range(1, math.ceil(size / PART_BYTES) + 1)}
        header = {"chunk_size": str(PART_BYTES), **parts}
        return {
            "oid": oid,
            "size": size,
            "actions": {"upload": {"href": f"{self.here}/complete/{oid}", "header": header}},
        }

    def complete(self, fields):
        oid = fields["oid"]
        data = b"".join(self.parts[oid, part["partNumber"]] for part in fields["parts"])
        assert hashlib.sha256(data).hexdigest() == oid
        self.objects[oid] = data
        self.tell({})

    def commit(self, repo, lines):
        files, message = dict(self.repos[repo][-1][2]), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        name = hashlib.sha1(repr(sorted(files)).encode() + str(len(self.repos[repo])).encode()).hexdigest()
        self.repos[repo].append((name, message, files))
        self.tell({"commitUrl": f"{self.here}/{repo}/commit/{name}", "commitOid": name, "success": True})


@contextlib.contextmanager
def serving(handler):
    """The address that a handler answers at."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
