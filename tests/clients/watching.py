"""A person who watches a cluster in a terminal: `watching.py PLANARIA URL`."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time

PATIENCE = 120

planaria, url = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(planaria, [planaria, "status", "--watch", "--api", url])

shown = b""


def resize(rows, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def wait_for(text):
    """Waits until `text` is drawn, and takes it and what is before it away."""
    global shown
    deadline = time.monotonic() + PATIENCE
    while text not in shown:
        if time.monotonic() > deadline:
            sys.exit(f"{text!r} does not come in:\n{shown!r}")
        if terminal in select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65536)
    shown = shown.split(text, 1)[1]


wait_for(b"\x1b[?1049h")
resize(40, 100)
wait_for(b"(this)")
wait_for(b"q leaves")
# Drawn again by itself, and at a resize: too few rows are said to be.
wait_for(b"(this)")
resize(5, 100)
wait_for(b"lines more")
os.write(terminal, b"q")
wait_for(b"\x1b[?1049l")
deadline = time.monotonic() + PATIENCE
while True:
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        break
    if time.monotonic() > deadline:
        sys.exit("it does not end")
    time.sleep(0.05)
if os.waitstatus_to_exitcode(status) != 0:
    sys.exit(f"it ended with {status}")
print("all checks passed")
