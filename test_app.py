"""The guarantees of step 8, against a real `python app.py` and the page in a real Chromium."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
import statistics
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
from socketio.exceptions import SocketIOError, TimeoutError

HERE = Path(__file__).parent
CLIENT_FILE = HERE / "socket.io.min.js"
EVENT = "sohbet mesajı"
CDN = "https://cdn.socket.io/**"
WAIT = 30  # seconds, until what must happen counts as not happening
expect.set_options(timeout=WAIT * 1000)


class Server:
    """`python app.py` in a folder of its own; started again, it keeps its port."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "log"
        self.port = 0

    def launch(self, files=None, **env):
        """Run app.py with at most `files` file descriptors, a (soft, hard) pair."""
        command = [sys.executable, HERE / "app.py"]
        if files:
            limited = 'ulimit -Sn "$0" && ulimit -Hn "$1" && shift && exec "$@"'
            command = ["sh", "-c", limited, *map(str, files), *command]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | {"PORT": str(self.port), "PYTHONUNBUFFERED": ""} | env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    def start(self, **options):
        """Return when the server says that it is running."""
        line = self.launch(**options).process.stdout.readline()
        running = re.fullmatch(r"server running at http://localhost:(\d+)\n", line)
        assert running, self.log.read_text()
        self.port = int(running[1])
        self.url = f"http://localhost:{self.port}"

    def stop(self):
        self.process.kill()
        self.process.wait(WAIT)
        self.process.stdout.close()

    def database(self):
        """Another connection to the server's database, closed at the end of a `with`."""
        return closing(
            sqlite3.connect(self.folder / "chat.db", timeout=WAIT, isolation_level=None)
        )

    def query(self, sql, *values):
        with self.database() as db:
            return db.execute(sql, values).fetchall()

    def texts(self):
        rows = self.query("SELECT content FROM messages ORDER BY id")
        return [text for (text,) in rows]

    def fill(self, count):
        """Store a history of `count` messages, with the ids 1 to `count`."""
        self.query(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO messages SELECT i, 'h-' || i, 'history ' || i FROM n",
            count,
        )


@pytest.fixture
def folder():
    with TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def server(folder):
    server = Server(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def join(server):
    """A function that connects a Socket.IO client, with the given auth."""
    with ExitStack() as stack:

        def join(auth=None):
            client = socketio.SimpleClient(reconnection_delay=0.1)
            stack.callback(lambda: client.client and client.client.shutdown())
            client.connect(
                server.url, auth=auth, transports=["websocket"], wait_timeout=WAIT
            )
            return client

        yield join


@pytest.fixture
def packets(server):
    """A function that opens a raw WebSocket and sends CONNECT, with the given auth."""
    with ExitStack() as stack:

        def packets(auth="", **options):
            url = f"ws://localhost:{server.port}/socket.io/?EIO=4&transport=websocket"
            ws = stack.enter_context(
                closing(websocket.create_connection(url, WAIT, **options))
            )
            assert ws.recv().startswith("0{")
            ws.send("40" + (auth and json.dumps(auth)))
            return ws

        yield packets


def unavailable(reason):
    """Skip a test of the page; where nothing may be skipped, fail it."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture(scope="session")
def browser():
    system = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=next(filter(None, system), None)
            )
        except Error:
            unavailable("no Chromium: `.venv/bin/playwright install chromium` gets one")
        yield browser
        browser.close()


@pytest.fixture
def tab(server, browser):
    """A function that opens the page in a browser of its own, prepared as asked for."""
    with ExitStack() as stack:

        def tab(prepare=lambda page: None, **options):
            page = stack.enter_context(browser.new_context(**options)).new_page()
            page.set_default_timeout(WAIT * 1000)
            if CLIENT_FILE.exists():  # what the CDN serves, where it cannot be reached
                page.route(
                    CDN,
                    lambda route: route.fulfill(
                        path=CLIENT_FILE, headers={"Access-Control-Allow-Origin": "*"}
                    ),
                )
            prepare(page)
            page.goto(server.url)
            return page

        yield tab


def until(condition):
    give_up = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


def send(client, text, client_offset, timeout=WAIT):
    """Send a message and return its ack: None, or {"error": ...}."""
    return client.call(EVENT, (text, client_offset), timeout=timeout)


def shown(client, count):
    """Return the next `count` messages that the client gets, as [text, id] each, by id.

    The Python client handles each in a thread of its own, so they may swap places.
    """
    received = [client.receive(timeout=WAIT) for _ in range(count)]
    assert {event for event, *_ in received} <= {EVENT}
    return sorted((message for _, *message in received), key=lambda message: message[1])


def write(page, text):
    page.fill("#input", text)
    page.press("#input", "Enter")


def expect_messages(page, *texts):
    expect(page.locator("#messages li")).to_have_text(texts)


def expect_outbox(page, *texts):
    expect(page.locator("#outbox li")).to_have_text(texts)


def get(server, path="/"):
    return urllib.request.urlopen(server.url + path, timeout=WAIT)


# Client delivery


def test_the_page_is_served_from_beside_app_py(server):
    with get(server) as response:
        assert response.headers["Content-Type"] == "text/html"
        assert response.read() == (HERE / "index.html").read_bytes()


def test_requests_are_not_logged(server):
    get(server).close()
    assert "GET /" not in server.log.read_text()


def test_a_message_is_stored_then_broadcast_then_acknowledged(server, packets):
    ws = packets()
    ws.recv()
    ws.send(f'421["{EVENT}","hello","a-0"]')
    assert ws.recv() == f'42["{EVENT}","hello",1]'.replace("ı", "\\u0131")
    assert server.query("SELECT * FROM messages") == [(1, "a-0", "hello")]
    assert ws.recv() == "431[]"


def test_a_database_of_the_nodejs_server_goes_on(server, join):
    server.stop()
    for file in server.folder.glob("chat.db*"):
        file.unlink()
    with server.database() as db:
        db.execute(
            "CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT, "
            "client_offset TEXT UNIQUE, content TEXT)"
        )
        db.execute("INSERT INTO messages VALUES (7, 'abc-0', 'from Node.js')")
    server.start()
    client = join()
    send(client, "from Python", "abc-1")
    send(client, "from Node.js", "abc-0")
    assert shown(client, 2) == [["from Node.js", 7], ["from Python", 8]]
    assert server.texts() == ["from Node.js", "from Python"]


def test_an_id_is_never_used_again(server, join):
    client = join()
    send(client, "one", "a-0")
    server.query("DELETE FROM messages")
    send(client, "two", "a-1")
    assert shown(client, 2) == [["one", 1], ["two", 2]]


# Buffered events


def test_what_is_written_while_disconnected_is_sent_on_reconnection(server, tab):
    page = tab()
    expect(page.locator("#status")).to_have_text("connected")
    page.get_by_role("button", name="Disconnect", exact=True).click()
    expect(page.locator("#status")).to_have_text("disconnected")
    write(page, "<i>one</i>")
    write(page, "two")
    expect_outbox(page, "<i>one</i>", "two")
    assert server.texts() == []
    page.get_by_role("button", name="Connect", exact=True).click()
    expect_messages(page, "<i>one</i>", "two")
    expect_outbox(page)
    assert server.texts() == ["<i>one</i>", "two"]


# At least once


def test_an_emit_repeated_until_its_ack_arrives_at_least_once(server, join):
    client, tries = join(), 0
    with server.database() as db:
        db.execute("BEGIN IMMEDIATE")
        while True:
            try:
                send(client, "hello", "a-0", timeout=0.5)
                break
            except TimeoutError:
                tries += 1
                if tries == 2:
                    db.execute("ROLLBACK")
    assert tries >= 2
    assert server.texts() == ["hello"]


def losing_acks(page):
    """Lose what the server acknowledges to the page; return the list of its tries."""
    page.tries, page.lossy = [], True

    def link(client):
        server = client.connect_to_server()

        def to_server(packet):
            page.tries.extend([packet] * packet.startswith("42"))
            server.send(packet)

        def to_client(packet):
            if not (page.lossy and packet.startswith("43")):
                client.send(packet)

        client.on_message(to_server)
        server.on_message(to_client)

    page.clock.install()
    page.route_web_socket("**/socket.io/**", link)


def test_after_a_lost_ack_the_client_tries_again_and_is_stored_once(server, tab):
    page = tab(losing_acks)
    write(page, "hello")
    expect_messages(page, "hello")
    expect_outbox(page, "hello")
    page.lossy = False
    page.clock.fast_forward(10_000)
    expect_outbox(page)
    assert len(page.tries) == 2
    expect_messages(page, "hello")
    assert server.texts() == ["hello"]


# Exactly once


def test_a_retry_is_stored_once_broadcast_once_and_acknowledged_twice(server, packets):
    ws = packets()
    ws.recv()
    for ack_id in 1, 2, 3:
        offset = "a-0" if ack_id < 3 else "a-1"
        ws.send(f'42{ack_id}["{EVENT}","hello","{offset}"]')
    assert [ws.recv()[:3] for _ in range(5)] == ["42[", "431", "432", "42[", "433"]
    assert server.texts() == ["hello", "hello"]


def test_two_clients_may_write_the_same_text(server, join):
    one, other = join(), join()
    assert send(one, "hello", "a-0") is None
    assert send(other, "hello", "b-0") is None
    assert shown(one, 2) == shown(other, 2) == [["hello", 1], ["hello", 2]]


def test_any_other_constraint_is_not_taken_for_a_retry(server, join):
    server.query(
        "CREATE TRIGGER no BEFORE INSERT ON messages WHEN NEW.content = 'no' "
        "BEGIN SELECT RAISE(ABORT, 'not this'); END"
    )
    client = join()
    with pytest.raises(TimeoutError):
        send(client, "no", "a-0", timeout=1)
    send(client, "yes", "a-1")
    assert shown(client, 1) == [["yes", 1]]


@pytest.mark.parametrize(
    ("auth", "first"),
    [
        (None, 1),
        ({}, 1),
        ({"serverOffset": None}, 1),
        ({"serverOffset": 0}, 1),
        ({"serverOffset": 120}, 121),
        ({"serverOffset": 250}, 251),
        ({"serverOffset": 2**63 - 1}, 251),
    ],
)
def test_a_client_gets_what_came_after_its_server_offset(server, join, auth, first):
    server.fill(250)
    client = join(auth)
    until(lambda: len(client.input_buffer) == 251 - first)
    send(client, "new", "a-0")
    ids = [server_offset for _, server_offset in shown(client, 252 - first)]
    assert ids == list(range(first, 252))


def test_the_replay_comes_after_connect(server, packets):
    server.fill(3)
    ws = packets()
    assert [ws.recv()[:3] for _ in range(4)] == ["40{", "42[", "42[", "42["]


def test_an_event_named_connect_does_not_replay_again(server, packets):
    server.fill(1)
    ws = packets()
    ws.send('421["connect",{},{"serverOffset":0}]')
    ws.send(f'422["{EVENT}","hello","a-0"]')
    answers = [ws.recv()[:3] for _ in range(5)]
    assert sorted(answers) == ["40{", "42[", "42[", "431", "432"]
    ws.send(f'423["{EVENT}","hello","a-0"]')
    assert ws.recv() == "433[]"


def test_newcomers_see_each_message_once_and_in_order_while_others_write(
    server, packets
):
    server.fill(300)
    writing = threading.Event()
    writing.set()

    def write(ws, name):
        count = 0
        while writing.is_set():
            ws.send(f'421["{EVENT}","live","{name}-{count}"]')
            count += 1
            while not ws.recv().startswith("431"):
                pass

    writers = [
        threading.Thread(target=write, args=(packets({"serverOffset": 300}), name))
        for name in "abcd"
    ]
    for writer in writers:
        writer.start()
    newcomers = []
    for _ in range(60):
        newcomers.append(packets())
        assert newcomers[-1].recv().startswith("40")
    goal = len(server.texts()) + 100
    until(lambda: len(server.texts()) > goal)
    writing.clear()
    for writer in writers:
        writer.join()
    stored = [
        row_id for (row_id,) in server.query("SELECT id FROM messages ORDER BY id")
    ]
    for newcomer in newcomers:
        assert [json.loads(newcomer.recv()[2:])[2] for _ in stored] == stored


def write_through_two_kills(server, join):
    """Three clients write, the server is killed twice; return what was acknowledged."""
    acked = []

    def write(name):
        client = join()
        for text in [f"{name}-{i}" for i in range(60)]:
            while text not in acked:
                with suppress(SocketIOError):
                    send(client, text, text, timeout=1)
                    acked.append(text)

    writers = [threading.Thread(target=write, args=name) for name in "abc"]
    for writer in writers:
        writer.start()
    for count in 40, 90:
        until(lambda count=count: len(acked) >= count)
        server.stop()
        before = set(acked)
        server.start()
        assert before <= set(server.texts())
    for writer in writers:
        writer.join()
    return acked


def test_what_is_acknowledged_survives_sigkill_and_is_stored_once(server, join):
    acked = write_through_two_kills(server, join)
    assert len(acked) == 180
    assert sorted(server.texts()) == sorted(acked)


def test_a_tab_sees_each_message_once_and_in_order_through_two_kills(server, join, tab):
    page = tab()
    write_through_two_kills(server, join)
    expect_messages(page, *server.texts())


def test_what_two_tabs_write_while_the_server_is_down_arrives_once_each(server, tab):
    tabs = tab(), tab()
    for page in tabs:
        expect(page.locator("#status")).to_have_text("connected")
    server.stop()
    for name, page in zip("ab", tabs):
        expect(page.locator("#status")).to_have_text("reconnecting")
        for i in range(3):
            write(page, f"{name}-{i}")
        expect_outbox(page, f"{name}-0", f"{name}-1", f"{name}-2")
    server.start()
    for page in tabs:
        expect(page.locator("#messages li")).to_have_count(6)
        expect_outbox(page)
        expect_messages(page, *server.texts())
    for name in "ab":
        mine = [text for text in server.texts() if text.startswith(name)]
        assert mine == [f"{name}-0", f"{name}-1", f"{name}-2"]


def test_a_reload_shows_everything_once(tab):
    page = tab()
    write(page, "one")
    write(page, "two")
    expect_outbox(page)
    page.reload()
    write(page, "three")
    expect_messages(page, "one", "two", "three")


def output_with(replacement, folder, **env):
    """Return what app.py prints when a part of eventlet is replaced."""
    run = f"runpy.run_path({str(HERE / 'app.py')!r}, run_name='__main__')"
    return subprocess.check_output(
        [
            sys.executable,
            "-c",
            f"import eventlet.wsgi, gc, runpy; {replacement}; {run}",
        ],
        cwd=folder,
        env=os.environ | env,
        text=True,
    )


# It holds: load


def test_a_flood_from_one_client_does_not_hold_up_the_others(server, packets, join):
    client, flood = join(), packets()
    for i in range(3000):
        flood.send(f'42["{EVENT}","flood","f-{i}"]')
    send(client, "hello", "a-0")
    assert server.query("SELECT count(*) FROM messages") < [(3000,)]


def test_a_long_history_is_read_page_by_page(server, packets):
    server.fill(60_000)
    newcomer = packets()
    for _ in "CONNECT", "first message":
        newcomer.recv()
    server.process.send_signal(signal.SIGSTOP)
    server.query("DELETE FROM messages WHERE id > 40000 AND id < 60000")
    server.process.send_signal(signal.SIGCONT)
    ids = [1]
    while ids[-1] < 60_000:
        ids.append(json.loads(newcomer.recv()[2:])[2])
    assert ids == [*range(1, 40_001), 60_000]


def test_a_newcomer_that_vanishes_ends_its_replay(server, packets):
    server.fill(20_000)
    vanished = packets()
    for _ in "CONNECT", "first message":
        vanished.recv()
    vanished.sock.close()
    # the replay of one that came later ends after the other's would have
    later = packets()
    for _ in range(20_001):
        later.recv()
    later.send(f'421["{EVENT}","hello","a-0"]')
    assert [later.recv()[:3] for _ in range(2)] == ["42[", "431"]
    assert "Traceback" not in server.log.read_text()


def test_an_ack_does_not_wait_for_the_client_to_confirm_the_broadcast(server, packets):
    ws, delays = packets(), []
    ws.recv()
    for i in range(60):
        sent = time.monotonic()
        ws.send(f'421["{EVENT}","hello","a-{i}"]')
        assert ws.recv()[:2] == "42"
        assert ws.recv()[:3] == "431"
        delays.append(time.monotonic() - sent)
    assert statistics.median(delays) < 0.03


def test_no_websocket_extension_is_accepted(packets):
    offer = ["Sec-WebSocket-Extensions: permessage-deflate"]
    ws = packets(header=offer)
    assert "sec-websocket-extensions" not in ws.getheaders()
    assert ws.recv().startswith("40")


def test_a_commit_waits_for_the_disk_once(server):
    assert server.query("PRAGMA journal_mode") == [("wal",)]


@pytest.fixture
def idle(server):
    """A function that opens connections that ask for nothing; all are closed at the end."""
    with ExitStack() as stack:

        def idle(count):
            for _ in range(count):
                stack.enter_context(
                    socket.create_connection(("localhost", server.port), WAIT)
                )
            return stack

        yield idle


def test_the_garbage_collector_leaves_the_modules_alone(folder):
    serve = "eventlet.wsgi.server = lambda *_, **__: print(gc.get_freeze_count())"
    assert int(output_with(serve, folder, PORT="0").split()[-1]) > 10_000


def test_all_may_come_back_at_once(server, idle):
    server.process.send_signal(signal.SIGSTOP)
    idle(100)
    server.process.send_signal(signal.SIGCONT)


def test_more_than_1024_are_served(server, idle):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle(1100)
    assert get(server).status == 200


def test_the_soft_limit_of_file_descriptors_is_raised_to_the_hard_one(server, idle):
    server.stop()
    server.start(files=(64, 256))
    idle(100)
    assert get(server).status == 200


@pytest.mark.parametrize(
    "system",
    [
        # as on Windows
        "raise ImportError",
        # as on macOS
        "RLIMIT_NOFILE = 7; getrlimit = lambda _: (256, 2**63 - 1); setrlimit = lambda *_: int('x')",
    ],
)
def test_it_starts_where_the_limit_cannot_be_raised(server, system):
    server.stop()
    (server.folder / "resource.py").write_text(system)
    server.start(PYTHONPATH=str(server.folder))
    assert get(server).status == 200


def test_when_file_descriptors_run_out_newcomers_wait(server, idle, join):
    server.stop()
    server.start(files=(64, 64))
    client = join()
    connections = idle(100)
    assert send(client, "hello", "a-0") is None
    connections.close()
    assert get(server).status == 200


# It holds: faults


def test_a_locked_database_holds_up_nobody(server, packets, join):
    client, locked_out = join(), packets()
    locked_out.recv()
    with server.database() as db:
        db.execute("BEGIN IMMEDIATE")
        locked_out.send(f'421["{EVENT}","hello","a-0"]')
        # sqlite3 would wait 5 s for the lock, and everyone with it
        assert "error" in send(client, "", "b-0", timeout=3)
        db.execute("ROLLBACK")
    locked_out.send(f'422["{EVENT}","hello","a-0"]')
    assert [locked_out.recv()[:3] for _ in range(2)] == ["42[", "432"]
    assert server.texts() == ["hello"]


def test_a_full_disk_loses_nothing(server, join):
    client = join()
    send(client, "before", "a-0")
    size = (server.folder / "chat.db-wal").stat().st_size
    pid, unlimited = server.process.pid, resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, unlimited))
    with pytest.raises(TimeoutError):
        send(client, "while full", "a-1", timeout=1)
    assert shown(join(), 1) == [["before", 1]]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    send(client, "while full", "a-1")
    assert server.texts() == ["before", "while full"]


def test_a_history_that_cannot_be_read_is_read_later(server, join):
    server.fill(2)
    server.query("ALTER TABLE messages RENAME TO away")
    client = join()
    until(lambda: "cannot read chat.db: no such table" in server.log.read_text())
    server.query("ALTER TABLE away RENAME TO messages")
    assert shown(client, 2) == [["history 1", 1], ["history 2", 2]]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_also_with_a_long_poll_open(server, how):
    with get(server, "/socket.io/?EIO=4&transport=polling") as response:
        sid = json.loads(response.read()[1:])["sid"]
    with socket.create_connection(("localhost", server.port), WAIT) as poll:
        path = f"/socket.io/?EIO=4&transport=polling&sid={sid}"
        poll.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        get(server).close()  # by now the server has read the poll as well
        server.process.send_signal(how)
        server.process.wait(5)
    assert "Traceback" not in server.log.read_text()


def refusal(server):
    """Return what the server says when it ends by itself, and cannot start."""
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(WAIT)
    server.stop()
    assert server.process.returncode == 1
    return server.log.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    "env",
    [
        {"PORT": "x"},
        {"PORT": "-1"},
        {"PORT": "70000"},
        {"HOST": "no.such.host.invalid"},
    ],
)
def test_a_start_at_an_address_that_cannot_be_had_says_why(folder, env):
    server = Server(folder).launch(**env)
    assert refusal(server).startswith("cannot listen on ")
    assert "Traceback" not in server.log.read_text()


def test_a_second_server_on_the_same_port_says_that_it_is_taken(server):
    server.stop()
    server.start()  # now at a port that was asked for by number
    second = Server(server.folder).launch(PORT=str(server.port))
    assert "Address already in use" in refusal(second)
    assert "Traceback" not in second.log.read_text()


def test_a_start_without_a_usable_database_says_why(folder):
    (folder / "chat.db").write_text("this is not a database, but some other file")
    server = Server(folder).launch()
    assert refusal(server).startswith("cannot use chat.db: file is not a database")
    (folder / "chat.db").unlink()
    (folder / "chat.db").mkdir()
    server.launch()
    assert refusal(server).startswith("cannot use chat.db: unable to open")
    assert "Traceback" not in server.log.read_text()


def test_only_this_machine_can_connect_unless_host_says_otherwise(server):
    for host in "", "0.0.0.0":
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port), WAIT)
        server.stop()
        server.start(HOST=host)
    socket.create_connection(("127.0.0.2", server.port), WAIT).close()


def test_the_default_address_is_port_3000_of_this_machine(folder):
    listen = "eventlet.listen = lambda address, **_: exit(print(address))"
    assert "('127.0.0.1', 3000)" in output_with(listen, folder, HOST="", PORT="")


# It holds: bad input


def test_a_wrong_server_offset_is_refused(server, packets):
    server.fill(1)
    welcome = packets({"serverOffset": 1})
    assert welcome.recv().startswith("40")
    offsets = "1", "", -1, 0.5, float("inf"), True, False, [], {}, 2**63
    for auth in ["text", [1], True, *({"serverOffset": offset} for offset in offsets)]:
        refused = packets(auth)
        assert refused.recv() == (
            '44{"message":"auth must be an object, '
            'its serverOffset a whole number from 0 to 2^63 - 1"}'
        )
        refused.send(f'421["{EVENT}","from nobody","a-0"]')
    welcome.send(f'421["{EVENT}","hello","b-0"]')
    assert "hello" in welcome.recv()
    assert "Traceback" not in server.log.read_text()


def test_a_message_that_could_never_be_stored_is_answered_with_an_error(server, join):
    client, longest = join(), "x" * 10_000
    for arguments in (
        (),
        ("hello",),
        ("hello", "a-0", "more"),
        *((msg, "a-0") for msg in ("", longest + "x", 5, None, ["x"], b"x", "\ud800")),
        *(("hello", offset) for offset in ("", "x" * 101, 5, None, ["x"], "\udfff")),
    ):
        assert "expected two texts" in client.call(EVENT, arguments, WAIT)["error"]
    send(client, longest, "y" * 100)
    assert shown(client, 1) == [[longest, 1]]
    assert "Traceback" not in server.log.read_text()


def test_nonsense_does_not_disturb_an_honest_client(server, packets, join):
    client = join()
    too_much = f'42["{EVENT}","{"x" * 1_000_000}","a-0"]'
    unknown = '42["nope"]', '421["nope",1]', "40/nope,", '42["connect",{},"x"]'
    broken = "x", "9", "4", "42", "42[", "42{}", "42[]", "42[null]", "43", "44", "451-"
    for nonsense in (too_much, *unknown, *broken):
        ws = packets()
        ws.recv()
        with suppress(OSError):
            ws.send(nonsense)
    send(client, "hello", "a-0")
    assert shown(client, 1) == [["hello", 1]]
    assert server.texts() == ["hello"]
    assert 'app.py"' not in server.log.read_text()


def test_a_page_from_another_origin_is_refused(packets):
    with pytest.raises(websocket.WebSocketBadStatusException, match="400"):
        packets(origin="http://elsewhere.example")


# The page: what a person sees


def test_two_tabs_talk_and_text_is_never_html(tab):
    one, other = tab(), tab()
    write(one, "<b>hello</b>")
    expect_messages(other, "<b>hello</b>")
    write(other, "merhaba 👋 שלום")
    expect_messages(one, "<b>hello</b>", "merhaba 👋 שלום")
    expect(one.locator("b")).to_have_count(0)


def test_a_normal_run_uses_one_websocket_and_no_request_fails(tab):
    polls, sockets, complaints = [], [], []

    def watch(page):
        page.on("request", lambda r: "polling" in r.url and polls.append(r.url))
        page.on("websocket", lambda ws: sockets.append(ws.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(error.message))
        page.on("requestfailed", lambda request: complaints.append(request.url))

    page = tab(watch)
    write(page, "hello")
    expect_messages(page, "hello")
    expect_outbox(page)
    assert (polls, len(sockets), complaints) == ([], 1, [])


def test_polling_alone_works(tab):
    page = tab(
        lambda page: page.add_init_script("""
            window.WebSocket = class extends WebSocket {
                constructor(url) { super(url.replace('socket.io', 'no-such-path')); }
            };
        """)
    )
    write(page, "hello")
    expect_messages(page, "hello")
    expect_outbox(page)


def test_without_the_cdn_the_client_comes_from_beside_the_page(tab):
    if not CLIENT_FILE.exists():
        unavailable("no socket.io.min.js: README.md has the command that fetches it")
    page = tab(lambda page: page.route(CDN, lambda route: route.abort()))
    write(page, "hello")
    expect_messages(page, "hello")


def test_without_the_client_the_page_says_so(tab):
    page = tab(
        lambda page: page.route("**/socket.io.min.js", lambda route: route.abort())
    )
    expect(page.locator("body")).to_contain_text("The Socket.IO client did not load")
    expect(page.locator("form")).to_have_count(0)


def test_what_the_client_gave_up_can_be_sent_again_and_is_stored_once(server, tab):
    page = tab(losing_acks)
    write(page, "hello")
    write(page, "after")
    for tries in range(1, 5):
        until(lambda tries=tries: page.title() and len(page.tries) == tries)
        expect(page.locator(".undelivered")).to_have_count(0)
        page.clock.fast_forward(10_000)
    expect_outbox(
        page, "helloNot delivered: the server did not answer.Send again", "after"
    )
    assert len([packet for packet in page.tries if "hello" in packet]) == 4
    page.get_by_role("button", name="Send again").click()
    expect(page.locator("#input")).to_be_focused()
    expect_outbox(page, "after", "hello")
    page.lossy = False
    page.clock.fast_forward(10_000)
    expect_outbox(page)
    expect_messages(page, "hello", "after")
    assert server.texts() == ["hello", "after"]


def test_the_status_tells_how_the_link_is_and_the_button_changes_it(server, tab):
    page = tab()
    status, button = page.locator("#status"), page.locator("#toggle")
    expect(status).to_have_text("connected")
    expect(button).to_have_text("Disconnect")
    server.stop()
    expect(status).to_have_text("reconnecting")
    expect(button).to_have_text("Disconnect")
    button.click()
    expect(status).to_have_text("disconnected")
    expect(button).to_have_text("Connect")
    server.start()
    button.click()
    expect(status).to_have_text("connected")
    expect(button).to_have_text("Disconnect")


def test_before_the_first_connection_the_status_says_reconnecting(tab):
    page = tab(lambda page: page.route_web_socket(re.compile("ws:"), lambda ws: None))
    expect(page.locator("#status")).to_have_text("reconnecting")


def test_an_error_answer_is_shown(server, tab):
    page = tab()
    page.evaluate("input.value = '\\ud800'")
    page.press("#input", "Enter")
    expect(page.get_by_role("alert")).to_contain_text("Not delivered: expected two")
    expect(page.locator(".undelivered")).to_have_count(1)
    assert server.texts() == []


def test_leaving_with_lines_in_the_outbox_asks_first(server, tab):
    page, asked = tab(), []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    write(page, "hello")
    expect_messages(page, "hello")
    expect_outbox(page)
    page.reload()
    assert asked == []
    server.stop()
    write(page, "not sent")
    expect_outbox(page, "not sent")
    server.start()
    page.reload()
    assert asked == ["beforeunload"]


def at_the_end(page):
    """Whether the newest message is in sight, two frames from now."""
    return page.evaluate("""async () => {
        for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
        return innerHeight + scrollY >= document.body.scrollHeight - 1;
    }""")


def test_ten_thousand_messages_are_scrolled_once_a_frame(server, tab):
    server.fill(10_000)
    page = tab(
        lambda page: page.add_init_script("""
            window.scrolls = window.frames_seen = 0;
            const scrollTo = window.scrollTo.bind(window);
            window.scrollTo = (...to) => { scrolls++; scrollTo(...to); };
            (function frame() { frames_seen++; requestAnimationFrame(frame); })();
        """)
    )
    expect(page.locator("#messages li")).to_have_count(10_000)
    until(lambda: at_the_end(page))
    assert page.evaluate("0 < scrolls && scrolls <= frames_seen")


def test_a_reader_who_scrolled_up_is_left_alone(server, join, tab):
    server.fill(200)
    client, page = join(), tab()
    expect(page.locator("#messages li")).to_have_count(200)
    until(lambda: at_the_end(page))
    page.evaluate("window.scrollTo(0, 500)")
    send(client, "new", "a-0")
    expect(page.locator("#messages li")).to_have_count(201)
    assert not at_the_end(page)
    assert page.evaluate("scrollY") == 500
    write(page, "mine")
    expect(page.locator("#messages li")).to_have_count(202)
    assert at_the_end(page)


def test_a_narrow_page_does_not_scroll_sideways(server, tab):
    page = tab(viewport={"width": 360, "height": 640}, is_mobile=True)
    write(page, "long" * 100)
    expect_messages(page, "long" * 100)
    server.stop()
    expect(page.locator("#status")).to_have_text("reconnecting")
    write(page, "waiting" * 100)
    page.evaluate("waiting('unanswered'.repeat(100), 'x')(new Error())")
    assert at_the_end(page)
    widths = (
        "[...document.querySelectorAll('*')].map(e => e.getBoundingClientRect().right)"
    )
    assert (
        page.evaluate(f"Math.max(document.documentElement.scrollWidth, ...{widths})")
        <= 360
    )


def test_the_keyboard_is_enough(tab):
    page = tab()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.press("Enter")  # nothing to send
    expect_outbox(page)
    page.keyboard.type("one")
    page.keyboard.press("Enter")
    expect_messages(page, "one")
    page.keyboard.type("two")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect_messages(page, "one", "two")
    for key in "Shift+Tab", "Shift+Tab", "Enter":
        page.keyboard.press(key)
    expect(page.locator("#status")).to_have_text("disconnected")


def test_the_input_takes_no_more_than_the_server_does(tab):
    page = tab()
    expect(page.locator("#input")).to_be_focused()
    page.keyboard.insert_text("x" * 10_001)
    page.keyboard.press("Enter")
    expect_messages(page, "x" * 10_000)


def test_new_messages_and_the_status_are_announced(tab):
    page = tab()
    expect(page.locator("#messages")).to_have_attribute("aria-live", "polite")
    expect(page.get_by_role("status")).to_have_text("connected")
