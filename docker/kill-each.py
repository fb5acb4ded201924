#!/usr/bin/env python3
"""Kills each container of compose-postgres.yaml while visitors come, and checks the books: docker/kill-each.py PROJECT

The engine starts what was killed again. A visitor who was welcomed is counted; one who was not may be.
"""
import http.client
import os
import signal
import subprocess
import sys
import threading
import time

PROJECT = sys.argv[1]
PORTS = 3000, 3010
VISITORS = 4
PATIENCE_S = 60
WELCOME = b"Welcome to my site!"


def docker(*arguments):
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def container(service):
    label = "label=com.docker.compose."
    return docker("ps", "-aq", "--filter", f"{label}project={PROJECT}", "--filter", f"{label}service={service}")


def process(service):
    return int(docker("inspect", "-f", "{{.State.Pid}}", container(service)))


def total():
    return int(docker("exec", container("counter-1"), "/tallyring", "total").replace(",", ""))


def within_patience(what, is_so):
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.05)


class Visitors:
    """Of one site."""

    def __init__(self, port):
        self.port = port
        self.lock = threading.Lock()
        self.welcomed = self.unsure = 0

    def visit(self):
        """Makes one visit; whether it was welcomed, or None where nothing was sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.connect()
        except OSError:
            return None
        try:
            connection.request("GET", "/")
            return connection.getresponse().read() == WELCOME
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def go_on(self, stop):
        while not stop.is_set():
            welcomed = self.visit()
            with self.lock:
                self.welcomed += welcomed is True
                self.unsure += welcomed is False
            if not welcomed:
                time.sleep(0.02)

    def wait_for(self, more):
        wanted = self.welcomed + more
        within_patience(f"no visitor of port {self.port} is welcomed", lambda: self.welcomed >= wanted)


sites = [Visitors(port) for port in PORTS]
stop = threading.Event()
threads = [threading.Thread(target=site.go_on, args=[stop]) for site in sites for _ in range(VISITORS)]
before = total()
for thread in threads:
    thread.start()
try:
    for service in "counter-1", "counter-2", "site-1", "site-2", "database":
        for site in sites:
            site.wait_for(30)
        killed = process(service)
        os.kill(killed, signal.SIGKILL)
        within_patience(f"{service} is not started again", lambda: process(service) not in (0, killed))
        began = time.monotonic()
        for site in sites:
            site.wait_for(30)
        print(f"{service} killed: both sites welcome again, {time.monotonic() - began:.1f} s after its start")
finally:
    stop.set()
    for thread in threads:
        thread.join()
welcomed, unsure = (sum(getattr(site, name) for site in sites) for name in ("welcomed", "unsure"))
counted = total() - before
print(f"{welcomed} welcomed, {unsure} not welcomed or not answered, {counted} counted")
assert welcomed <= counted <= welcomed + unsure
for site in sites:
    assert all(site.visit() for _ in range(20))
assert total() == before + counted + 40, "undisturbed, not every visit was counted once"
