"""A person who talks to a model in a terminal: `terminal.py PLANARIA URL`."""

import os
import pty
import re
import select
import sys
import time

PATIENCE = 120
PROMPT = "> "

planaria, url = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(planaria, [planaria, "run", "demo", "--api", url, "--temperature", "0"])

# What moves the cursor or colours the text.
CONTROL = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]|\r")

raw = b""
shown = ""
seen = 0


def wait_for(text):
    """Waits until `text` is shown behind what was waited for before."""
    global shown, seen
    deadline = time.monotonic() + PATIENCE
    while text not in shown[seen:]:
        if time.monotonic() > deadline or not read(1):
            sys.exit(f"{text!r} does not come in:\n{shown[seen:]!r}\nbehind:\n{shown[:seen]!r}")
    before = shown[seen:].split(text)[0]
    seen += len(before) + len(text)
    return before


def read(seconds):
    """Reads what is there; False at the end."""
    global raw, shown
    if terminal in select.select([terminal], [], [], seconds)[0]:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            return False
        raw += piece
        shown = CONTROL.sub("", raw.decode(errors="ignore"))
        return bool(piece)
    return True


def type_line(text):
    os.write(terminal, text.encode() + b"\r")
    # It is shown as it is typed.
    wait_for(text[-10:])


def check(holds, what):
    if not holds:
        sys.exit(f"{what}; shown:\n{shown!r}")


wait_for("/help")
wait_for(PROMPT)
type_line("/help")
wait_for("/clear")
wait_for(PROMPT)
type_line("/nonsense")
wait_for("no command /nonsense")
wait_for(PROMPT)

# The demo model's answers to this are some sentences long.
type_line("Tell me a story about a badger in an old mill.")
whole = wait_for("\n" + PROMPT)
check(len(whole.strip()) > 100, "there is no answer")

# Ctrl-C stops the answer and not the program.
type_line("Tell me a story about a badger in an old mill.")
wait_for(whole.strip()[:20])
os.write(terminal, b"\x03")
cut = wait_for("\n" + PROMPT)

# At the prompt it gives up the line.
os.write(terminal, b"never asked")
wait_for("never asked")
os.write(terminal, b"\x03")
wait_for(PROMPT)

# The up key brings back what was typed.
os.write(terminal, b"\x1b[A")
wait_for("badger in an old mill.")
os.write(terminal, b"\x15")

type_line("/clear")
wait_for(PROMPT)
type_line("Tell me a story about a badger in an old mill.")
again = wait_for("\n" + PROMPT)
check(again.strip().endswith(whole.strip()[-40:]), "the same question has another answer")

# Ctrl-D ends.
os.write(terminal, b"\x04")
deadline = time.monotonic() + PATIENCE
while True:
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        break
    check(time.monotonic() < deadline, "it does not end")
    read(0.1)
check(os.waitstatus_to_exitcode(status) == 0, f"it ended with {status}")
print("all checks passed")
