"""Run a shell command that starts the server, until its page has chatted in Chromium."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

from playwright.sync_api import Error, expect, sync_playwright


def chat(url):
    """Write in one page, and see it in another."""
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch()
        except Error:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium")
            )
        one, other = browser.new_page(), browser.new_page()
        one.goto(url)
        other.goto(url)
        hello = f"hello {time.time()}"  # chat.db may hold older messages
        one.fill("#input", hello)
        one.press("#input", "Enter")
        expect(other.locator("#messages li").last).to_have_text(hello, timeout=30_000)
        browser.close()


server = subprocess.Popen(
    ["bash", "-ec", sys.argv[1]],
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
)
try:
    lines = (re.search(r"http://\S+", line) for line in server.stdout)
    url = next(filter(None, lines))[0]
    assert url == "http://localhost:3000", url
    chat(url)
finally:
    os.killpg(server.pid, signal.SIGINT)  # Ctrl-C
    server.wait(10)
print("the page has chatted")
