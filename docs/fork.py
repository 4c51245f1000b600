#!/usr/bin/env python3
"""Forks the machine that it runs in, as os.fork() forks a process.

    usage: fork.py DEPTH COUNT

Forks COUNT machines, each of which does the same with one level less, and waits for them. A child ends its machine with
the number of machines below it, itself included; the first one prints that.
"""

import json
import random
import socket
import sys

SOCKET = "/run/forkypig/agent.sock"


class ForkError(Exception):
    """The agent refused."""


def ask(request):
    """Sends a request and yields its answers."""
    with socket.socket(socket.AF_UNIX) as agent:
        agent.connect(SOCKET)
        agent.sendall(json.dumps(request).encode() + b"\n")
        for line in agent.makefile():
            answer = json.loads(line)
            if "error" in answer:
                raise ForkError(answer["error"])
            yield answer


def fork(count=1, name=""):
    """Forks this machine. In the parent (None, [names of the children]); in a child (its number from 0, [])."""
    answer = next(ask({"op": "fork", "count": count, "name": name}))
    if answer["role"] == "child":
        # What was random before is the same in all of them.
        random.seed()
        return answer["index"], []
    failed = [child["error"] for child in answer["children"] if child["error"]]
    if failed:
        raise ForkError("; ".join(failed))
    return None, [child["name"] for child in answer["children"]]


def wait(children=()):
    """Yields (name, code) of children as they end; the code is None when one did not end by exit()."""
    for answer in ask({"op": "wait", "children": list(children)}):
        if "done" in answer:
            # The connection stays open, for another request.
            return
        yield answer["name"], answer["code"]


def exit_machine(code):
    """Ends this machine."""
    for _ in ask({"op": "exit", "code": code}):
        pass


def main():
    depth, count = int(sys.argv[1]), int(sys.argv[2])
    is_child = False
    below = 0
    while depth > 0:
        index, children = fork(count)
        if index is None:
            for name, code in wait(children):
                if code is None:
                    raise ForkError(f"{name} did not end by itself")
                below += code
            break
        is_child = True
        depth -= 1
    if is_child:
        exit_machine(below + 1)
    print(below)


if __name__ == "__main__":
    main()
