"""Socket.IO tutorial, step 8 (client delivery): a chat that delivers each message exactly once.

To be read beside the tutorial: the same order, the same names. Two marks say where it differs, and why:
"Exactly once:" where messages would otherwise be lost, doubled or out of order;
"Unlike the tutorial:" where it is for speed, crowds, safety or comfort.
`python app.py` serves it; HOST and PORT come from the environment, chat.db lies in the working folder.
"""

import os
import signal
import sqlite3
from socket import IPPROTO_TCP, TCP_NODELAY

import eventlet.wsgi
import socketio
from socketio.exceptions import ConnectionRefusedError

# open the database file
# Exactly once: commit each statement at once, or a crash loses messages that were acknowledged.
# Unlike the tutorial: never wait for another program's lock, or everyone waits with you.
db = sqlite3.connect("chat.db", isolation_level=None, timeout=0)
# Unlike the tutorial: use a write-ahead log, or writing waits for whoever reads chat.db, and is slower.
db.execute("PRAGMA journal_mode = WAL")
# create our 'messages' table
db.execute("""
    CREATE TABLE IF NOT EXISTS messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        client_offset TEXT UNIQUE,
        content TEXT
    )
""")

# take each client's messages one by one, so that chat_message's sleep lets other clients in
sio = socketio.Server(async_mode="eventlet", async_handlers=False)
here = os.path.dirname(__file__)
static_files = {
    "/": f"{here}/index.html",
    "/socket.io.min.js": f"{here}/node_modules/socket.io-client/dist/socket.io.min.js",
}
app = socketio.WSGIApp(sio, static_files=static_files)


def is_text(value):
    """Return whether value is a str of 1 to 10,000 characters, none of them half a surrogate pair."""
    fits = isinstance(value, str) and 0 < len(value) <= 10_000
    return fits and not any("\ud800" <= char <= "\udfff" for char in value)


@sio.on("sohbet mesajı")
def chat_message(sid, msg, client_offset):
    """Store a message once, broadcast it once, acknowledge it each time it comes.

    Mirrors `socket.on('sohbet mesajı', (msg, clientOffset, callback))`. msg, client_offset: str.
    Returns the ack: None, or {"error": str} where no retry can help.
    Raises sqlite3.Error if the message cannot be stored now: no ack, so the client retries.
    """
    # Unlike the tutorial: give the others a turn first, or a client that sends thousands holds them up.
    sio.sleep(0)
    # Exactly once: refuse a bad msg or offset, or it is stored altered, at each retry, or never.
    if not (is_text(msg) and is_text(client_offset)):
        return {"error": "a message needs 1 to 10,000 characters, none broken"}
    try:
        sql = "INSERT INTO messages (content, client_offset) VALUES (?, ?)"
        result = db.execute(sql, (msg, client_offset))
    except sqlite3.IntegrityError as e:
        # Exactly once: acknowledge a UNIQUE error only, or what another constraint keeps out is lost.
        if e.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE":
            return
        raise
    # Exactly once: let no other task run between INSERT and emit, or messages come twice or out of order.
    # Exactly once: emit only to those who have all earlier rows, or this one comes twice or out of order.
    sio.emit("sohbet mesajı", (msg, result.lastrowid), to="live")
    # returning acknowledges the event


@sio.event
def connect(sid, environ, auth):
    """Accept a client, and start to replay what it has missed. Mirrors `io.on('connection')`.

    auth: a dict whose "serverOffset" (int or str of digits, default 0) is the last id that the client
    has seen; any other counts as {}. Raises ConnectionRefusedError if serverOffset is no whole number.
    """
    auth = auth if isinstance(auth, dict) else {}
    server_offset = str(auth.get("serverOffset") or 0)
    # Unlike the tutorial: refuse what is no whole number, or its client gets no history and is not told.
    if not (server_offset.isascii() and server_offset.isdecimal()):
        raise ConnectionRefusedError("serverOffset must be a whole number")
    # Exactly once: replay in a task, which runs after CONNECT is answered, or a cut link shows rows twice.
    sio.start_background_task(replay, sid, server_offset)


def replay(sid, server_offset):
    """Emit each later row, in id order, while the client is connected; then let it into the broadcast."""
    while sio.get_environ(sid):
        try:
            # Unlike the tutorial: read a few rows a turn, or a long history holds up everyone.
            sql = "SELECT id, content FROM messages WHERE id > ? ORDER BY id LIMIT 25"
            rows = db.execute(sql, (server_offset,)).fetchall()
        except sqlite3.Error as e:
            # Exactly once: try again, or whoever comes while chat.db cannot be read misses messages.
            print(f"cannot read chat.db: {e} (trying again)", flush=True)
            sio.sleep(1)
            continue
        if not rows:
            # Exactly once: let no other task run between SELECT and enter_room, or messages are missed.
            return sio.enter_room(sid, "live")
        for id, content in rows:
            sio.emit("sohbet mesajı", (content, id), to=sid)
        server_offset = rows[-1][0]
        sio.sleep(0)


if __name__ == "__main__":
    # Unlike the tutorial: serve as the comments below say, or crowds and cut requests hold up or end it.
    class Protocol(eventlet.wsgi.HttpProtocol):
        def get_environ(self):
            # no WebSocket compression: each message would be compressed anew for each client
            environ = super().get_environ()
            environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
            return environ

        def finish(self):
            # a request that is reset leaves this file open, until no descriptor is free and the server ends
            with self.rfile:
                super().finish()

    # end at once, in a container too: else Ctrl-C waits for each open request
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    # this machine only: on 0.0.0.0 the whole network can read and write
    host = os.environ.get("HOST") or "localhost"
    port = int(os.environ.get("PORT") or 3000)
    try:
        # Exactly once: share the port with no other server, or each client misses what goes to the other one.
        listener = eventlet.listen((host, port), reuse_port=False, backlog=4096)
    except OSError as e:
        raise SystemExit(f"cannot listen on {host}:{port}: {e} (set HOST or PORT)")
    # send each packet at once, or an ack waits 40 ms behind its broadcast
    listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    url = f"http://{host}:{listener.getsockname()[1]}".replace("0.0.0.0", "localhost")
    print(f"server running at {url}", flush=True)
    # a connection takes one descriptor (on Windows two of select's 512), the server some; -1: no limit
    files = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 512 // 2
    eventlet.wsgi.server(
        listener,
        app,
        protocol=Protocol,
        max_size=files - 32 if files > 0 else 10_000,
        # drop the silent and the idle, or they keep newcomers out; show no traceback, log no request
        socket_timeout=60,
        keepalive=False,
        debug=False,
        log_output=False,
    )
