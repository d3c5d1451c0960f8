"""Runs the README's run command as it stands, until its page has chatted in Chromium."""

import os
import re
import signal
import subprocess
import sys

CHAT = """
import shutil, sys
from playwright.sync_api import Error, expect, sync_playwright

with sync_playwright() as playwright:
    try:
        browser = playwright.chromium.launch()
    except Error:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
    one, other = browser.new_page(), browser.new_page()
    one.goto(sys.argv[1])
    other.goto(sys.argv[1])
    one.fill("#input", "hello")
    one.press("#input", "Enter")
    expect(other.locator("#messages li").last).to_have_text("hello", timeout=30_000)
    browser.close()
"""

server = subprocess.Popen(
    ["bash", "-c", sys.argv[1]],
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
)
try:
    url = next(
        filter(None, (re.search(r"http://\S+", line) for line in server.stdout))
    )[0]
    assert url == "http://localhost:3000", url
    subprocess.run([".venv/bin/python", "-c", CHAT, url], check=True, timeout=120)
finally:
    os.killpg(server.pid, signal.SIGINT)  # Ctrl-C
    server.wait(10)
print("the page has chatted at", url)
