"""Socket.IO tutorial, step 8 (client delivery): a chat that delivers each message exactly once.

To be read beside the tutorial's page: the same order, the same names. "Unlike the page" marks what
that page's code does not say; some of it Node.js does by itself. `python app.py` serves the chat;
HOST and PORT come from the environment, chat.db lies in the working folder.
"""

import os
import resource
import signal
import sqlite3
from socket import IPPROTO_TCP, TCP_NODELAY
from sqlite3 import SQLITE_CONSTRAINT_UNIQUE  # needs Python 3.11 or newer

import eventlet.wsgi
import socketio

# open the database file; each statement is a transaction of its own
# Unlike the page: never wait for another program's lock, or everyone waits with you.
db = sqlite3.connect("chat.db", isolation_level=None, timeout=0)
# Unlike the page: use a write-ahead log, or messages wait for readers of chat.db, and longer for the disk.
db.execute("PRAGMA journal_mode = WAL")
# create our 'messages' table
db.execute("""
    CREATE TABLE IF NOT EXISTS messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        client_offset TEXT UNIQUE,
        content TEXT
    )
""")

# each client's messages are handled one after the other, in their order
sio = socketio.Server(async_mode="eventlet", async_handlers=False)
here = os.path.dirname(__file__)
client = f"{here}/node_modules/socket.io-client/dist/socket.io.min.js"
static_files = {"/": f"{here}/index.html", "/socket.io.min.js": client}
wsgi_app = socketio.WSGIApp(sio, static_files=static_files)


def app(environ, start_response):
    """Serve index.html, its Socket.IO client and Socket.IO itself: a WSGI application."""
    # Unlike the page: refuse WebSocket compression, or each message is compressed for each client.
    environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    return wsgi_app(environ, start_response)


def is_text(value):
    """Return a bool: value is a str of 1 to 10,000 characters, none half a surrogate pair."""
    fits = isinstance(value, str) and 0 < len(value) <= 10_000
    return fits and not any("\ud800" <= char <= "\udfff" for char in value)


@sio.on("sohbet mesajı")
def chat_message(sid, msg=None, client_offset=None, *more):
    """Store a message once, broadcast it once, acknowledge it each time it comes.

    Mirrors `socket.on('sohbet mesajı', (msg, clientOffset, callback))`: msg, client_offset: str.
    Returns the ack: None, or {"error": str} where no retry can help.
    Raises sqlite3.Error if the message cannot be stored now: no ack, so the client retries.
    """
    # Unlike the page: give the others a turn first, or a client that sends thousands holds them up.
    sio.sleep(0)
    # Unlike the page: refuse what is not two proper texts, or it is stored altered or tried again and again.
    if more or not is_text(msg) or not is_text(client_offset):
        return {"error": "expected two texts of 1 to 10,000 valid characters each"}
    try:
        result = db.execute(
            "INSERT INTO messages (content, client_offset) VALUES (?, ?)",
            (msg, client_offset),
        )
    except sqlite3.IntegrityError as e:
        # Unlike the page: where another constraint refuses it, send no ack, or the message is lost.
        if e.sqlite_errorcode != SQLITE_CONSTRAINT_UNIQUE:
            raise
        # the message was already inserted, so we let the client know
        return
    # Unlike the page: emit only to those who have caught up, or it overtakes the others' replay.
    sio.emit("sohbet mesajı", (msg, result.lastrowid), to="live")
    # returning acknowledges the event


@sio.event
def connect(sid, environ, auth):
    """Accept a client, and start to replay what it has missed.

    Mirrors `io.on('connection')`. auth: None or a dict; its "serverOffset" (int, default 0)
    is the last id that the client has seen. Raises ConnectionRefusedError for a wrong auth.
    """
    auth = auth or {}
    server_offset = (auth.get("serverOffset") or 0) if isinstance(auth, dict) else None
    # Unlike the page: refuse a wrong offset, or its client gets no history, without a word.
    if type(server_offset) is not int or not 0 <= server_offset < 2**63:
        raise socketio.exceptions.ConnectionRefusedError(
            "auth must be an object, its serverOffset a whole number from 0 to 2^63 - 1"
        )
    # Unlike the page: replay in a task, so that CONNECT leaves first, or a cut shows rows twice.
    # (not for an event that a client calls "connect", which comes here too, with another environ)
    if environ is sio.get_environ(sid):
        sio.start_background_task(replay, sid, server_offset)


def replay(sid, server_offset):
    """Emit to one client each row after server_offset, in id order, then let it into the broadcast."""
    # the client may leave between two turns
    while sio.get_environ(sid):
        try:
            # Unlike the page: read a few rows a turn, or a long history holds up everyone.
            rows = db.execute(
                "SELECT id, content FROM messages WHERE id > ? ORDER BY id LIMIT 25",
                (server_offset,),
            ).fetchall()
        except sqlite3.Error as e:
            # something went wrong: try again, so that nothing is missed
            print(f"cannot read chat.db: {e} (trying again)", flush=True)
            sio.sleep(1)
            continue
        if not rows:
            # Unlike the page: let it in at this very moment, or a row comes twice (earlier) or never (later).
            return sio.enter_room(sid, "live")
        for server_offset, content in rows:  # the next turn starts after the last
            sio.emit("sohbet mesajı", (content, server_offset), to=sid)
        sio.sleep(0)


if __name__ == "__main__":
    # Unlike the page: end at once, or Ctrl-C waits for every open request.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Unlike the page: listen on this machine only, or the whole network can read and write.
    host = os.environ.get("HOST") or "localhost"
    port = int(os.environ.get("PORT") or 3000)
    try:
        # Unlike the page: queue many newcomers, share the port with no other server, or clients get lost.
        listener = eventlet.listen((host, port), backlog=4096, reuse_port=False)
    except OSError as e:
        raise SystemExit(f"cannot listen on {host}:{port}: {e} (set HOST or PORT)")
    # Unlike the page: send each packet at once, or an ack waits 40 ms behind its broadcast.
    listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    url = f"http://{host}:{listener.getsockname()[1]}".replace("0.0.0.0", "localhost")
    print(f"server running at {url}", flush=True)
    # each connection takes a file descriptor, and the server itself needs some
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 32
    # Unlike the page: keep descriptors free, drop the silent and the idle, or no newcomer gets in.
    eventlet.wsgi.server(
        listener,
        app,
        max_size=limit,
        socket_timeout=60,
        keepalive=False,
        debug=False,
        log_output=False,
    )
