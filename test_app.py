"""Tests of `python app.py`, with Socket.IO test clients and with its page in a real Chromium.

A raw packet begins with Engine.IO's digit (0 open, 2 ping, 3 pong, 4 message). After 4 comes Socket.IO's:
40 is CONNECT and its answer, 42[...] an event, 427[...] one that asks for acknowledgement 7, 437[...] its answer.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import struct
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory

import pytest
import socketio
import websocket
from playwright.sync_api import Error, expect, sync_playwright

HERE = Path(__file__).parent
CLIENT = HERE / "node_modules/socket.io-client/dist/socket.io.js"
CDN = "https://cdn.socket.io/4.8.3/socket.io.js"
EVENT = "sohbet mesajı"
ENGINE = "/socket.io/?EIO=4&transport="
WAIT = 50  # seconds after which a test stops waiting for a condition, and fails
os.environ["no_proxy"] = "localhost,127.0.0.5"  # whatever http_proxy says
expect.set_options(timeout=WAIT * 1000)
socket.setdefaulttimeout(WAIT)


class Server:
    """`python app.py` in a folder of its own; a restarted server keeps its port."""

    def __init__(self, cleanup, first="", files=None, **env):
        """first: Python code to run before app.py; files: the server's limit of descriptors."""
        self.folder = Path(cleanup.enter_context(TemporaryDirectory()))
        self.log = self.folder / "log"
        self.cleanup = cleanup
        run = f"\nimport runpy; runpy.run_path('{HERE}/app.py', run_name='__main__')"
        limit = ["sh", "-c", f'ulimit -n {files} && exec "$0" "$@"'] if files else []
        program = ["-c", first + run] if first else [HERE / "app.py"]
        self.command = [*limit, sys.executable, "-u", *program]
        self.env = os.environ | {"CHAT_HOST": "", "PORT": "0"} | env

    def start(self):
        """Start the server, and return when it accepts connections."""
        with self.log.open("w") as log:
            output = {"stdout": log, "stderr": log}
            self.process = Popen(self.command, cwd=self.folder, env=self.env, **output)
        self.cleanup.callback(self.kill)
        running = r"server running at (http://(.+):(\d+))\n"
        until(lambda: re.search(running, self.log.read_text()) or self.process.poll())
        match = re.search(running, self.log.read_text())
        assert match, self.log.read_text()
        self.url, host, self.env["PORT"] = match.groups()
        self.address = (host, int(self.env["PORT"]))
        self.db = self.open_database()
        return self

    def kill(self):
        self.process.kill()
        self.process.wait(WAIT)

    @contextmanager
    def suspended(self):
        """Suspend the server during a `with`: afterwards it reads all that was sent meanwhile."""
        self.process.send_signal(signal.SIGSTOP)
        yield
        self.process.send_signal(signal.SIGCONT)

    def open_database(self):
        """Return another connection to chat.db, which is closed when the test ends."""
        db = sqlite3.connect(self.folder / "chat.db", isolation_level=None)
        self.cleanup.callback(db.close)
        return db

    def contents(self):
        rows = self.db.execute("SELECT content FROM messages ORDER BY id")
        return [content for (content,) in rows]

    def add_history(self, count):
        """Store `count` messages, with the ids 1 to `count`."""
        rows = [(i, f"h-{i}", f"history {i}") for i in range(1, count + 1)]
        self.db.execute("BEGIN")
        self.db.executemany("INSERT INTO messages VALUES (?, ?, ?)", rows)
        self.db.execute("COMMIT")

    def open_connection(self):
        """Return a TCP connection, which is closed when the test ends."""
        return self.cleanup.enter_context(socket.create_connection(self.address))

    def connect(self, transports=("websocket",)):
        """Return a connected Socket.IO test client."""
        client = socketio.SimpleClient(reconnection=False, request_timeout=WAIT)
        self.cleanup.callback(lambda: client.client and client.client.shutdown())
        client.connect(self.url, transports=transports, wait_timeout=WAIT)
        return client

    def open_websocket(self, auth=None, connect=True, **options):
        """Return a raw WebSocket; unless connect is False, CONNECT has been answered."""
        url = f"{self.url}{ENGINE}websocket".replace("http", "ws", 1)
        ws = websocket.create_connection(url, WAIT, **options)
        self.cleanup.callback(ws.shutdown)
        assert receive(ws).startswith("0{")
        if connect:
            ws.send("40" if auth is None else f"40{json.dumps(auth)}")
            assert kind(receive(ws)) == "40"
        return ws


@pytest.fixture
def start_server():
    """Return a function that starts a server with options of its own."""
    with ExitStack() as cleanup:
        yield lambda **options: Server(cleanup, **options).start()


@pytest.fixture
def server(start_server):
    return start_server()


@pytest.fixture(scope="session")
def browser():
    """Launch the system's Chromium, or Playwright's own."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            browser = playwright.chromium.launch(executable_path=chromium)
            if not CLIENT.exists():
                urllib.request.urlopen(CDN, timeout=5).close()
        except Error:
            pytest.skip("no Chromium: install it, or run .venv/bin/playwright install")
        except OSError:
            pytest.skip("no Socket.IO client: go online, or run npm as in the README")
        yield browser


@pytest.fixture
def open_page(server, browser):
    """Return a function that opens a new window, and loads the page unless url is None."""

    def open_page(url="/", **options):
        context = browser.new_context(base_url=server.url, **options)
        page = server.cleanup.enter_context(context).new_page()
        if url:
            page.goto(url)
        return page

    return open_page


def until(condition):
    """Return when the condition holds; fail after WAIT seconds."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"still false after {WAIT} s"
        time.sleep(0.02)


def send(client, msg, client_offset):
    """Send a message and return its acknowledgement: None, or {"error": ...}."""
    return client.call(EVENT, (msg, client_offset), timeout=WAIT)


def receive_sorted(client, count):
    """Return the next `count` messages, [msg, id] each, sorted by id: SimpleClient may reorder them."""
    received = [client.receive(timeout=WAIT) for _ in range(count)]
    return sorted((message for _, *message in received), key=lambda message: message[1])


def receive(ws):
    """Return the next packet, but answer a ping; the server sends one every 25 s."""
    if (packet := ws.recv()) != "2":
        return packet
    ws.send("3")
    return ws.recv()


def kind(packet):
    """Return the digits that a packet begins with: its type, then the number of an acknowledgement."""
    return re.match(r"\d*", packet)[0]


def next_message(ws):
    """Return the next message, [msg, id]; skip the acknowledgements before it."""
    while kind(packet := receive(ws)) != "42":
        assert kind(packet).startswith("43"), packet
    return json.loads(packet[2:])[1:]


def next_ids(ws, count):
    return [next_message(ws)[1] for _ in range(count)]


def route_websockets(page, lost=lambda packet: False, drops=lambda packet: False):
    """Relay the page's WebSockets, and return a list that collects the messages that it sends.

    lost(packet): whether a packet of either side is lost; drops(packet): whether its connection drops.
    """
    sent = []

    def relay(to_page):
        to_server = to_page.connect_to_server()

        def pass_on(packet, end):
            if end is to_server and kind(packet).startswith("42"):
                sent.append(json.loads(packet.lstrip("0123456789"))[1])
            if drops(packet):
                to_page.close()
                to_server.close()
            elif not lost(packet):
                end.send(packet)

        to_page.on_message(lambda packet: pass_on(packet, to_server))
        to_server.on_message(lambda packet: pass_on(packet, to_page))

    page.route_web_socket("**/socket.io/**", relay)
    return sent


def open_and_stop_the_clock(page):
    page.clock.install(time=0)
    page.clock.pause_at(1000)  # seconds; fast_forward and run_for take milliseconds
    page.goto("/")
    expect(page.get_by_role("status")).to_have_text("connected")


def submit(page, *contents):
    for msg in contents:
        page.fill("#input", msg)
        page.press("#input", "Enter")


def messages(page):
    return page.locator("#messages li")


def expect_messages(page, *contents):
    expect(messages(page)).to_have_text(contents)


# Exactly once


def test_a_message_is_stored_then_broadcast_then_acknowledged(server):
    ws = server.open_websocket()
    for number in 1, 2:  # the first row is deleted, but its id is not used again
        ws.send(f'42{number}["{EVENT}","hello","a-0"]')
        assert next_message(ws) == ["hello", number]
        assert server.contents() == ["hello"]
        assert receive(ws) == f"43{number}[]"
        server.db.execute("DELETE FROM messages")


@pytest.mark.parametrize("transports", [None, ["polling"], ["websocket"]])
def test_acknowledged_messages_survive_kill_9(server, transports):
    client = server.connect(transports)
    stored = [["hello", number] for number in (1, 2, 3)]
    for _, number in stored:
        assert send(client, "hello", f"a-{number}") is None
    server.kill()
    assert server.contents() == ["hello"] * 3
    server.start()
    assert receive_sorted(server.connect(transports), 3) == stored


def test_a_retry_is_acknowledged_but_neither_stored_nor_broadcast_again(server):
    ws = server.open_websocket()
    for number in 1, 2, 3:
        ws.send(f'42{number}["{EVENT}","hello","a-0"]')
    ws.send(f'424["{EVENT}","next","a-1"]')
    assert next_message(ws) == ["hello", 1]
    assert [kind(receive(ws)) for _ in range(3)] == ["431", "432", "433"]
    assert next_message(ws) == ["next", 2]  # a retry uses up no id


def test_invalid_messages_and_client_offsets_are_rejected(server):
    client = server.connect()
    longest = "x" * 10_000
    for wrong in "", longest + "x", 5, None, True, ["x"], {}, b"x", "\ud800", "\udfff":
        for arguments in (wrong, "a-0"), ("hello", wrong):
            assert client.call(EVENT, arguments)["error"]
    send(client, longest, longest)
    assert receive_sorted(client, 1) == [[longest, 1]]


def test_a_client_gets_the_messages_after_its_server_offset(server):
    server.add_history(250)
    invalid = "abc", "", None, True, [120], {"a": [[{}]]}, "\ud800", "١", float("nan")
    invalid += -1, 1.5, 10**18, "9" * 9999  # an offset has at most 18 digits
    offsets = {0: invalid, 120: (120, "120"), 250: (250, "250", 10**18 - 1)}
    auths = [(0, auth) for auth in (None, {}, True, 120, "serverOffset", [[]])]
    auths += [(last, {"serverOffset": i}) for last in offsets for i in offsets[last]]
    clients = [(last, server.open_websocket(auth)) for last, auth in auths]
    clients[0][1].send(f'42["{EVENT}","and then","a-0"]')
    for last, client in clients:
        assert next_ids(client, 251 - last) == [*range(last + 1, 252)]


# While one client sends messages (each twice, as if retried), 40 others send CONNECT, with server offsets of
# 0 to 975: their replays have different lengths, so they join the broadcast one after another.
def test_connecting_clients_get_each_message_once_and_in_order(server):
    server.add_history(1000)
    sender = server.open_websocket({"serverOffset": 1000})
    clients = [server.open_websocket(connect=False) for _ in range(40)]
    for i in range(1000):
        sender.send(f'42["{EVENT}","under load","a-{i // 2}"]')
    assert next_ids(sender, 1) == [1001]
    with server.suspended():
        for i, client in enumerate(clients):
            client.send(f'40{{"serverOffset":{i * 25}}}')
    for i, client in enumerate(clients):
        ids = range(i * 25 + 1, 1501)
        assert [kind(receive(client)), *next_ids(client, len(ids))] == ["40", *ids]


def test_a_client_that_connects_while_forty_others_write_gets_everything(server):
    server.add_history(2000)
    writers = [server.open_websocket({"serverOffset": 2000}) for _ in range(40)]
    client = server.open_websocket(connect=False)
    with server.suspended():
        client.send("40")
        for i in range(2000):
            writers[i % 40].send(f'42["{EVENT}","hello","a-{i}"]')
    assert [kind(receive(client)), *next_ids(client, 4000)] == ["40", *range(1, 4001)]


def test_two_identical_messages_written_offline_both_arrive(server, open_page):
    pages = [open_page(), open_page()]
    for page in pages:
        page.click('"Disconnect"')
        submit(page, "written while offline")
    for page in pages:
        page.click('"Connect"')
    for page in pages:
        expect_messages(page, "written while offline", "written while offline")


def test_messages_arrive_in_order_after_five_dropped_connections(open_page):
    page = open_page(None)
    drops = lambda packet: '"one"' in packet and sent.count("one") < 6
    sent = route_websockets(page, drops=drops)
    page.goto("/")
    submit(page, "one", "two")
    expect_messages(page, "one", "two")
    assert sent == ["one"] * 6 + ["two"]


# After the computer's sleep, the client sends "one" twice: from sendBuffer and from the retry queue. Its second
# acknowledgement arrives while "two" is first in the queue, and must not remove "two", whose first copy is lost.
def test_messages_arrive_once_and_in_order_after_sleep(open_page):
    page = open_page(None)
    lost = lambda packet: '"two"' in packet and sent.count("two") < 2
    sent = route_websockets(page, lost)
    open_and_stop_the_clock(page)
    page.clock.set_system_time(100_000)  # the connection is old, and no timer has run
    submit(page, "one", "two")
    page.clock.fast_forward(5_000)
    until(lambda: page.title() and "two" in sent)  # title() lets packets through
    page.clock.fast_forward(10_000)
    expect_messages(page, "one", "two")
    assert sent == ["one", "one", "two", "two"]


def test_messages_arrive_in_order_after_chat_db_was_unreadable(server, open_page):
    server.add_history(2)
    server.db.execute("ALTER TABLE messages RENAME TO away")
    page = open_page(None)
    open_and_stop_the_clock(page)
    submit(page, "one", "two")
    until(lambda: page.title() and "OperationalError" in server.log.read_text())
    server.db.execute("ALTER TABLE away RENAME TO messages")
    page.clock.fast_forward(10_000)
    expect_messages(page, "history 1", "history 2", "one", "two")
    expect(page.locator("#outbox")).to_be_empty()


def test_messages_arrive_once_and_in_order_despite_drops_and_kills(server, open_page):
    chance = random.Random(8)
    written = []
    pages = []
    server.add_history(200)
    # never at a connection's first packet: the client would wait 20 s for it
    drops = lambda packet: kind(packet) != "0" and chance.random() < 0.01

    def submit_from_each_page():  # faster than they get acknowledgements
        for page in pages * 4:
            written.append(f"page {pages.index(page)}, message {len(written)}")
            page.evaluate("m => (input.value = m, form.requestSubmit())", written[-1])

    for i in range(6):
        if i > 3:
            server.kill()
            submit_from_each_page()
            server.start()
        pages.append(open_page(None))
        route_websockets(pages[i], drops=drops)
        pages[i].goto("/")
        submit_from_each_page()
    for page in pages:
        expect(page.locator("#outbox")).to_be_empty()
    stored = server.contents()
    author = lambda msg: msg.split(",")[0]
    assert sorted(stored[200:], key=author) == sorted(written, key=author)
    for page in pages:
        expect_messages(page, *stored)


# Speed, load and safety


def test_a_locked_database_blocks_clients_only_briefly_and_loses_no_message(server):
    ws = server.open_websocket()
    server.db.execute("BEGIN IMMEDIATE")
    for i in range(20):  # with sqlite3's default timeout, each would wait for 5 s
        ws.send(f'421["{EVENT}","hello","a-{i}"]')
    ws.send(f'422["{EVENT}","","b-0"]')
    assert kind(receive(ws)) == "432"  # the others were not acknowledged
    server.db.execute("COMMIT")
    ws.send(f'423["{EVENT}","hello","a-0"]')
    assert [kind(receive(ws)) for _ in range(2)] == ["42", "433"]


def test_a_short_lock_does_not_delay_a_message_until_its_retry(start_server):
    # print each SQL statement when it begins
    first = "import sqlite3; connect = sqlite3.connect\ndef traced(*args, **options):"
    first += "db = connect(*args, **options); db.set_trace_callback(print); return db"
    server = start_server(first=first + "\nsqlite3.connect = traced")
    ws = server.open_websocket()
    for i in range(20):
        server.db.execute("BEGIN IMMEDIATE")
        ws.send(f'421["{EVENT}","hello","a-{i}"]')
        until(lambda i=i: server.log.read_text().count("INSERT") > i)
        server.db.execute("COMMIT")
        ws.send(f'422["{EVENT}","",""]')
        until(lambda: kind(receive(ws)) == "432")
    assert len(server.contents()) > 2  # on a busy machine, some locks are too long


def test_a_missing_table_is_reported(server):
    server.db.execute("DROP TABLE messages")
    server.open_websocket()
    until(lambda: "cannot read chat.db: no such table" in server.log.read_text())


def test_websocket_compression_is_off(server):
    ws = server.open_websocket(header=["Sec-WebSocket-Extensions: permessage-deflate"])
    assert "sec-websocket-extensions" not in ws.headers


def test_no_packet_waits_behind_another(start_server):
    # print the option of the listening socket, instead of serving
    no_delay = f"socket.getsockopt({socket.IPPROTO_TCP}, {socket.TCP_NODELAY})"
    serve = f"lambda socket, *_, **__: print('TCP_NODELAY:', {no_delay} != 0)"
    server = start_server(first=f"import eventlet.wsgi; eventlet.wsgi.server = {serve}")
    server.process.wait(WAIT)
    assert "TCP_NODELAY: True" in server.log.read_text()


def test_a_hundred_clients_can_connect_at_once(server):
    with server.suspended():
        for _ in range(100):
            server.open_connection()  # the kernel's queue takes them all


def test_http_responses_end_the_connection_and_show_no_traceback(server):
    for path, status in ("/", b"200"), ("*", b"500"):  # python-engineio fails on *
        connection = server.open_connection()
        connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        head, body = connection.makefile("rb").read().split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 " + status)
    assert body == b""


def test_idle_connections_are_dropped(start_server):
    # shorten each socket's time limit to a sixtieth: 1 s instead of 60
    first = "from eventlet.greenio import GreenSocket as G; settimeout = G.settimeout\n"
    first += "G.settimeout = lambda self, seconds: settimeout(self, seconds and seconds / 60)"
    server = start_server(first=first, files=64)
    for _ in range(40):
        server.open_connection()
    assert urllib.request.urlopen(server.url).status == 200


def test_more_clients_than_descriptors_do_not_stop_the_chat(start_server):
    server = start_server(files=128)
    client = server.connect()
    for _ in range(200):
        server.open_connection()
    assert send(client, "hello", "a-0") is None


@pytest.mark.parametrize("sysconf", ["del os.sysconf", "os.sysconf = lambda name: -1"])
def test_the_server_starts_where_the_descriptor_limit_is_unknown(start_server, sysconf):
    server = start_server(first=f"import asyncio, os; {sysconf}")  # asyncio uses it
    assert urllib.request.urlopen(server.url).status == 200


def abandon_requests(server, path, reset):
    """Send 100 requests, and close or reset their connections before the server reads them."""
    request = f"GET {path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    request += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: 0\r\n\r\n"
    with server.suspended():
        for _ in range(100):
            connection = server.open_connection()
            connection.sendall(request.encode())
            linger = struct.pack("ii", reset, 0)  # (1, 0): close() resets
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()
    urllib.request.urlopen(server.url).close()


@pytest.mark.parametrize("path", ["/", ENGINE + "polling", ENGINE + "websocket"])
def test_reset_connections_leave_no_file_open(start_server, path):
    server = start_server(files=128)
    for _ in range(6):
        abandon_requests(server, path, reset=True)
    assert send(server.connect(), "hello", "a-0") is None


def test_a_closed_terminal_does_not_stop_the_server(start_server):
    # print errors to a terminal that has been closed
    close_stderr = "end, writer = os.openpty(); os.dup2(writer, 2); os.close(end)"
    server = start_server(first=f"import os; {close_stderr}")
    server.open_connection().sendall(b"\x16\x03\x01\r\n\r\n")  # an https:// handshake
    abandon_requests(server, ENGINE + "websocket", reset=False)
    assert send(server.connect(), "hello", "a-0") is None


def test_a_long_history_does_not_block_other_messages(server):
    server.add_history(10_000)
    ws = server.open_websocket(connect=False)
    with server.suspended():
        ws.send("40")
        ws.send(f'421["{EVENT}","hello","a-0"]')
    before = iter(lambda: kind(receive(ws)), "431")
    assert len(list(before)) < 1000


def test_a_replay_ends_when_its_client_leaves(server):
    server.add_history(5000)
    leaving, client = (server.open_websocket(connect=False) for _ in range(2))
    with server.suspended():
        leaving.send("40")
        leaving.send(f'421["{EVENT}","",""]')  # its replay begins before it leaves
        leaving.shutdown()
        client.send("40")
    assert [kind(receive(client)), *next_ids(client, 5000)] == ["40", *range(1, 5001)]
    assert "Traceback" not in server.log.read_text()  # enter_room would print one


@pytest.mark.parametrize("flood", ["stored", ""])
def test_a_flood_of_messages_does_not_block_other_clients(server, flood):
    clients = {n * 7 % 20: server.open_websocket() for n in range(20)}
    with server.suspended():
        for count, client in clients.items():
            for i in range(count * 5):
                client.send(f'42["{EVENT}","{flood}","{count}-{i}"]')
            client.send(f'42["{EVENT}","after {count}","{count}"]')
    until(lambda: "after 19" in server.contents())
    last = [msg for msg in server.contents() if msg != flood]
    assert last == [f"after {count}" for count in range(20)]  # they have taken turns


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sigint_and_sigterm_exit_at_once_and_leave_a_complete_chat_db(server, number):
    ws = server.open_websocket()
    for i in range(2000):
        ws.send(f'42["{EVENT}","under load","a-{i}"]')
    next_ids(ws, 20)
    server.db.close()
    for _ in range(9):  # Ctrl-C may be pressed more than once
        server.process.send_signal(number)
    assert server.process.wait(WAIT) == 128 + number
    assert not list(server.folder.glob("chat.db-*"))
    stored = server.open_database().execute("SELECT max(id) FROM messages").fetchone()
    assert stored >= (20,)


def test_a_reader_of_chat_db_does_not_block_writers(server):
    client = server.connect()
    send(client, "one", "a-0")
    server.db.execute("BEGIN")
    assert server.contents() == ["one"]  # a reading transaction has begun
    assert send(client, "two", "a-1") is None


def test_an_address_is_never_shared(start_server):
    server = start_server()
    server.kill()
    server.start()  # eventlet would share its port now, but never port 0
    with pytest.raises(AssertionError, match="in use"):
        start_server(PORT=server.env["PORT"])


def test_a_server_that_cannot_listen_says_why(start_server):
    for port in start_server().env["PORT"], "x", "99999":
        with pytest.raises(AssertionError, match=f"on localhost:{port}: ") as error:
            start_server(PORT=port)
        assert "its own port and current directory" in str(error.value)
        assert "Traceback" not in str(error.value)


def test_the_page_is_found_if_the_path_of_app_py_is_relative(start_server):
    # run app.py as Thonny does: __file__ is only "app.py"
    link = f"for name in ('app.py', 'index.html'): os.symlink('{HERE}/' + name, name)\n"
    run = "runpy.run_path('app.py', run_name='__main__')"
    server = start_server(first=f"import os, runpy\n{link}{run}")
    assert urllib.request.urlopen(server.url).status == 200


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 may not exist")
def test_only_this_computer_can_connect_unless_chat_host_is_set(start_server):
    for host in "", "127.0.0.5":
        server = start_server(CHAT_HOST=host, HOST="x86_64-conda-linux-gnu")
        assert server.address[0] == (host or "localhost")
        assert urllib.request.urlopen(server.url).status == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.address[1]))
    server = start_server(CHAT_HOST="0.0.0.0")
    assert server.address[0] == "localhost"  # Firefox refuses to open 0.0.0.0
    socket.create_connection(("127.0.0.2", server.address[1])).close()


# The page


def at_the_end(page):
    """Return whether main is scrolled to its end, after two frames."""
    return page.evaluate("""async () => {
        for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
        return main.scrollTop + main.clientHeight >= main.scrollHeight - 1;
    }""")


def test_two_pages_chat_and_load_nothing_from_other_servers(server, open_page):
    events = set()
    one = open_page(None)
    other = open_page(None)
    for page in one, other:
        page.on("request", lambda request: events.add(request.url))
        page.on("console", lambda message: events.add(message.text))
        page.on("pageerror", lambda error: events.add(error.message))
        page.goto("/")
    submit(one, "<b>hello</b>")
    expect_messages(other, "<b>hello</b>")
    submit(other, "merhaba 👋 שלום")
    expect_messages(one, "<b>hello</b>", "merhaba 👋 שלום")
    assert "polling" not in str(events)
    if CLIENT.exists():
        assert events == {f"{server.url}/", f"{server.url}/socket.io.js"}


def test_socket_io_comes_from_the_cdn_or_an_error_is_shown(open_page):
    page = open_page(None)
    page.route("**/socket.io.js", lambda route: route.abort())
    page.goto("/")
    expect(page.locator("body > main")).to_contain_text("go online, or run “npm")
    page.unroute("**/socket.io.js")
    if CLIENT.exists():
        page.route("/socket.io.js", lambda route: route.abort())
        cors = {"Access-Control-Allow-Origin": "*"}
        page.route(CDN, lambda route: route.fulfill(path=CLIENT, headers=cors))
    page.reload()
    expect(page.get_by_role("status")).to_have_text("connected")
    page.goto((HERE / "index.html").as_uri())
    expect(page.locator("body > main")).to_contain_text("open http://localhost:3000")


def test_text_typed_before_the_client_has_loaded_is_kept(open_page):
    page = open_page(None)
    held = []
    page.route("/socket.io.js", lambda route: held.append(route))
    page.goto("/", wait_until="commit")
    submit(page, "early")
    until(lambda: page.evaluate("document.readyState") == "loading" and held)
    expect(page.locator("#input")).to_have_value("early")
    held[0].continue_()
    expect(page.get_by_role("status")).to_have_text("connected")
    page.press("#input", "Enter")
    expect_messages(page, "early")


def test_rejected_messages_show_why_and_closing_asks_if_messages_wait(open_page):
    markers = """[...document.querySelectorAll("li")].map(item =>
        ["::before", "::after"].map(where => getComputedStyle(item, where).content))"""
    page = open_page()
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.accept()))
    page.evaluate("input.value = 'half an emoji \\ud83d'; form.requestSubmit()")
    submit(page, "next")
    expect_messages(page, "next")
    expect(page.locator("[aria-live] .rejected")).to_contain_text("10,000 whole")
    assert page.evaluate(markers) == [['"1\u2002"', "none"], ["none", "none"]]
    page.reload()
    expect_messages(page, "next")
    assert dialogs == []
    page.click('"Disconnect"')
    submit(page, "not sent")
    assert page.evaluate(markers) == [['"1\u2002"', "none"], ["none", '" · waiting"']]
    page.reload()
    assert dialogs == ["beforeunload"]


def test_screen_readers_announce_new_messages_but_not_the_history(server, open_page):
    server.add_history(300)
    page = open_page(None)
    open_and_stop_the_clock(page)
    expect(messages(page)).to_have_count(300)
    page.clock.run_for(4500)
    assert not page.evaluate("messages.ariaLive")
    page.clock.run_for(1000)
    assert page.evaluate("messages.ariaLive") == "polite"


def test_ten_thousand_messages_are_not_scrolled_one_by_one(server, open_page):
    server.add_history(10_000)
    page = open_page(None)
    page.add_init_script("""window.scrolls = 0;  // count them, and disconnect after 999
        for (const owner of [window, Element.prototype]) owner.scrollTo = (f =>
            function () { f.apply(this, arguments); if (++scrolls > 999) socket.disconnect(); }
        )(owner.scrollTo);
    """)
    page.goto("/")
    expect(messages(page)).to_have_count(10_000)
    until(lambda: at_the_end(page))
    assert 0 < page.evaluate("scrolls") < 1000


def test_readers_stay_at_the_end_or_where_they_have_scrolled_to(server, open_page):
    server.db.execute("INSERT INTO messages VALUES (1, 'h', ?)", ["words " * 900])
    client = server.connect()
    page = open_page(viewport={"width": 1000, "height": 700})
    expect(messages(page)).to_have_count(1)
    for count, (width, height) in enumerate([(1000, 480), (460, 480), (900, 800)], 2):
        page.set_viewport_size({"width": width, "height": height})
        until(lambda: at_the_end(page))
        send(client, "new", f"a-{count}")
        expect(messages(page)).to_have_count(count)
        assert at_the_end(page)
    page.evaluate("main.scrollTo(0, 500)")
    send(client, "new", "a-0")
    expect(messages(page)).to_have_count(5)
    assert page.evaluate("main.scrollTop") == 500
    server.kill()
    expect(page.get_by_role("status")).to_have_text("reconnecting")
    submit(page, *["waiting for the server"] * 3)  # their author wants to see them
    assert at_the_end(page)


def test_the_text_grows_with_the_window_and_fits_a_narrow_one(open_page):
    page = open_page()
    for width, size in (2560, "32px"), (1280, "22.72px"), (320, "16px"):
        page.set_viewport_size({"width": width, "height": 480})
        expect(page.locator("#messages")).to_have_css("font-size", size)
    submit(page, "long" * 100)
    expect_messages(page, "long" * 100)
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    right = page.evaluate("""Math.max(...[...document.querySelectorAll('*')]
        .map(element => element.getBoundingClientRect().right))""")
    assert right <= 320


def test_the_keyboard_is_enough_and_blank_messages_are_not_sent(open_page):
    page = open_page()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    for text in "", "   ", "one ", "👋" * 10_000, "one message in\u2028two paragraphs":
        page.keyboard.insert_text(text)
        page.keyboard.press("Enter")
    page.keyboard.insert_text("x" * 10_001)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(messages(page)).to_have_count(3)
    stored = ["   one ", "👋" * 10_000, "one message in\u2028two paragraphs"]
    assert messages(page).all_text_contents() == stored
    state = "[input.validity.patternMismatch, input.value.length, input.title]"
    assert page.evaluate(state) == [True, 10_001, "at most 10,000 characters"]
    for key in "Shift+Tab", "Shift+Tab", "Enter":  # the invalid input has the focus
        page.keyboard.press(key)
    expect(page.get_by_role("status")).to_have_text("disconnected")
