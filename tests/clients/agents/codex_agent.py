"""Two sessions of OpenAI's codex, by Responses. Usage: URL MODEL

In the first it runs a tool of its own. Between the two is a relay. It demands a call of a tool that does nothing, since
a model that makes up what it says calls nothing by itself, and none of those that do something once that was heard. The
second is over a WebSocket, on which codex has its long prompt computed before it asks.
"""

import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request

url, model = sys.argv[1:]
codex = pathlib.Path(os.environ["NODE_PATH"], ".bin/codex")
print(subprocess.run([codex, "--version"], capture_output=True, text=True, check=True).stdout.strip())
asked, answered = [], []
# In seconds: where others work too, a session takes a minute and a half.
AT_MOST = 240


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def demanding(body):
    heard = any(item["type"] == "function_call_output" for item in body["input"])
    # A function without arguments that only tells what codex was set to do.
    body["tool_choice"] = "none" if heard else {"type": "function", "name": "get_goal"}
    body["parallel_tool_calls"] = False
    return body


class Relay(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = demanding(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        asked.append(body)
        request = urllib.request.Request(
            url + self.path, json.dumps(body).encode(), {"content-type": "application/json", "accept": "text/event-stream"}
        )
        try:
            answer = urllib.request.urlopen(request, timeout=240)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.send_response(answer.status)
            self.send_header("content-type", answer.headers["content-type"])
            self.end_headers()
            whole = b""
            while piece := answer.read1(65536):
                whole += piece
                self.wfile.write(piece)
                self.wfile.flush()
        answered.append((answer.status, whole.decode()))

    def log_message(self, *_):
        pass


def session(port, **more):
    """Asks codex something; gives what it says of it, and what it wrote."""
    provider = {"name": '"planaria"', "base_url": f'"http://127.0.0.1:{port}/v1"', "wire_api": '"responses"',
                "request_max_retries": 0, "stream_max_retries": 0, **more}
    settings = {"model_provider": "planaria", "web_search": '"disabled"',
                "model_providers.planaria": "{" + ",".join(f"{key}={value}" for key, value in provider.items()) + "}",
                # Its tools are within a namespace, which a node refuses by name.
                "features.multi_agent": "false"}
    command = [codex, "exec", "--skip-git-repo-check", "--json", "--sandbox", "read-only", "--model", model]
    for key, value in settings.items():
        command += ["--config", f"{key}={value}"]
    with tempfile.TemporaryDirectory() as home:
        work = pathlib.Path(home, "work")
        work.mkdir()
        environment = {"PATH": os.environ["PATH"], "HOME": home, "CODEX_HOME": home}
        # In a session of its own: the package starts the program by a script, and both have to end.
        running = subprocess.Popen(
            [*command, "What is here?"], cwd=work, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )
        try:
            out, err = running.communicate(timeout=AT_MOST)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            sys.exit(f"FAILED: codex did not end in {AT_MOST} s\n{answered}")
    events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    seen = [event["type"] for event in events]
    told = f"{out}\n{err}\n{[(status, text[-600:]) for status, text in answered]}"
    check(running.returncode == 0, f"{running.returncode}\n{told}")
    check("turn.completed" in seen and "turn.failed" not in seen and "error" not in seen, told)
    return events, told


relay = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Relay)
threading.Thread(target=relay.serve_forever, daemon=True).start()
_, told = session(relay.server_port)
check([status for status, _ in answered] == [200, 200], told)
[output] = [item for item in asked[1]["input"] if item["type"] == "function_call_output"]
[call] = [item for item in asked[1]["input"] if item["type"] == "function_call"]
check(call["name"] == "get_goal" and call["call_id"] == output["call_id"], asked[1]["input"][-3:])

# What passes between the two is not changed, only how it begins is seen.
beginnings = []
node = url.removeprefix("http://").rsplit(":", 1)
listener = socket.create_server(("127.0.0.1", 0))


def pass_on(source, sink, begins):
    while part := source.recv(65536):
        if begins:
            beginnings.append(part.split(b"\r\n")[0].decode())
            begins = False
        sink.sendall(part)
    sink.shutdown(socket.SHUT_WR)


def accept():
    while True:
        client, _ = listener.accept()
        server = socket.create_connection((node[0], int(node[1])))
        threading.Thread(target=pass_on, args=(client, server, True), daemon=True).start()
        threading.Thread(target=pass_on, args=(server, client, True), daemon=True).start()


threading.Thread(target=accept, daemon=True).start()
events, told = session(listener.getsockname()[1], supports_websockets="true")
check(beginnings == ["GET /v1/responses HTTP/1.1", "HTTP/1.1 101 Switching Protocols"], f"{beginnings}\n{told}")
[usage] = [event["usage"] for event in events if event["type"] == "turn.completed"]
check(usage["cached_input_tokens"] > usage["input_tokens"] / 2, usage)

print("all checks passed")
