"""Two applications for gunicorn: one answers, one never does."""

import time


def answers(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def hangs(environ, start_response):
    time.sleep(1 << 30)
