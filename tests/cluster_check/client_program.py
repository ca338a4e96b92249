"""A client in a pod of the cluster, of the standard library alone. Reads a plan, prints a JSON line for each event.

The plan, the first argument: `url`, `key`, `bodies` to ask, and how many clients go on asking them, in turn, until
standard input ends; 0 asks each once, and prints each piece of text as it comes.
"""

import json
import sys
import threading
import time
import urllib.error
import urllib.request

PLAN = json.loads(sys.argv[1])
STOP = threading.Event()
LOCK = threading.Lock()


def say(**event):
    with LOCK:
        print(json.dumps(event), flush=True)


def ask(body, on_piece=lambda piece: None):
    headers = {"Authorization": f"Bearer {PLAN['key']}", "Content-Type": "application/json"}
    request = urllib.request.Request(PLAN["url"] + "/v1/completions", json.dumps(body).encode(), headers)
    text, done = "", False
    with urllib.request.urlopen(request, timeout=600) as reply:
        for line in reply:
            if line.startswith(b"data: [DONE]"):
                done = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                piece = event["choices"][0]["text"] if event["choices"] else ""
                text += piece
                on_piece(piece)
    if not done:
        raise RuntimeError("the stream ended early")
    return text


def answered(index, **how):
    began = time.monotonic()
    try:
        text = ask(PLAN["bodies"][index], **how)
        say(prompt=index, text=text, seconds=time.monotonic() - began)
    except urllib.error.HTTPError as error:
        say(prompt=index, status=error.code, error=error.read().decode(), seconds=time.monotonic() - began)
    except (OSError, RuntimeError) as error:
        say(prompt=index, error=f"{type(error).__name__}: {error}", seconds=time.monotonic() - began)


def go_on(number):
    while not STOP.is_set():
        answered(number % len(PLAN["bodies"]))
        number += 1


def main():
    if not PLAN["clients"]:
        for index in range(len(PLAN["bodies"])):
            answered(index, on_piece=lambda piece: say(piece=piece))
        return
    clients = [threading.Thread(target=go_on, args=(number,)) for number in range(PLAN["clients"])]
    for client in clients:
        client.start()
    sys.stdin.read()
    STOP.set()
    for client in clients:
        client.join()


main()
