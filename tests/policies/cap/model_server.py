"""A server of the OpenAI form in the test process, with answers and faults by script."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Message = dict[str, Any]
Behaviour = str | tuple[int, Any] | Callable[[BaseHTTPRequestHandler], None]
"""A text is the model's answer; (status, body) an answer of another kind; a function does anything."""

USAGE = {"prompt_tokens": 100, "completion_tokens": 20}


def completion(text: str | None, **more: Any) -> dict[str, Any]:
    """A reply as the API has it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice], "usage": USAGE} | more


class ModelServer:
    """Answers each question with the next behaviour of a list, or with what a function makes of the messages.

    Attributes:
        questions: The bodies of all questions.
        headers: The headers of all requests.
    """

    def __init__(
        self,
        script: Sequence[Behaviour] | Callable[[list[Message]], Behaviour],
        models: Sequence[str] | int = ("m",),
    ) -> None:
        self.questions: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._script, self._models = script, models
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                if isinstance(outer._models, int):
                    reply(self, outer._models, {"error": {"message": "no list"}})
                else:
                    reply(self, 200, {"object": "list", "data": [{"id": name} for name in outer._models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.headers.append(dict(self.headers))
                outer.questions.append(body)
                if self.path != "/v1/chat/completions":
                    reply(self, 404, {"error": {"message": f"no {self.path}"}})
                    return
                script = outer._script
                found = script(body["messages"]) if callable(script) else script[len(outer.questions) - 1]
                if isinstance(found, str):
                    reply(self, 200, completion(found))
                elif isinstance(found, tuple):
                    reply(self, *found)
                else:
                    found(self)

            def log_message(self, *given: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: Any, **headers: str) -> None:
    """Send a reply: a dict as JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
