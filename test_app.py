"""What step 8 promises, tried on a real `python app.py` and its page in a real Chromium.

Raw packets: first Engine.IO's digit (0 open, 2 ping, 3 pong, 4 message), then Socket.IO's: 40 CONNECT,
and its answer; 44 refused; 42[...] EVENT; 427[...] EVENT that wants ack 7; 437[...] that ack.
"""

import json
import os
import random
import re
import select
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import socketio
import websocket
from playwright.sync_api import Error, expect, sync_playwright

HERE = Path(__file__).parent
CLIENT = HERE / "node_modules/socket.io-client/dist/socket.io.min.js"
CDN = "https://cdn.socket.io/4.8.3/socket.io.min.js"
EVENT = "sohbet mesajı"
POLLING = "/socket.io/?EIO=4&transport=polling"
WEBSOCKET = "/socket.io/?EIO=4&transport=websocket"
WAIT = 60  # seconds, until what must happen counts as not happening
expect.set_options(timeout=WAIT * 1000)
socket.setdefaulttimeout(WAIT)


class Server:
    """`python app.py` in a folder of its own; started again, it keeps its port."""

    def __init__(self, folder, port=0):
        self.folder, self.port, self.log = folder, port, folder / "log"
        self.clients = ExitStack()

    def start(self, files=None, **env):
        """Return when it says where it runs; `files`: how many descriptors it may have."""
        command = [sys.executable, HERE / "app.py"]
        if files:
            command = ["sh", "-c", f'ulimit -n {files} && exec "$0" "$@"', *command]
        ours = {"HOST": "", "PORT": str(self.port)}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command,
                0,
                cwd=self.folder,
                env=os.environ | ours | env,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        line = self.next_line()
        running = re.fullmatch(r"server running at (http://.+:(\d+))\n", line)
        if not running:
            self.stop()
            pytest.fail(self.log.read_text())
        self.url, self.port = running[1], int(running[2])
        return self

    def next_line(self):
        """Return the next line that the server prints, or "nothing" where none comes."""
        printed = select.select([self.process.stdout], [], [], WAIT)[0]
        return self.process.stdout.readline().decode() if printed else "nothing"

    def stop(self):
        self.process.kill()
        self.process.wait(WAIT)
        self.process.stdout.close()

    def database(self):
        """Another connection to the server's database, closed at the end of a `with`."""
        path = self.folder / "chat.db"
        return closing(sqlite3.connect(path, timeout=WAIT, isolation_level=None))

    def query(self, sql, *values):
        with self.database() as db:
            return db.execute(sql, values).fetchall()

    def texts(self):
        rows = self.query("SELECT content FROM messages ORDER BY id")
        return [text for (text,) in rows]

    def fill(self, count, text="'history ' || i"):
        """Store a history of `count` messages, with the ids 1 to `count`."""
        self.query(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            f"INSERT INTO messages SELECT i, 'h-' || i, {text} FROM n",
            count,
        )

    def connection(self):
        return socket.create_connection(("localhost", self.port))

    def crowd(self, count):
        """Open connections that say nothing, closed at the end of a `with`."""
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(self.connection())
            return stack.pop_all()

    def join(self, auth=None, transports=("websocket",)):
        """Connect a Python client, and return it."""
        client = socketio.SimpleClient(reconnection=False, request_timeout=WAIT)
        self.clients.callback(lambda: client.client and client.client.shutdown())
        client.connect(self.url, {}, auth, transports, wait_timeout=WAIT)
        return client

    def raw(self, **options):
        """Open a raw WebSocket, and return it; CONNECT is still to be sent."""
        url = f"ws://localhost:{self.port}{WEBSOCKET}"
        ws = websocket.create_connection(url, WAIT, **options)
        self.clients.enter_context(closing(ws))
        assert receive(ws).startswith("0{")
        return ws

    def connected(self, auth=None, **options):
        """Open a raw WebSocket, and return it when CONNECT has been answered."""
        ws = self.raw(**options)
        ws.send("40" if auth is None else f"40{json.dumps(auth)}")
        assert kind(receive(ws)) == "40"
        return ws


@pytest.fixture
def server():
    with TemporaryDirectory() as folder:
        server = Server(Path(folder)).start()
        with server.clients:
            yield server
            server.stop()


@pytest.fixture(scope="session")
def browser():
    """Playwright's own Chromium, or the system's."""
    with sync_playwright() as playwright:
        for name in "", "chromium", "chromium-browser", "google-chrome":
            with suppress(Error):
                browser = playwright.chromium.launch(executable_path=shutil.which(name))
                break
        else:
            pytest.skip("no Chromium: install it, or run .venv/bin/playwright install")
        try:
            if not CLIENT.exists():
                urllib.request.urlopen(CDN, timeout=5).close()
        except OSError:
            pytest.skip("no Socket.IO client: install npm, or go online")
        yield browser
        browser.close()


@pytest.fixture
def tab(server, browser):
    """A function that opens a window of its own, with the page unless url is None."""
    with ExitStack() as stack:

        def tab(url="/", **options):
            context = browser.new_context(base_url=server.url, **options)
            page = stack.enter_context(context).new_page()
            page.set_default_timeout(WAIT * 1000)
            if url:
                page.goto(url)
            return page

        yield tab


def until(condition, page=None, passing=0):
    """Wait until the condition holds; each look lets the page's handlers run, its clock go on."""
    give_up = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        if passing:
            page.clock.fast_forward(passing)
        elif page:
            page.title()
        time.sleep(0.02)


def send(client, text, client_offset):
    """Send a message and return its ack: None, or {"error": ...}."""
    return client.call(EVENT, (text, client_offset), timeout=WAIT)


def received_sorted(client, count):
    """Return a Python client's next `count` messages, [text, id] each; its threads mix them."""
    received = [client.receive(timeout=WAIT) for _ in range(count)]
    return sorted((message for _, *message in received), key=lambda message: message[1])


def receive(ws):
    """Return the next packet that is not a ping."""
    while (packet := ws.recv()) == "2":
        ws.send("3")
    return packet


def kind(packet):
    """Return the digits that a packet begins with: its type, then the number of an ack."""
    return re.match(r"\d*", packet)[0]


def kinds(ws, count):
    return [kind(receive(ws)) for _ in range(count)]


def next_message(ws):
    """Return the next message, [text, id]; acks before it are passed over."""
    while kind(packet := receive(ws)) != "42":
        assert kind(packet).startswith("43"), packet
    return json.loads(packet[2:])[1:]


def next_ids(ws, count):
    return [next_message(ws)[1] for _ in range(count)]


# Stored, broadcast, acknowledged


def test_a_message_is_stored_then_broadcast_then_acknowledged(server):
    ws = server.connected()
    for id in 1, 2:  # again, once the row is gone: its id is not used again
        ws.send(f'42{id}["{EVENT}","hello","a-0"]')
        assert next_message(ws) == ["hello", id]
        row = server.query("SELECT id, client_offset, content FROM messages")
        assert row == [(id, "a-0", "hello")]
        assert receive(ws) == f"43{id}[]"
        server.query("DELETE FROM messages")


@pytest.mark.parametrize("transports", [None, ["polling"], ["websocket"]])  # None: both
def test_any_client_may_join_and_two_may_write_the_same_text(server, transports):
    one, other = server.join(transports=transports), server.join(transports=transports)
    assert send(one, "hello", "a-0") is None
    assert send(other, "hello", "b-0") is None
    for client in one, other:
        assert received_sorted(client, 2) == [["hello", 1], ["hello", 2]]


def test_what_was_acknowledged_is_there_after_kill_9(server):
    client = server.join()
    for i in range(3):
        assert send(client, "hello", f"a-{i}") is None
    server.stop()
    server.start()
    assert [id for _, id in received_sorted(server.join(), 3)] == [1, 2, 3]


# Exactly once, whatever the server is asked


def test_a_retry_is_acknowledged_but_neither_stored_nor_broadcast_again(server):
    ws = server.connected()
    for ack in 1, 2, 3:
        ws.send(f'42{ack}["{EVENT}","hello","a-0"]')
    ws.send(f'424["{EVENT}","next","a-1"]')
    assert next_message(ws) == ["hello", 1]
    assert kinds(ws, 3) == ["431", "432", "433"]
    assert next_message(ws) == ["next", 2]  # a retry uses up no id
    assert kinds(ws, 1) == ["434"]


def test_a_message_that_another_constraint_keeps_out_gets_no_ack(server):
    server.query(
        "CREATE TRIGGER no BEFORE INSERT ON messages WHEN NEW.content = 'no' "
        "BEGIN SELECT RAISE(ABORT, 'not this'); END"
    )
    ws = server.connected()
    for ack, text in enumerate(["no", "yes"]):
        ws.send(f'42{ack}["{EVENT}","{text}","a-{ack}"]')
    assert kinds(ws, 2) == ["42", "431"]


def test_what_is_not_two_proper_texts_is_answered_with_an_error(server):
    client, longest = server.join(), "x" * 10_000
    for wrong in "", longest + "x", 5, None, True, ["x"], {}, b"x", "\ud800", "\udfff":
        for arguments in (wrong, "a-0"), ("hello", wrong):
            assert "needs 1 to 10,000" in client.call(EVENT, arguments)["error"]
    send(client, longest, longest)
    assert received_sorted(client, 1) == [[longest, 1]]


@pytest.mark.parametrize("offset", [None, 0, 120, 250, 2**63, "", "120", "9" * 30])
def test_after_connect_comes_what_followed_the_server_offset(server, offset):
    server.fill(250)
    ws = server.connected({"serverOffset": offset})
    for i in 0, 1:
        ws.send(f'42["{EVENT}","and then","a-{i}"]')
    seen = min(int(offset or 0), 250)
    assert next_ids(ws, 252 - seen) == list(range(seen + 1, 253))


def test_newcomers_in_a_flood_see_each_message_once_and_in_order(server):
    server.fill(300)
    flood = server.connected({"serverOffset": 300})
    newcomers = [server.raw() for _ in range(40)]
    server.process.send_signal(signal.SIGSTOP)  # what is sent now is read in one go
    for i in range(
        1000
    ):  # each and its retry: newcomers catch up in a turn without a row
        flood.send(f'42["{EVENT}","in the flood","f-{i // 2}"]')
    for i, newcomer in enumerate(newcomers):
        newcomer.send(f'40{{"serverOffset":{i % 2 * 300}}}')
    server.process.send_signal(signal.SIGCONT)
    for i, newcomer in enumerate(newcomers):
        assert kind(receive(newcomer)) == "40"
        ids = range(i % 2 * 300 + 1, 801)
        assert next_ids(newcomer, len(ids)) == list(ids)


def test_a_history_that_cannot_be_read_is_read_later(server):
    server.fill(2)
    server.query("ALTER TABLE messages RENAME TO away")
    ws = server.connected()
    assert "no such table: messages (trying again)" in server.next_line()
    server.query("ALTER TABLE away RENAME TO messages")
    assert next_ids(ws, 2) == [1, 2]


# Exactly once, whatever the page's link does


def carry(page, lost=lambda packet, link: False, cut=lambda packet, link: False):
    """Carry the page's WebSockets; return a list that gets the text of each message it sends.

    lost(packet, link) and cut(packet, link), asked after that, tell whether a packet of either
    side gets lost, and whether its link is cut with it; link: 1 for the page's first, 2 ...
    """
    sent, links = [], []

    def carry_link(to_page):
        to_server = to_page.connect_to_server()
        links.append(to_page)
        number = len(links)

        def pass_on(packet, end):
            if end is to_server and kind(packet).startswith("42"):
                sent.append(json.loads(packet.lstrip("0123456789"))[1])
            if cut(packet, number):
                to_page.close()
                to_server.close()
            elif not lost(packet, number):
                end.send(packet)

        to_page.on_message(lambda packet: pass_on(packet, to_server))
        to_server.on_message(lambda packet: pass_on(packet, to_page))

    page.route_web_socket("**/socket.io/**", carry_link)
    return sent


def open_and_stop_the_clock(page):
    page.clock.install(time=0)
    page.clock.pause_at(1000)  # seconds; fast_forward and run_for take milliseconds
    page.goto("/")
    expect_status(page, "connected")


def write(page, text):
    page.fill("#input", text)
    page.press("#input", "Enter")


def expect_status(page, text):
    expect(page.locator("#status")).to_have_text(text)


def expect_lines(page, *texts, where="#messages"):
    expect(page.locator(f"{where} li")).to_have_text(texts)


def expect_count(page, count, where="#messages"):
    expect(page.locator(f"{where} li")).to_have_count(count)


def test_lines_that_two_pages_write_offline_are_not_taken_for_one(server, tab):
    pages = [tab(), tab()]
    for page in pages:
        page.click('"Disconnect"')
        write(page, "written offline")
    for page in pages:
        page.click('"Connect"')
    for page in pages:
        expect_lines(page, "written offline", "written offline")


def test_lines_come_in_order_though_each_try_of_the_first_cuts_the_link(server, tab):
    page = tab(None)
    sent = carry(page, cut=lambda packet, link: '"one"' in packet and link < 6)
    page.goto("/")
    write(page, "one")
    write(page, "two")
    expect_lines(page, "one", "two")
    assert sent == ["one"] * 6 + ["two"]


def test_lines_written_on_a_silent_link_come_in_order(server, tab):
    page, is_silent = tab(None), False
    sent = carry(page, lost=lambda packet, link: is_silent and link == 1)
    open_and_stop_the_clock(page)
    is_silent = True
    write(page, "one")
    write(page, "two")
    for tries in range(1, 5):
        until(lambda tries=tries: sent == ["one"] * tries, page)
        page.clock.fast_forward(10_000)
    page.clock.fast_forward(5_000)  # 45 s without a ping: the page gives the link up
    expect_status(page, "reconnecting")
    page.clock.fast_forward(5_000)
    expect_lines(page, "one", "two")


def test_lines_written_while_chat_db_is_locked_come_in_order(server, tab):
    page = tab(None)
    open_and_stop_the_clock(page)
    with server.database() as db:
        db.execute("BEGIN IMMEDIATE")
        for text in "one", "two", "three":
            write(page, text)
        tries = lambda: server.log.read_text().count("sqlite3.OperationalError")
        until(lambda: tries() > 6, page, passing=1000)  # the link is given up as well
    until(lambda: page.locator("#outbox li").count() == 0, page, passing=100)
    expect_lines(page, "one", "two", "three")


def test_after_waking_up_a_line_is_sent_once_and_the_next_is_not_lost(server, tab):
    page = tab(None)
    sent = carry(
        page, lost=lambda packet, link: '"two"' in packet and sent.count("two") < 2
    )
    open_and_stop_the_clock(page)
    page.clock.set_system_time(100_000)  # it slept: the link is old, no timer has run
    write(page, "one")
    write(page, "two")
    page.clock.fast_forward(5_000)
    until(lambda: "two" in sent, page)
    page.clock.fast_forward(10_000)
    expect_lines(page, "one", "two")
    assert sent == ["one", "two", "two"]


class Proxy:
    """Cuts each link at one of the client's first 4 to 12 chunks, which may still arrive."""

    def __init__(self, server):
        self.server, self.random, self.cuts = server, random.Random(8), 0
        self.listener = socket.create_server(("localhost", 0))
        self.url = f"http://localhost:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with suppress(OSError):  # the listener is closed at the end, or times out
            while True:
                args = self.listener.accept()[0], self.random.randint(4, 12)
                threading.Thread(target=self.carry, args=args, daemon=True).start()

    def carry(self, client, chunks):
        with client, suppress(OSError), self.server.connection() as server:
            while chunks:
                for end in select.select([client, server], [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    if end is client:
                        chunks -= 1
                    if chunks or self.random.random() < 0.7:
                        (server if end is client else client).sendall(data)
            self.cuts += 1


def test_through_cuts_and_kills_pages_show_each_line_once_and_in_order(server, tab):
    proxy, written, pages = Proxy(server), [], []
    server.fill(3000)

    def everyone_writes(count):
        """Each page's form is submitted `count` times, faster than it gets acks."""
        for page in pages * count:
            written.append(f"{pages.index(page)} writes line {len(written)}")
            page.evaluate("l => (input.value = l, form.requestSubmit())", written[-1])

    with closing(proxy.listener):
        for _ in range(4):
            pages.append(tab(url=proxy.url))
            everyone_writes(8)
        for _ in range(2):
            server.stop()
            everyone_writes(4)
            server.start()
            pages.append(tab(url=proxy.url))
            everyone_writes(4)
        for page in pages:
            expect_count(page, 0, "#outbox")
        stored = server.texts()
        author = lambda text: text[0]
        assert sorted(stored[3000:], key=author) == sorted(written, key=author)
        for page in pages:
            expect(page.locator("#messages li").last).to_have_text(stored[-1])
            assert page.locator("#messages li").all_text_contents() == stored
    assert proxy.cuts > 10


# Nobody holds up the others, keeps them out, or ends the server


def test_who_reads_chat_db_keeps_nobody_from_writing(server):
    client = server.join()
    send(client, "one", "a-0")
    with server.database() as db:
        db.execute("BEGIN")
        assert db.execute("SELECT content FROM messages").fetchone()  # still being read
        assert send(client, "two", "a-1") is None


def test_a_locked_database_delays_nobody_and_gives_no_ack(server):
    ws = server.connected()
    with server.database() as db:
        db.execute("BEGIN IMMEDIATE")
        for i in range(100):  # 5 s each, were it to wait for the lock
            ws.send(f'421["{EVENT}","hello","a-{i}"]')
        ws.send(f'422["{EVENT}","","b-0"]')
        assert receive(ws).startswith('432[{"error"')  # the others got no ack
    ws.send(f'423["{EVENT}","hello","a-0"]')
    assert kinds(ws, 2) == ["42", "433"]
    assert server.texts() == ["hello"]


def test_a_client_that_offers_compression_gets_plain_frames(server):
    ws = server.connected(header=["Sec-WebSocket-Extensions: permessage-deflate"])
    assert "sec-websocket-extensions" not in ws.headers


def test_a_hundred_may_connect_at_once(server):
    server.process.send_signal(signal.SIGSTOP)
    server.crowd(100).close()  # the kernel's queue has taken them all
    server.process.send_signal(signal.SIGCONT)


def test_who_has_loaded_the_page_keeps_no_place(server):
    with server.connection() as link:
        link.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"\r\nConnection: close\r\n" in link.makefile("rb").read()


def serving(server, change, system=""):
    """Make Python run `system` first, and `change` before it serves: return what start() needs."""
    (server.folder / "sitecustomize.py").write_text(f"""
import eventlet.wsgi, os, sys
def serve(*args, do=eventlet.wsgi.server, **options):
    {change}
    do(*args, **options)
eventlet.wsgi.server = serve
{system}
""")
    return {"PYTHONPATH": str(server.folder)}


def test_who_connects_and_says_nothing_is_dropped(server):
    server.stop()
    server.start(files=64, **serving(server, "options['socket_timeout'] /= 60"))  # 1 s
    with server.crowd(40):
        assert urllib.request.urlopen(server.url, timeout=WAIT).status == 200


def test_when_file_descriptors_run_out_the_chat_goes_on(server):
    server.stop()
    server.start(files=128)
    with server.crowd(80):
        client = server.join()
        with server.crowd(100):
            assert send(client, "hello", "a-0") is None
    assert send(server.join(), "hello again", "b-0") is None


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/", "/socket.io.min.js", POLLING, WEBSOCKET])
def test_requests_reset_before_an_answer_leave_no_file_open(server, method, path):
    server.stop()
    server.start(files=512)
    request = f"{method} {path} HTTP/1.1\r\nContent-Length: 2\r\n"
    if path == WEBSOCKET:
        request += "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        request += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: 0123456789\r\n"
    for _ in range(6):
        server.process.send_signal(signal.SIGSTOP)
        for _ in range(100):
            with server.connection() as link:
                link.sendall(f"{request}\r\n40".encode())
                reset = struct.pack("ii", 1, 0)  # on, 0 s: closing sends a reset
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        server.process.send_signal(signal.SIGCONT)
        urllib.request.urlopen(server.url, timeout=WAIT).close()
    assert send(server.join(), "hello", "a-0") is None
    if sys.platform == "linux":
        until(lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) < 20)


def test_a_slow_reader_gets_a_long_answer_whole(server):
    server.fill(800, "replace(hex(zeroblob(5000)), '0', 'x')")
    greeting = urllib.request.urlopen(server.url + POLLING).read()
    poll = f"{POLLING}&sid={json.loads(greeting[1:])['sid']}"
    urllib.request.urlopen(server.url + poll, b"40").close()
    next_ids(server.connected(), 800)  # by now the poll's answer, 8 MB, is ready
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("localhost", server.port))
        link.sendall(f"GET {poll} HTTP/1.1\r\n\r\n".encode())
        body = link.makefile("rb").read().split(b"\r\n\r\n")[1].decode()
    messages = [packet for packet in body.split("\x1e") if kind(packet) == "42"]
    assert [json.loads(packet[2:])[2] for packet in messages] == list(range(1, 801))


def test_a_long_history_keeps_nobody_waiting(server):
    server.fill(10_000)
    ws, before = server.raw(), 0
    server.process.send_signal(signal.SIGSTOP)
    ws.send("40")
    ws.send(f'421["{EVENT}","hello","a-0"]')
    server.process.send_signal(signal.SIGCONT)
    while kind(receive(ws)) != "431":
        before += 1
    assert before < 1000


@pytest.mark.parametrize("text, rows", [("stored", 1051), ("", 51)])
def test_a_flood_stored_or_refused_lets_others_through(server, text, rows):
    flood, others = server.connected(), [server.connected() for _ in range(50)]
    server.process.send_signal(signal.SIGSTOP)
    for i in range(1000):
        flood.send(f'42["{EVENT}","{text}","f-{i}"]')
    flood.send(f'42["{EVENT}","last of the flood","f"]')
    for i, other in enumerate(others):
        other.send(f'42["{EVENT}","from another","o-{i}"]')
    server.process.send_signal(signal.SIGCONT)
    until(lambda: len(server.texts()) == rows)
    assert server.texts()[:500].count("from another") == 50
    assert server.texts()[-1] == "last of the flood"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_even_with_a_long_poll_open(server, how):
    greeting = urllib.request.urlopen(server.url + POLLING).read()
    sid = json.loads(greeting[1:])["sid"]
    with server.connection() as poll:
        poll.sendall(f"GET {POLLING}&sid={sid} HTTP/1.1\r\n\r\n".encode())
        urllib.request.urlopen(server.url).close()  # by now it has read the poll, too
        server.process.send_signal(how)
        # not by the signal's default action, which process 1 of a container ignores
        assert server.process.wait(15) == 128 + how


def test_it_starts_where_nobody_says_how_many_files_it_may_open(server):
    windows = "del os.sysconf; sys.modules['resource'] = None"
    for system, limit in (windows, 256), ("os.sysconf = lambda _: -1", 10**9):
        server.stop()
        say = "print(options['max_size'], flush=True)"
        server.start(**serving(server, say, system))
        assert 200 < int(server.next_line()) <= limit


def test_a_second_server_at_the_same_address_says_that_it_is_taken(server):
    server.stop()
    server.start()  # at a number: eventlet never shares port 0
    refused = pytest.raises(pytest.fail.Exception)
    with TemporaryDirectory() as folder, refused as refusal:
        Server(Path(folder), server.port).start().stop()
    said = f"cannot listen on localhost:{server.port}: .* Address already in use"
    assert re.search(said, str(refusal.value))
    assert "Traceback" not in str(refusal.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2")
def test_only_this_machine_gets_in_unless_host_says_otherwise(server):
    for host, printed in {"": "localhost", "127.0.0.5": "127.0.0.5"}.items():
        server.stop()
        assert server.start(HOST=host).url == f"http://{printed}:{server.port}"
        assert urllib.request.urlopen(server.url).status == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port))
    server.stop()
    assert server.start(HOST="0.0.0.0").url == f"http://localhost:{server.port}"
    socket.create_connection(("127.0.0.2", server.port)).close()  # as from another one


def test_a_wrong_server_offset_is_refused(server):
    server.fill(1)
    for auth in "text", [1], True:  # no object, so no offset
        assert next_message(server.connected(auth)) == ["history 1", 1]
    wrong = "abc", "-1", "1.0", " 1", "١", -1, 0.5, float("inf"), True, [1], {"a": 1}
    for offset in wrong:
        ws = server.raw()
        ws.send(f'40{{"serverOffset":{json.dumps(offset)}}}')
        assert receive(ws) == '44{"message":"serverOffset must be a whole number"}'


def test_an_argument_too_few_or_too_many_stores_nothing(server):
    ws = server.connected()
    for ack, arguments in enumerate(["", ',"hello"', ',"hello","a-0",1']):
        ws.send(f'42{ack}["{EVENT}"{arguments}]')
    ws.send(f'423["{EVENT}","proper","a-0"]')
    assert kinds(ws, 2) == ["42", "433"]
    assert server.texts() == ["proper"]
    log = server.log.read_text()
    assert log.count("TypeError") == 3 and "'client_offset'" in log


def test_nonsense_does_not_disturb_an_honest_client(server):
    client = server.connected()
    too_much = f'42["{EVENT}","{"x" * 1_000_000}","a-0"]'
    unknown = '42["nope"]', '421["nope",1]', "40/nope,", '42["connect",{},"x"]'
    broken = "x", "9", "4", "42", "42[", "42{}", "42[]", "42[null]", "43", "44", "451-"
    for nonsense in (too_much, *unknown, *broken):
        with suppress(OSError):  # what is too much is cut off while it is being sent
            server.connected({"serverOffset": 1}).send(nonsense)
    server.connected({"serverOffset": 1})  # by now the server has read all that
    client.send(f'421["{EVENT}","hello","a-0"]')
    assert next_message(client) == ["hello", 1]


def test_a_page_of_another_site_gets_no_connection(server):
    with pytest.raises(websocket.WebSocketBadStatusException, match="400"):
        server.raw(origin="http://another.example")


def test_an_error_inside_tells_a_stranger_nothing(server):
    with server.connection() as link:
        link.sendall(b"GET * HTTP/1.0\r\n\r\n")  # python-engineio stumbles over it
        head, body = link.makefile("rb").read().split(b"\r\n\r\n")
    assert (head[:13], body) == (b"HTTP/1.1 500 ", b"")


# The page


def at_the_end(page):
    """Whether the newest message is in sight, two frames from now."""
    return page.evaluate("""async () => {
        for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
        return main.scrollTop + main.clientHeight >= main.scrollHeight - 1;
    }""")


def test_two_pages_talk_and_ask_nobody_but_their_server(server, tab):
    requests, complaints, pages = set(), [], [tab(None), tab(None)]
    for page in pages:
        page.on("request", lambda request: requests.add(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(error.message))
        page.goto("/")
    one, other = pages
    write(one, "<b>hello</b>")
    expect_lines(other, "<b>hello</b>")
    write(other, "merhaba 👋 שלום")
    expect_lines(one, "<b>hello</b>", "merhaba 👋 שלום")
    assert "polling" not in str(requests)
    if CLIENT.exists():
        assert requests == {f"{server.url}/", f"{server.url}/socket.io.min.js"}
        assert complaints == []


def test_without_npm_the_client_comes_from_the_cdn_or_the_page_says_why(tab):
    page = tab(None)
    page.route("**/socket.io.min.js", lambda route: route.abort())
    page.goto("/")
    expect(page.locator("body > main")).to_contain_text("go online, or run “npm")
    page.unroute("**/socket.io.min.js")
    if CLIENT.exists():
        page.route("/socket.io.min.js", lambda route: route.abort())
        cors = {"Access-Control-Allow-Origin": "*"}
        page.route(CDN, lambda route: route.fulfill(path=CLIENT, headers=cors))
    page.reload()
    expect_status(page, "connected")
    page.goto((HERE / "index.html").as_uri())
    expect(page.locator("body > main")).to_contain_text("open http://localhost:3000")


def test_a_line_typed_before_the_client_is_there_is_kept(tab):
    page, held = tab(None), []
    page.route("/socket.io.min.js", lambda route: held.append(route))
    page.goto("/", wait_until="commit")
    write(page, "early")
    until(lambda: held, page)
    expect_status(page, "connecting")
    expect(page.locator("#input")).to_have_value("early")
    held[0].continue_()
    expect_status(page, "connected")
    page.press("#input", "Enter")
    expect_lines(page, "early")


def test_a_refused_line_shows_why_and_leaving_asks_only_for_waiting_lines(tab):
    around = """[...document.querySelectorAll("li")].map(line =>
        ["::before", "::after"].map(where => getComputedStyle(line, where).content))"""
    page, asked = tab(), []
    page.on("dialog", lambda dialog: asked.append(dialog.type))
    page.on("dialog", lambda dialog: dialog.accept())
    page.evaluate("input.value = 'broken \\ud800'; form.requestSubmit()")
    write(page, "next")
    expect_lines(page, "next")
    reason = "Refused: a message needs 1 to 10,000 characters, none broken."
    expect(page.get_by_role("alert")).to_contain_text(reason)
    assert page.evaluate(around) == [['"1\u2002"', "none"], ["none", "none"]]
    page.reload()
    expect_lines(page, "next")
    assert asked == []
    page.click('"Disconnect"')
    write(page, "not sent")
    assert page.evaluate(around) == [['"1\u2002"', "none"], ["none", '"· waiting"']]
    page.reload()
    assert asked == ["beforeunload"]


def test_the_status_is_true(server, tab):
    page = tab()
    expect_status(page, "connected")
    server.stop()
    expect_status(page, "reconnecting: no connection yet")
    page.click('"Disconnect"')
    expect_status(page, "disconnected")
    server.start()
    page.evaluate("socket.auth.serverOffset = 'wrong'")
    page.click('"Connect"')
    expect_status(page, "disconnected: serverOffset must be a whole number")
    expect(page.locator("#toggle")).to_have_text("Connect")


def test_new_messages_are_announced_in_a_busy_room_but_not_the_history(server, tab):
    server.fill(300)
    writer, page = server.connected({"serverOffset": 300}), tab(None)
    open_and_stop_the_clock(page)
    expect_count(page, 300)
    for i in range(8):
        if i == 5:
            assert not page.evaluate("messages.ariaLive")
        writer.send(f'421["{EVENT}","new","a-{i}"]')
        expect_count(page, 301 + i)
        page.clock.run_for(700)
    assert page.evaluate("messages.ariaLive") == "polite"


def test_a_history_of_ten_thousand_is_not_scrolled_for_each_message(server, tab):
    server.fill(10_000)
    page = tab(None)
    page.add_init_script("""
        window.scrolls = 0;
        for (const owner of [window, Element.prototype]) owner.scrollTo =
            (f => function (...to) { scrolls++; f.apply(this, to); })(owner.scrollTo);
    """)
    page.goto("/")
    expect_count(page, 10_000)
    until(lambda: at_the_end(page))
    assert 0 < page.evaluate("scrolls") < 9000


def test_who_is_at_the_end_stays_there_and_who_scrolled_up_stays_too(server, tab):
    server.query("INSERT INTO messages VALUES (1, 'h', ?)", "many words " * 500)
    client, page = server.join(), tab(viewport={"width": 1000, "height": 700})
    expect_count(page, 1)
    for count, (width, height) in enumerate([(1000, 480), (460, 480), (900, 800)], 2):
        page.set_viewport_size({"width": width, "height": height})
        until(lambda: at_the_end(page))
        send(client, "new", f"a-{count}")
        expect_count(page, count)
        assert at_the_end(page)
    page.evaluate("main.scrollTo(0, 500)")
    send(client, "new", "a-0")
    expect_count(page, 5)
    assert not at_the_end(page)
    assert page.evaluate("main.scrollTop") == 500
    server.stop()
    for _ in range(3):
        write(page, "waiting for the server")  # the writer wants to see that
        assert at_the_end(page)
    page.evaluate("outbox.append(document.createElement('li'))")
    assert at_the_end(page)


def test_the_text_grows_with_the_window_and_fits_a_narrow_one(server, tab):
    page = tab()
    font = "Math.round(parseFloat(getComputedStyle(messages).fontSize))"
    for width, size in (2560, 32), (1920, 32), (1280, 23), (800, 16), (320, 16):
        page.set_viewport_size({"width": width, "height": 480})
        until(lambda size=size: page.evaluate(font) == size)
    write(page, "long" * 100)
    expect_lines(page, "long" * 100)
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    right = page.evaluate("""Math.max(...[...document.querySelectorAll('*')]
        .map(element => element.getBoundingClientRect().right))""")
    assert right <= 320


def test_the_keyboard_is_enough_and_neither_spaces_nor_too_much_is_sent(tab):
    page = tab()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    for text in "", "   ", "one ", "👋" * 10_000, "a line of\u2028two paragraphs":
        page.keyboard.insert_text(text)
        page.keyboard.press("Enter")
    page.keyboard.insert_text("x" * 10_001)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect_count(page, 3)
    stored = ["   one ", "👋" * 10_000, "a line of\u2028two paragraphs"]
    assert page.locator("#messages li").all_text_contents() == stored
    state = "[input.validity.patternMismatch, input.value.length, input.title]"
    assert page.evaluate(state) == [True, 10_001, "at most 10,000 characters"]
    for key in "Shift+Tab", "Shift+Tab", "Enter":  # from the input, focused as invalid
        page.keyboard.press(key)
    expect_status(page, "disconnected")
