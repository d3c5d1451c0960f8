"""What step 8 promises, tried on a real `python app.py` and its page in a real Chromium."""

import json
import os
import random
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
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
WAIT = 60  # seconds, until what must happen counts as not happening
expect.set_options(timeout=WAIT * 1000)


class Server:
    """`python app.py` in a folder of its own; started again, it keeps its port."""

    def __init__(self, folder, port=0):
        self.folder, self.port = folder, port
        self.log = folder / "log"

    def start(self, files=None, **env):
        """Return when it says where it runs, with at most `files` file descriptors."""
        command = [sys.executable, HERE / "app.py"]
        if files:
            command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]
        ours = {"HOST": "", "PORT": str(self.port), "PYTHONUNBUFFERED": ""}
        env = os.environ | ours | env
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=log
            )
        line = self.next_line()
        running = re.fullmatch(r"server running at (http://.+:(\d+))\n", line)
        assert running, self.stop() or self.log.read_text()
        self.url, self.port = running[1], int(running[2])
        return self

    def next_line(self):
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

    def fill(self, count):
        """Store a history of `count` messages, with the ids 1 to `count`."""
        self.query(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO messages SELECT i, 'h-' || i, 'history ' || i FROM n",
            count,
        )

    def connection(self):
        return socket.create_connection(("localhost", self.port), WAIT)

    def crowd(self, count):
        """Open connections that say nothing, closed at the end of a `with`."""
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(self.connection())
            return stack.pop_all()


@pytest.fixture
def server():
    with TemporaryDirectory() as folder:
        server = Server(Path(folder)).start()
        yield server
        server.stop()


@pytest.fixture(scope="session", autouse=True)
def crowded():
    """A server, full of silent connections for the minute that the other tests take."""
    with TemporaryDirectory() as folder:
        server = Server(Path(folder)).start(files=64)
        with server.crowd(40):
            yield server
        server.stop()


@pytest.fixture
def join(server):
    """A function that connects a Python client, with the given auth."""
    with ExitStack() as stack:

        def join(auth=None, transports=("websocket",)):
            client = socketio.SimpleClient(reconnection=False, request_timeout=WAIT)
            stack.callback(lambda: client.client and client.client.shutdown())
            client.connect(server.url, {}, auth, transports, wait_timeout=WAIT)
            return client

        yield join


@pytest.fixture
def packets(server):
    """A function that opens a raw WebSocket, and unless auth is None has CONNECT answered."""
    with ExitStack() as stack:

        def packets(auth="", **options):
            url = f"ws://localhost:{server.port}/socket.io/?EIO=4&transport=websocket"
            ws = websocket.create_connection(url, WAIT, **options)
            stack.enter_context(closing(ws))
            assert ws.recv().startswith("0{")
            if auth is not None:
                ws.send("40" + (auth and json.dumps(auth)))
                ws.answer = ws.recv()
            return ws

        yield packets


def unavailable(reason):
    """Skip the tests of the page, and say why once; where nothing may be skipped, end."""
    if os.environ.get("CI") == "true":
        pytest.exit(reason, 1)
    warnings.warn(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser():
    """Playwright's own Chromium, or the system's."""
    with sync_playwright() as playwright:
        for name in "", "chromium", "chromium-browser", "google-chrome":
            with suppress(Error):
                browser = playwright.chromium.launch(executable_path=shutil.which(name))
                break
        else:
            unavailable("no Chromium: install it, or run .venv/bin/playwright install")
        try:
            CLIENT.exists() or urllib.request.urlopen(CDN, timeout=5).close()
        except OSError:
            unavailable("no Socket.IO client: install npm, or go online")
        yield browser
        browser.close()


@pytest.fixture
def tab(server, browser):
    """A function that opens the page in a window of its own, prepared as asked for."""
    with ExitStack() as stack:

        def tab(prepare=lambda page: None, url=None, until="load", **options):
            page = stack.enter_context(browser.new_context(**options)).new_page()
            page.set_default_timeout(WAIT * 1000)
            prepare(page)
            page.goto(url or server.url, wait_until=until)
            return page

        yield tab


def until(condition):
    give_up = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


def send(client, text, client_offset):
    """Send a message and return its ack: None, or {"error": ...}."""
    return client.call(EVENT, (text, client_offset), timeout=WAIT)


def shown(client, count):
    """Return the client's next `count` messages, [text, id] each, by id (it mixes them)."""
    received = [client.receive(timeout=WAIT) for _ in range(count)]
    return sorted((message for _, *message in received), key=lambda message: message[1])


def next_id(ws):
    while not (packet := ws.recv()).startswith("42["):
        pass
    return json.loads(packet[2:])[2]


def write(page, text):
    page.fill("#input", text)
    page.press("#input", "Enter")


def expect_status(page, text):
    expect(page.locator("#status")).to_have_text(text)


def expect_messages(page, *texts):
    expect(page.locator("#messages li")).to_have_text(texts)


def expect_count(page, count):
    expect(page.locator("#messages li")).to_have_count(count)


def expect_outbox(page, *texts):
    expect(page.locator("#outbox li")).to_have_text(texts)


def at_the_end(page):
    """Whether the newest message is in sight, two frames from now."""
    return page.evaluate("""async () => {
        for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
        return main.scrollTop + main.clientHeight >= main.scrollHeight - 1;
    }""")


def stopping_the_clock(page):
    page.clock.install(time=0)
    page.clock.pause_at(1000)


def losing_acks(page):
    """Lose what the server acknowledges to the page; page.tries gets what it sends."""
    page.tries, page.lossy = [], True

    def link(client):
        server = client.connect_to_server()
        tried = lambda data: data.startswith("42") and page.tries.append(data)
        client.on_message(lambda data: tried(data) or server.send(data))
        lost = lambda data: data.startswith("43") and page.lossy
        server.on_message(lambda data: lost(data) or client.send(data))

    page.route_web_socket("**/socket.io/**", link)


class Proxy:
    """A TCP proxy that cuts each link at one of the client's first 4 to 12 chunks.

    That chunk may still reach the server, but no answer to it reaches the client.
    """

    def __init__(self, server, seed):
        self.server, self.random, self.cuts = server, random.Random(seed), 0
        self.listener = socket.create_server(("localhost", 0))
        self.url = f"http://localhost:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with suppress(OSError):  # the listener is closed at the end
            while True:
                link = self.listener.accept()[0], self.random.randint(4, 12)
                threading.Thread(target=self.carry, args=link, daemon=True).start()

    def carry(self, client, chunks):
        with client, suppress(OSError):
            server = socket.create_connection(("localhost", self.server.port))
            with server:
                while chunks:
                    for end in select.select([client, server], [], [])[0]:
                        data = end.recv(65536)
                        if not data:
                            return
                        chunks -= end is client
                        if chunks or self.random.random() < 0.7:
                            (server if end is client else client).sendall(data)
            self.cuts += 1


def test_through_cuts_and_kills_pages_show_each_line_once_and_in_order(server, tab):
    proxy, written, pages = Proxy(server, seed := 8), [], []
    server.fill(3000)

    def everyone_writes(count):
        """Each page's form is submitted `count` times, faster than it gets acks."""
        for page in pages * count:
            written.append(f"line {len(written)}")
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
            expect_outbox(page)
        stored = server.texts()
        assert sorted(stored[3000:]) == sorted(written), f"seed {seed}"
        for page in pages:
            expect(page.locator("#messages li").last).to_have_text(stored[-1])
            texts = page.locator("#messages li").all_text_contents()
            assert texts == stored, f"seed {seed}"
    assert proxy.cuts > 10


def test_a_message_is_stored_then_broadcast_then_acknowledged(server, packets):
    ws = packets()
    for id in 1, 2:  # an id is never used again
        ws.send(f'42{id}["{EVENT}","hello","a-0"]')
        assert ws.recv() == f'42["{EVENT}","hello",{id}]'.replace("ı", "\\u0131")
        assert server.query("SELECT * FROM messages") == [(id, "a-0", "hello")]
        assert ws.recv() == f"43{id}[]"
        server.query("DELETE FROM messages")


@pytest.mark.parametrize("transports", [None, ["polling"], ["websocket"]])
def test_any_client_may_join_and_two_may_write_the_same_text(join, transports):
    one, other = join(transports=transports), join(transports=transports)
    assert send(one, "hello", "a-0") is None
    assert send(other, "hello", "b-0") is None
    assert shown(one, 2) == shown(other, 2) == [["hello", 1], ["hello", 2]]


def test_a_chat_db_with_the_tutorials_table_goes_on(server, join):
    server.query("DROP TABLE messages")
    server.query(
        "CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT, "
        "client_offset TEXT UNIQUE, content TEXT)"
    )
    server.query("INSERT INTO messages VALUES (7, 'abc-0', 'from Node.js')")
    server.stop()
    client = server.start() and join()
    send(client, "from Node.js", "abc-0")
    send(client, "from Python", "abc-1")
    assert shown(client, 2) == [["from Node.js", 7], ["from Python", 8]]


# Exactly once


def test_a_retry_is_stored_once_broadcast_once_and_acknowledged_twice(server, packets):
    ws = packets()
    for ack_id in 1, 2, 3:
        offset = "a-0" if ack_id < 3 else "a-1"
        ws.send(f'42{ack_id}["{EVENT}","hello","{offset}"]')
    answers = [ws.recv()[:5] for _ in range(5)]
    assert answers == ['42["s', "431[]", "432[]", '42["s', "433[]"]
    assert server.texts() == ["hello", "hello"]


def test_a_message_that_another_constraint_keeps_out_gets_no_ack(server, packets):
    server.query(
        "CREATE TRIGGER no BEFORE INSERT ON messages WHEN NEW.content = 'no' "
        "BEGIN SELECT RAISE(ABORT, 'not this'); END"
    )
    ws = packets()
    for ack_id, text in enumerate(["no", "yes"]):
        ws.send(f'42{ack_id}["{EVENT}","{text}","a-{ack_id}"]')
    assert [ws.recv()[:5], ws.recv()[:5]] == ['42["s', "431[]"]


@pytest.mark.parametrize("offset", [None, 0, 120, 250, 2**63 - 1])
def test_after_connect_comes_what_followed_the_server_offset(server, packets, offset):
    server.fill(250)
    ws, first = packets({"serverOffset": offset}), min(offset or 0, 250) + 1
    assert ws.answer.startswith("40{")
    ws.send(f'42["{EVENT}","the next","a-0"]')
    assert [next_id(ws) for _ in range(first, 252)] == list(range(first, 252))


def test_an_event_that_a_client_names_connect_does_not_replay_again(server, packets):
    server.fill(1)
    ws = packets()
    ws.send('421["connect",{},{"serverOffset":0}]')
    ws.send(f'422["{EVENT}","hello","a-0"]')
    answers = [ws.recv()[:3] for _ in range(4)]
    assert sorted(answers) == ["42[", "42[", "431", "432"]
    ws.send(f'423["{EVENT}","hello","a-0"]')
    assert ws.recv() == "433[]"


def test_newcomers_in_a_flood_see_each_message_once_and_in_order(server, packets):
    server.fill(300)
    flood, newcomers = packets(), [packets(None) for _ in range(40)]
    server.process.send_signal(signal.SIGSTOP)
    for i in range(500):
        flood.send(f'42["{EVENT}","live","f-{i}"]')
    for i, newcomer in enumerate(newcomers):
        newcomer.send(f'40{{"serverOffset":{i % 2 * 300}}}')
    server.process.send_signal(signal.SIGCONT)
    for i, newcomer in enumerate(newcomers):
        ids = range(i % 2 * 300 + 1, 801)
        assert [next_id(newcomer) for _ in ids] == list(ids)


# Nobody holds up the others


@pytest.mark.parametrize("text", ["stored", ""])
def test_a_flood_stored_or_refused_lets_others_through(server, packets, text):
    flood, others = packets(), [packets() for _ in range(50)]
    server.process.send_signal(signal.SIGSTOP)
    for i in range(1000):
        flood.send(f'42["{EVENT}","{text}","f-{i}"]')
    flood.send(f'42["{EVENT}","last of the flood","f"]')
    for i, other in enumerate(others):
        other.send(f'42["{EVENT}","from another","o-{i}"]')
    server.process.send_signal(signal.SIGCONT)
    until(lambda: len(texts := server.texts()) > 50 and texts[-1][:4] == "last")
    assert server.texts()[:500].count("from another") == 50


def test_a_long_history_is_read_in_parts(server, packets):
    server.fill(60_000)
    newcomer = packets()
    assert next_id(newcomer) == 1
    server.process.send_signal(signal.SIGSTOP)
    server.query("DELETE FROM messages WHERE id < 60000")
    server.process.send_signal(signal.SIGCONT)
    ids = [1]
    while ids[-1] < 60_000:
        ids.append(next_id(newcomer))
    assert ids == [*range(1, len(ids)), 60_000] and len(ids) < 60_000


def test_an_ack_does_not_wait_for_the_client_to_confirm_the_broadcast(packets):
    ws, delays = packets(), []
    for i in range(100):
        sent = time.monotonic()
        ws.send(f'421["{EVENT}","hello","a-{i}"]')
        assert [ws.recv()[:3], ws.recv()[:3]] == ["42[", "431"]
        delays.append(time.monotonic() - sent)
    assert sorted(delays)[30] < 0.03


def test_a_client_that_offers_compression_gets_plain_frames(packets):
    offer = ["Sec-WebSocket-Extensions: permessage-deflate"]
    assert packets(header=offer).answer.startswith("40{")


def test_a_hundred_may_connect_at_once(server):
    server.process.send_signal(signal.SIGSTOP)
    server.crowd(100).close()
    server.process.send_signal(signal.SIGCONT)


def test_when_file_descriptors_run_out_the_chat_goes_on(server, join):
    server.stop()
    server.start(files=128)
    with server.crowd(80):
        client = join()
        with server.crowd(100):
            assert send(client, "hello", "a-0") is None
    assert send(join(), "hello again", "b-0") is None


def test_who_has_loaded_the_page_keeps_no_place(server):
    with server.connection() as link:
        link.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"\r\nConnection: close\r\n" in link.makefile("rb").read()


def test_a_locked_database_holds_up_nobody_and_loses_nothing(server, packets):
    ws = packets()
    with server.database() as db:
        db.execute("BEGIN IMMEDIATE")
        for i in range(100):  # were it to wait for the lock, it would do so each time
            ws.send(f'421["{EVENT}","hello","a-{i}"]')
        ws.send(f'422["{EVENT}","","b-0"]')
        assert ws.recv().startswith('432[{"error"')  # the others got no ack
    ws.send(f'423["{EVENT}","hello","a-0"]')
    assert [ws.recv()[:3], ws.recv()] == ["42[", "433[]"]
    assert server.texts() == ["hello"]


def test_who_reads_chat_db_keeps_nobody_from_writing(server, join):
    client = join()
    send(client, "one", "a-0")
    with server.database() as db:
        assert db.execute("BEGIN").execute("SELECT content FROM messages").fetchone()
        assert send(client, "two", "a-1") is None


def test_a_history_that_cannot_be_read_is_read_later(server, join):
    server.fill(2)
    server.query("ALTER TABLE messages RENAME TO away")
    client = join()
    said = server.next_line()
    assert said == "cannot read chat.db: no such table: messages (trying again)\n"
    server.query("ALTER TABLE away RENAME TO messages")
    assert shown(client, 2) == [["history 1", 1], ["history 2", 2]]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_even_with_a_long_poll_open(server, how):
    path = "/socket.io/?EIO=4&transport=polling"
    sid = json.loads(urllib.request.urlopen(server.url + path).read()[1:])["sid"]
    with server.connection() as poll:
        poll.sendall(f"GET {path}&sid={sid} HTTP/1.1\r\n\r\n".encode())
        urllib.request.urlopen(server.url)  # by now it has read the poll as well
        server.process.send_signal(how)
        server.process.wait(15)


def test_a_second_server_at_the_same_address_says_that_it_is_taken(server):
    server.stop()
    server.start()  # now at a port that was asked for by number
    with pytest.raises(AssertionError) as refusal, TemporaryDirectory() as folder:
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
            socket.create_connection(("127.0.0.2", server.port), WAIT)
    server.stop()
    assert server.start(HOST="0.0.0.0").url == f"http://localhost:{server.port}"
    socket.create_connection(("127.0.0.2", server.port), WAIT).close()


def test_a_wrong_server_offset_is_refused(server, packets):
    server.fill(1)
    welcome = packets({"serverOffset": 1})
    wrong = "1", -1, 0.5, float("inf"), True, [1], {"a": 1}, 2**63
    for auth in ["text", [1], True, *({"serverOffset": offset} for offset in wrong)]:
        refused = packets(auth)
        assert refused.answer.startswith('44{"message":"auth must be an object, its')
        refused.send(f'421["{EVENT}","from nobody","a-0"]')
    welcome.send(f'421["{EVENT}","hello","b-0"]')
    assert "hello" in welcome.recv()


def test_what_is_not_two_proper_texts_is_answered_with_an_error(server, join):
    client, longest = join(), "x" * 10_000
    wrong = "", longest + "x", 5, None, ["x"], b"x", "\ud800"
    wrong = [pair for text in wrong for pair in ((text, "a-0"), ("hello", text))]
    for arguments in (), ("hello",), ("hello", "a-0", 1, 2), *wrong:
        assert "expected two texts" in client.call(EVENT, arguments)["error"]
    send(client, longest, longest)
    assert shown(client, 1) == [[longest, 1]]


def test_nonsense_does_not_disturb_an_honest_client(server, packets, join):
    client = join()
    too_much = f'42["{EVENT}","{"x" * 1_000_000}","a-0"]'
    unknown = '42["nope"]', '421["nope",1]', "40/nope,", '42["connect",{},"x"]'
    broken = "x", "9", "4", "42", "42[", "42{}", "42[]", "42[null]", "43", "44", "451-"
    for nonsense in (too_much, *unknown, *broken):
        with suppress(OSError):  # what is too much is cut off while it is being sent
            packets().send(nonsense)
    send(client, "hello", "a-0")
    assert shown(client, 1) == [["hello", 1]]


def test_a_page_of_another_site_gets_no_connection(packets):
    with pytest.raises(websocket.WebSocketBadStatusException, match="400"):
        packets(origin="http://another.example")


def test_an_error_inside_tells_a_stranger_nothing(server):
    with server.connection() as link:
        link.sendall(b"GET * HTTP/1.0\r\n\r\n")
        head, body = link.makefile("rb").read().split(b"\r\n\r\n")
    assert (head[:13], body) == (b"HTTP/1.1 500 ", b"")


# The page


def test_two_pages_talk_and_ask_nobody_but_their_server(server, tab):
    requests, complaints = set(), []

    def watch(page):
        page.on("request", lambda request: requests.add(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(error.message))

    one, other = tab(watch), tab(watch)
    write(one, "<b>hello</b>")
    expect_messages(other, "<b>hello</b>")
    write(other, "merhaba 👋 שלום")
    expect_messages(one, "<b>hello</b>", "merhaba 👋 שלום")
    if CLIENT.exists():
        assert requests == {f"{server.url}/", f"{server.url}/socket.io.min.js"}
        assert complaints == []


def test_without_npm_the_client_comes_from_the_cdn(server, tab):
    def no_npm(page):
        page.route(f"{server.url}/socket.io.min.js", lambda route: route.abort())
        if CLIENT.exists():
            cors = {"Access-Control-Allow-Origin": "*"}
            page.route(CDN, lambda route: route.fulfill(path=CLIENT, headers=cors))

    expect_status(tab(no_npm), "connected")


def test_without_the_client_or_opened_as_a_file_the_page_says_what_to_do(tab):
    page = tab(lambda page: page.route("**/socket.io.min.js", lambda r: r.abort()))
    expect(page.locator("body > main")).to_contain_text("go online, or run “npm")
    page = tab(url=(HERE / "index.html").as_uri())
    expect(page.locator("body > main")).to_contain_text("open http://localhost:3000")


def test_a_line_typed_before_the_client_is_there_is_kept(server, tab):
    held = []
    hold = f"{server.url}/socket.io.min.js", lambda route: held.append(route)
    page = tab(lambda page: page.route(*hold), until="commit")
    write(page, "early")
    until(lambda: page.title() and held)
    expect_status(page, "connecting")
    expect(page.locator("#toggle")).to_have_text("Disconnect")
    expect(page.locator("#input")).to_have_value("early")
    held[0].continue_()
    expect_status(page, "connected")
    page.press("#input", "Enter")
    expect_messages(page, "early")


def test_where_no_websocket_gets_through_the_page_says_so_and_does_not_poll(tab):
    polls = []

    def refuse(page):
        page.on("request", lambda r: "polling" in r.url and polls.append(r.url))
        page.add_init_script("""
            window.WebSocket = class extends WebSocket {
                constructor(url) { super(url.replace('socket.io', 'no-such-path')); }
            };
        """)

    expect_status(tab(refuse), "reconnecting: no WebSocket connection")
    assert polls == []


def test_what_got_no_ack_can_be_sent_again_and_is_stored_once(server, tab):
    page = tab(lambda page: losing_acks(page) or stopping_the_clock(page))
    write(page, "hello")
    write(page, "after")
    for tries in range(1, 5):
        until(lambda tries=tries: page.title() and len(page.tries) == tries)
        page.clock.fast_forward(10_000)
    expect(page.locator(".undelivered")).to_contain_text(["No answer. It may have"])
    assert len([packet for packet in page.tries if "hello" in packet]) == 4
    page.click('"Send again"')
    expect(page.locator("#input")).to_be_focused()
    expect_outbox(page, "after", "hello")
    page.lossy = False
    page.clock.resume()
    page.clock.fast_forward(10_000)
    expect_outbox(page)
    expect_messages(page, "hello", "after")


def test_a_line_written_on_waking_up_is_sent_once_and_so_is_the_next(server, tab):
    page = tab(losing_acks)
    page.lossy = False
    expect_status(page, "connected")
    page.evaluate("now = Date.now() + 60_000; Date.now = () => now")  # it slept
    write(page, "one")
    write(page, "two")
    expect_messages(page, "one", "two")
    expect_outbox(page)
    assert len(page.tries) == 2


def test_what_the_server_refuses_can_be_taken_back(tab):
    page = tab()
    page.evaluate("input.value = '\\ud800'")
    page.press("#input", "Enter")
    expect(page.get_by_role("alert")).to_contain_text("Refused: expected two texts")
    expect(page.locator("#outbox button")).to_have_text(["Take back"])
    page.fill("#input", "text")
    page.click('"Take back"')
    assert page.evaluate("input.value === 'text\\ud800'")


def test_the_status_is_true_and_what_is_written_offline_is_sent(server, tab):
    page = tab()
    expect_status(page, "connected")
    server.stop()
    expect_status(page, "reconnecting: no WebSocket connection")
    page.click('"Disconnect"')
    expect_status(page, "disconnected")
    write(page, "one")
    write(page, "two")
    expect_outbox(page, "one", "two")
    server.start()
    page.click('"Connect"')
    expect_messages(page, "one", "two")
    expect_outbox(page)
    page.click('"Disconnect"')
    page.evaluate("socket.auth.serverOffset = 'wrong'")
    page.click('"Connect"')
    expect_status(page, re.compile("^disconnected: auth must be an object"))
    expect(page.locator("#toggle")).to_have_text("Connect")


def test_the_history_is_not_announced_but_what_follows_is(server, join, tab):
    server.fill(300)
    page, announced = tab(stopping_the_clock), "messages.ariaLive === 'polite'"
    expect_count(page, 300)
    page.clock.run_for(900)
    send(join(), "new", "a-0")
    expect_count(page, 301)
    page.clock.run_for(900)
    assert not page.evaluate(announced)
    page.clock.run_for(100)
    assert page.evaluate(announced)


def test_the_page_speaks_of_no_messages_only_where_there_are_none(server, tab):
    page = tab(stopping_the_clock)
    hint = "getComputedStyle(messages, '::before').content !== 'none'"
    expect_status(page, "connected")
    assert not page.evaluate(hint)  # the history may be on its way
    page.clock.run_for(1000)
    assert page.evaluate(hint)
    page.evaluate("void waiting('mine', 'x')")
    assert not page.evaluate(hint)
    page.evaluate("outbox.replaceChildren()")
    assert page.evaluate(hint)
    server.stop()
    expect_status(page, re.compile("^reconnecting"))
    assert not page.evaluate(hint)


def test_leaving_with_lines_in_the_outbox_asks_first(tab):
    page, asked = tab(), []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    write(page, "hello")
    expect_outbox(page)
    page.reload()
    assert asked == []
    page.click('"Disconnect"')
    write(page, "not sent")
    page.reload()
    assert asked == ["beforeunload"]


def test_a_history_of_ten_thousand_is_not_scrolled_for_each_message(server, tab):
    server.fill(10_000)
    page = tab(
        lambda page: page.add_init_script("""
            window.scrolls = 0;
            for (const owner of [window, Element.prototype]) owner.scrollTo =
                (f => function (...to) { scrolls++; f.apply(this, to); })(owner.scrollTo);
        """)
    )
    expect_count(page, 10_000)
    until(lambda: at_the_end(page))
    assert 0 < page.evaluate("scrolls") < 2000


def test_who_is_at_the_end_stays_there_whatever_grows(server, join, tab):
    server.query("INSERT INTO messages VALUES (1, 'h', ?)", "many words " * 500)
    client, page = join(), tab(viewport={"width": 1000, "height": 700})
    expect_count(page, 1)
    for count, (width, height) in enumerate([(1000, 480), (460, 480), (900, 800)], 2):
        page.set_viewport_size({"width": width, "height": height})
        until(lambda: at_the_end(page))
        send(client, "new", f"a-{count}")
        expect_count(page, count)
        assert at_the_end(page)
    server.stop()
    for _ in range(3):
        write(page, "waiting\nfor the server")
        assert at_the_end(page)
    page.evaluate("outbox.append(document.createElement('li'))")
    assert at_the_end(page)


def test_a_reader_who_scrolled_up_is_left_alone_until_they_write(server, join, tab):
    server.fill(200)
    client, page = join(), tab()
    expect_count(page, 200)
    until(lambda: at_the_end(page))
    page.evaluate("main.scrollTo(0, 500)")
    send(client, "new", "a-0")
    expect_count(page, 201)
    assert not at_the_end(page)
    assert page.evaluate("main.scrollTop") == 500
    write(page, "mine")
    expect_count(page, 202)
    assert at_the_end(page)


def test_a_narrow_page_does_not_scroll_sideways_and_covers_no_button(server, tab):
    page = tab(viewport={"width": 320, "height": 480}, is_mobile=True)
    write(page, "long" * 100)
    expect_messages(page, "long" * 100)
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    page.evaluate("for (const i of '12345') waiting('no '.repeat(30), i)(new Error())")
    until(lambda: at_the_end(page))
    right = page.evaluate("""Math.max(...[...document.querySelectorAll('*')]
        .map(element => element.getBoundingClientRect().right))""")
    assert right <= 320
    buttons = page.locator("#outbox button")
    for i in range(5):
        buttons.nth(i).focus()
        expect(buttons.nth(i)).to_be_in_viewport(ratio=0.9)


def test_the_keyboard_is_enough_and_neither_spaces_nor_too_much_is_sent(server, tab):
    page = tab()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.press("Enter")  # nothing to send
    page.keyboard.type("   ")
    page.keyboard.press("Enter")
    page.keyboard.type("one ")
    page.keyboard.press("Enter")
    expect_outbox(page)
    page.keyboard.insert_text("x" * 10_001)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect_messages(page, "   one ", "x" * 10_000)
    for key in "Shift+Tab", "Shift+Tab", "Shift+Tab", "Enter":
        page.keyboard.press(key)
    expect_status(page, "disconnected")


def test_who_connects_and_says_nothing_is_dropped(crowded):
    assert urllib.request.urlopen(crowded.url, timeout=60 + WAIT).status == 200
