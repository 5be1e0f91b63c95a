"""A small W&B server on loopback: it keeps what it is told of runs, can refuse every key, and can go down and up."""

import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Self

ENTITY = {"id": "RW50aXR5", "name": "someone"}
KEY = "0" * 40


@dataclass
class ToldRun:
    """A run as the server knows it."""

    upserts: list[dict[str, Any]] = field(default_factory=list)
    """the variables of every UpsertBucket, the oldest first"""
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """by its line"""
    summary: dict[str, Any] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)
    """lines of its log"""
    exit_code: int | None = None
    files: set[str] = field(default_factory=set)

    @property
    def first(self) -> dict[str, Any]:
        """What the run was when it began."""
        return self.upserts[0]

    @property
    def config(self) -> dict[str, Any]:
        """The newest configuration, as plain values."""
        told = next(upsert["config"] for upsert in reversed(self.upserts) if upsert.get("config"))
        return {key: entry["value"] for key, entry in json.loads(told).items() if key != "_wandb"}

    @property
    def epochs(self) -> list[int]:
        """The epochs of the curves, in the order of their lines."""
        return [row["epoch"] for _, row in sorted(self.history.items()) if "val/loss" in row]


class FakeWandb:
    """Listens from its start; as a context manager it stops at the end."""

    def __init__(self) -> None:
        self.runs: dict[str, ToldRun] = {}
        self.wrong_key = False
        self.heard_epoch = Event()
        self.asked: list[str] = []
        """names of all operations"""
        self.heard: list[bytes] = []
        """every request: its line, its headers and its body"""
        self.artifacts: list[dict[str, Any]] = []
        """the variables of every CreateArtifact"""
        self.views: dict[str, dict[str, Any]] = {}
        """reports as they were last saved, by id"""
        self._port = 0
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Listens, at the port it had before."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler_of(self))
        self._port = self._server.server_port
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def down(self) -> None:
        """Refuses connections from now on."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def answer(self, query: str, told: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL operation; where nothing is known, nothing."""
        name = match[1] if (match := re.search(r"(?:query|mutation)\s+(\w+)", query)) else ""
        self.asked.append(name)
        if name == "UpsertBucket":
            return self._upsert(told)
        if name == "RunResumeStatus":
            return {"model": {**self._project(told), "bucket": self._known(told["name"])}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/storage/{told['run']}/{file}"} for file in told["files"]]
            return {"createRunFiles": {"runID": told["run"], "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact":
            self.artifacts.append(told)
            known = {"id": "artifact", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": known}}
        if name == "ArtifactType":
            return {"project": None}
        if name == "GetProjects":
            known = {"__typename": "Project", "id": "UHJvamVjdA", "name": "osteo", "entityName": ENTITY["name"]}
            known |= {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": known}]}}
        if name == "ProjectInternalId":
            return {"project": {"id": "UHJvamVjdA", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}
        if name == "upsertView":
            view = {**told, "id": told["id"] or f"Vmlldz{len(self.views)}", "updatedAt": "2026-01-01T00:00:00"}
            self.views[view["id"]] = view
            project = {"id": "UHJvamVjdA", "name": told["projectName"], "entityName": told["entityName"]}
            return {"upsertView": {"view": {**view, "project": project}, "inserted": told["id"] is None}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        viewer = {"id": "VXNlcg", "entity": ENTITY["name"], "username": ENTITY["name"], "email": "", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}, "serverInfo": {"cliVersionInfo": {}}}

    def _project(self, told: dict[str, Any]) -> dict[str, Any]:
        return {"id": "UHJvamVjdA", "name": told.get("project") or told.get("name"), "entity": ENTITY}

    def _upsert(self, told: dict[str, Any]) -> dict[str, Any]:
        name = told.get("name") or told["id"]
        new = name not in self.runs
        run = self.runs.setdefault(name, ToldRun())
        run.upserts.append(told)
        bucket = {key: run.first.get(key) for key in ("displayName", "description", "config")}
        counted = {"historyLineCount": len(run.history), "sweepName": told.get("sweep")}
        return {
            "upsertBucket": {
                "bucket": {"id": name, "name": name, **bucket, **counted, "project": self._project(told)},
                "inserted": new,
            }
        }

    def _known(self, name: str) -> dict[str, Any] | None:
        """What a run that is resumed needs to go on after its last line."""
        if name not in self.runs:
            return None
        run = self.runs[name]
        lines = [json.dumps(row) for _, row in sorted(run.history.items())]
        return {
            "id": name, "name": name, "displayName": run.first.get("displayName"), "tags": [], "notes": None,
            "config": run.first["config"], "wandbConfig": '{"t": 1}', "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(lines), "historyTail": json.dumps(lines[-1:]),
            "eventsLineCount": 0, "eventsTail": "[]", "logLineCount": 0,
        }  # fmt: skip

    def stream(self, name: str, told: dict[str, Any]) -> None:
        """Lines of the history, the summary and the end of a run."""
        run = self.runs.setdefault(name, ToldRun())
        files = told.get("files") or {}
        if output := files.get("output.log"):
            run.output += output["content"]
        if history := files.get("wandb-history.jsonl"):
            run.history |= {history["offset"] + n: json.loads(line) for n, line in enumerate(history["content"])}
        if summary := files.get("wandb-summary.json"):
            run.summary = json.loads(summary["content"][-1])
        if told.get("complete"):
            run.exit_code = told["exitcode"]
        if run.epochs:
            self.heard_epoch.set()


def handler_of(fake: FakeWandb) -> type[BaseHTTPRequestHandler]:
    """Answers for one server; a connection a request, so that none outlives it."""

    class Handler(BaseHTTPRequestHandler):
        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fake.heard.append(f"{self.requestline}\n{self.headers}".encode() + body)
            return body

        def _send(self, content: dict[str, Any], code: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self._body()
            told = json.loads(body) if self.headers.get("Content-Type") == "application/json" else {}
            if fake.wrong_key:
                self._send({"errors": [{"message": "user is not logged in"}]}, 401)
            elif self.path.endswith("/graphql"):
                self._send({"data": fake.answer(told["query"], told.get("variables") or {})})
            else:
                if self.path.endswith("/file_stream"):  # /files/ENTITY/PROJECT/RUN/file_stream
                    fake.stream(self.path.split("/")[-2], told)
                self._send({})

        def do_PUT(self) -> None:
            self._body()
            _, _, run, name = self.path.split("/", 3)
            if run in fake.runs:
                fake.runs[run].files.add(name)
            self._send({})

        def do_GET(self) -> None:
            self._body()
            self._send({}, 401 if fake.wrong_key else 200)

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    return Handler
