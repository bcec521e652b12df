"""A gvproxy as far as ports are concerned: prints what it is asked, one JSON list a line."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(json.dumps([self.path, body]), flush=True)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", 80), Handler)
print("up", flush=True)
server.serve_forever()
