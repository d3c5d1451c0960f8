"""Socket.IO tutorial, step 8: a chat that delivers each message exactly once.

It keeps the order and the names of https://socket.io/docs/v4/tutorial/step-8. Two marks say what differs:
"Exactly once" marks code without which messages are lost, duplicated or out of order;
"Unlike the tutorial" marks code that is there for speed, load, safety or usability.

Everything runs in one thread, in which each connection and each replay has a task. eventlet switches tasks
only in sio.sleep and while a task waits for the network, never inside a sqlite3 call (all tasks wait) or
inside sio.emit (it only queues packets).
"""

import os
import re
import signal
import sqlite3
from socket import IPPROTO_TCP, TCP_NODELAY

import eventlet.wsgi
import socketio

# open the database file
# Exactly once: autocommit each INSERT (isolation_level=None), or kill -9 loses acknowledged messages.
db = sqlite3.connect("chat.db", isolation_level=None)
# Unlike the tutorial: use a write-ahead log, so that a program that reads chat.db does not block writing.
db.execute("PRAGMA journal_mode = WAL")
# create our 'messages' table
db.execute("""
    CREATE TABLE IF NOT EXISTS messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        client_offset TEXT UNIQUE,
        content TEXT
    )
""")
# Unlike the tutorial: from here on, wait at most 100 ms for another program's lock (by default, 5 s), because
# all clients wait meanwhile. Do not set 0: an INSERT that fails is retried only after 10 s (ackTimeout).
db.execute("PRAGMA busy_timeout = 100")

# Unlike the tutorial: handle a client's messages in one task, whose turn ends at each sio.sleep(0). By
# default, each message has its own task: a client that sends 1,000 messages at once gets 1,000 turns.
sio = socketio.Server(async_mode="eventlet", async_handlers=False)
here = os.path.dirname(os.path.abspath(__file__))
static_files = {
    "/": f"{here}/index.html",
    "/socket.io.js": f"{here}/node_modules/socket.io-client/dist/socket.io.js",
}
app = socketio.WSGIApp(sio, static_files=static_files)


@sio.event
def connect(sid, environ, auth):
    """Start the replay for a client that connects. This mirrors `io.on('connection', ...)`."""
    # Exactly once: start the replay as a background task, last in connect. A new task waits for its turn, so
    # the client's CONNECT packet is answered first. The client would buffer earlier messages without noting
    # their ids: if the connection dropped meanwhile, the next replay would send them again, and both copies
    # would be shown. Do not use always_connect=True for this: if connect returned False, the client would get
    # a DISCONNECT packet with data, take it for a parse error, and reconnect once a second forever.
    sio.start_background_task(replay, sid, auth)


def is_valid(text):
    """Return whether text is a str of 1 to 10,000 characters, none of them a lone surrogate."""
    return isinstance(text, str) and re.fullmatch(r"[^\ud800-\udfff]{1,10000}", text)


@sio.on("sohbet mesajı")
def chat_message(sid, msg, client_offset):
    """Store and broadcast a message. This mirrors `socket.on('sohbet mesajı', ...)`.

    Return the acknowledgement: None, or {"error": str} if the message or its client offset is rejected.
    Raise sqlite3.Error if the message cannot be stored now: nothing to do, just let the client retry.
    """
    sio.sleep(0)  # let other clients and replays take their turns
    # Exactly once: reject a null client offset, because UNIQUE allows many nulls: each retry would be stored.
    # Reject a lone surrogate (half an emoji), because sqlite3 cannot store it: the client would retry the
    # message forever, and send no other. The limit of 10,000 characters only reduces the load.
    if not (is_valid(msg) and is_valid(client_offset)):
        return {"error": "message and client offset need 1 to 10,000 whole characters"}
    try:
        sql = "INSERT INTO messages (content, client_offset) VALUES (?, ?)"
        result = db.execute(sql, (msg, client_offset))
    except sqlite3.IntegrityError:  # only the UNIQUE constraint can fail
        # the message was already inserted, so we notify the client
        return
    # Exactly once: let no other task run between INSERT and emit. A replay that ends in between would
    # also send the message, and a message that is stored in between would be broadcast first.
    # Exactly once: emit only to clients whose replay has ended (to="live"). Others would get the message
    # before older ones, and again in their replay.
    sio.emit("sohbet mesajı", (msg, result.lastrowid), to="live")
    # acknowledge the event, by returning


def replay(sid, auth):
    """Replay what a client missed, then let it join the broadcast. This mirrors `if (!socket.recovered)`.

    auth: {"serverOffset": id of the last message received}; anything but 1 to 18 digits counts as 0, because
    19 could overflow SQLite's integers.
    """
    server_offset = auth.get("serverOffset") if isinstance(auth, dict) else 0
    digits = re.fullmatch(r"[0-9]{1,18}", str(server_offset))
    server_offset = int(digits[0]) if digits else 0
    while sio.get_environ(sid):  # while the client is connected
        try:
            # Unlike the tutorial: read 50 rows, then let others run, or a long history blocks other clients.
            sql = "SELECT id, content FROM messages WHERE id > ? ORDER BY id LIMIT 50"
            rows = db.execute(sql, (server_offset,)).fetchall()
        except sqlite3.Error as e:
            # Exactly once: try again, or the client gets no messages, even when chat.db is readable again.
            sio.logger.error("cannot read chat.db: %s (trying again)", e)
            sio.sleep(1)
            continue
        if not rows:
            # Exactly once: let no other task run between SELECT and enter_room, or a message that is stored
            # in between is in neither the replay nor the broadcast.
            return sio.enter_room(sid, "live")
        for server_offset, content in rows:
            sio.emit("sohbet mesajı", (content, server_offset), to=sid)
        sio.sleep(0)


# Unlike the tutorial: the code below keeps the server running under load, after connection resets, and (if it
# was started with `&`) after `exit` has closed its terminal. The guarantee needs only its reuse_port=False.
class Protocol(eventlet.wsgi.HttpProtocol):
    def get_environ(self):
        # do not compress WebSocket messages, because each would be compressed for each client; send errors to
        # eventlet's log, which prints nothing (log_output=False)
        changes = {"HTTP_SEC_WEBSOCKET_EXTENSIONS": "", "wsgi.errors": self.server.log}
        return super().get_environ() | changes

    def log_message(self, format, *args):
        """Print nothing: once the terminal is closed, printing raises an exception that stops the server."""

    def finish(self):
        # close rfile, which eventlet leaves open after a reset: once no descriptor is left, the server stops
        with self.rfile:
            super().finish()


def stop(number, frame):
    """Merge chat.db-wal into chat.db (if no other program is using them), and exit at once."""
    db.close()
    os._exit(128 + number)  # under load, KeyboardInterrupt only ends the running task


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    host = os.environ.get("CHAT_HOST") or "localhost"  # localhost: this computer only
    port = os.environ.get("PORT") or 3000
    try:
        # Exactly once: do not share the port with a second server (eventlet would), or clients miss messages.
        listener = eventlet.listen((host, int(port)), reuse_port=False, backlog=4096)
    except (OSError, OverflowError, ValueError) as e:
        hint = "check CHAT_HOST and PORT; a second server needs its own port and current directory"
        raise SystemExit(f"cannot listen on {host}:{port}: {e} ({hint})")
    listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # or acknowledgements wait 40 ms
    shown = "localhost" if host == "0.0.0.0" else host  # Firefox refuses 0.0.0.0
    print(f"server running at http://{shown}:{listener.getsockname()[1]}", flush=True)
    limit = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 256  # Windows
    max_size = limit - 32 if limit > 0 else 10_000  # -1 means no limit
    eventlet.wsgi.server(
        listener,
        app,
        max_size=max_size,  # connections: 32 descriptors are left, because the server stops if none is free
        protocol=Protocol,
        keepalive=False,  # close each HTTP connection after its response, or idle ones take clients' places
        socket_timeout=60,  # for the same reason, close connections that send nothing (clients answer pings)
        debug=False,  # do not show tracebacks to clients
        log_output=False,  # print nothing, like log_message
    )
