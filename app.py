"""Socket.IO tutorial, step 8: a chat that delivers each message exactly once.

It keeps the order and the names of https://socket.io/docs/v4/tutorial/step-8. Two marks say what differs:
"Exactly once" marks what the guarantee needs: without it, messages are lost, duplicated or out of order;
"Unlike the tutorial" marks what serves speed, load, safety or usability.

Everything runs in one thread. eventlet switches tasks only in sio.sleep and while a task waits for the
network, never inside a sqlite3 call (all tasks wait) or inside sio.emit (it only queues packets).
"""

import os
import re
import signal
import sqlite3
from socket import IPPROTO_TCP, TCP_NODELAY

import eventlet.wsgi
import socketio

# open the database file (with one cursor, so that stop() can end an unfinished SELECT)
# Exactly once: commit each statement (isolation_level=None), or a crash loses acknowledged messages.
db = sqlite3.connect("chat.db", isolation_level=None).cursor()
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
# Unlike the tutorial: from now on, do not wait for another program's lock, or every client waits as well.
db.execute("PRAGMA busy_timeout = 0")

# Unlike the tutorial: handle one message per client at a time, so that other clients get their turn.
sio = socketio.Server(async_mode="eventlet", async_handlers=False)
here = os.path.dirname(__file__)
static_files = {
    "/": f"{here}/index.html",
    "/socket.io.min.js": f"{here}/node_modules/socket.io-client/dist/socket.io.min.js",
}
app = socketio.WSGIApp(sio, static_files=static_files)


@sio.event
def connect(sid, environ, auth):
    """Start the replay for a new client. It mirrors `io.on('connection', async (socket) => { ... })`."""
    # Exactly once: replay in a task, which starts after the answer to CONNECT. The client keeps messages that
    # arrive before it, but not their ids: if the connection drops before it, the next replay repeats them.
    sio.start_background_task(replay, sid, auth)


def is_valid(text):
    """Return whether text is a str of 1 to 10,000 characters, none of them a lone surrogate."""
    return isinstance(text, str) and re.fullmatch(r"[^\ud800-\udfff]{1,10000}", text)


@sio.on("sohbet mesajı")
def chat_message(sid, msg, client_offset):
    """Store and broadcast a message. It mirrors `socket.on('sohbet mesajı', ...)`.

    Return the acknowledgement: None, or {"error": str} if the message or its client offset is rejected.
    Raise sqlite3.Error if the message cannot be stored now: nothing to do, just let the client retry.
    """
    # Unlike the tutorial: let other tasks run first, or a client that sends many messages blocks the others.
    sio.sleep(0)
    # Exactly once: reject null, which UNIQUE allows many times (each retry would be stored again), and lone
    # surrogates, which sqlite3 cannot store (the client would retry forever). Length limits only reduce load.
    if not (is_valid(msg) and is_valid(client_offset)):
        return {"error": "message and client offset need 1 to 10,000 valid characters"}
    try:
        sql = "INSERT INTO messages (content, client_offset) VALUES (?, ?)"
        result = db.execute(sql, (msg, client_offset))
        if not result.rowcount:  # nothing is stored: lastrowid is an older id
            raise sqlite3.IntegrityError("ignored by a trigger")
    except sqlite3.IntegrityError as e:
        if str(e) == "UNIQUE constraint failed: messages.client_offset":
            # the message was already inserted, so we notify the client
            return
        # Exactly once: report any other rejection (by a trigger, say), or the client counts msg as stored.
        return {"error": f"the database rejects this message: {e}"}
    # Exactly once: run no task between INSERT and emit, or a replay sends msg too, or later ids overtake it.
    # Exactly once: emit only to clients whose replay has ended: others would get msg now and in their replay.
    sio.emit("sohbet mesajı", (msg, result.lastrowid), to="live")
    # acknowledge the event, by returning


def replay(sid, auth, new=0):
    """Replay what a client missed, then let it join the broadcast. It mirrors `if (!socket.recovered)`.

    auth: {"serverOffset": last id received (0 if not a number)}; new (internal): rows since the last SELECT.
    """
    server_offset = auth.get("serverOffset") if isinstance(auth, dict) else 0
    # encode it, because sqlite3 does not take a str with a lone surrogate
    server_offset = str(server_offset).encode(errors="replace")
    while sio.get_environ(sid):  # until the client disconnects
        try:
            # Unlike the tutorial: read some rows, then let other tasks run, or a long history blocks others.
            sql = "SELECT id, content FROM messages WHERE id > CAST(? AS INTEGER) ORDER BY id LIMIT 25 + ?"
            rows = db.execute(sql, (server_offset, new if new < 100 else 0)).fetchall()
        except sqlite3.Error as e:
            # Exactly once: try again, or a client that connects while chat.db is unreadable gets no messages.
            sio.logger.error("cannot read chat.db: %s (trying again)", e)
            sio.sleep(1)
            continue
        if not rows:
            # Exactly once: run no task between SELECT and enter_room, or messages stored then are missed.
            return sio.enter_room(sid, "live")
        for server_offset, content in rows:
            sio.emit("sohbet mesajı", (content, server_offset), to=sid)
        before = db.lastrowid or 0  # the id of the last INSERT
        sio.sleep(0)
        new = (db.lastrowid or 0) - before  # each writer stores one: outrun up to 99


# Unlike the tutorial: the code below keeps the server up under load, after resets and without a terminal.
class Protocol(eventlet.wsgi.HttpProtocol):
    def get_environ(self):
        # do not compress WebSocket messages: each would be compressed again for each client;
        # do not print errors: printing stops the server once its terminal is closed
        changes = {"HTTP_SEC_WEBSOCKET_EXTENSIONS": "", "wsgi.errors": self.server.log}
        return super().get_environ() | changes

    def log_message(self, format, *args):
        """Print nothing: printing stops the server once its terminal is closed."""

    def finish(self):
        # eventlet leaves rfile open after a reset, until no descriptor is free and the server stops
        with self.rfile:
            super().finish()


def stop(number, frame):
    """Merge chat.db-wal into chat.db, unless another program is using it, and exit at once."""
    db.close()
    db.connection.close()
    os._exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    host = os.environ.get("CHAT_HOST") or "localhost"  # localhost: this computer only
    port = os.environ.get("PORT") or 3000
    try:
        # Exactly once: do not share the port (as eventlet does), or clients miss the other server's messages.
        listener = eventlet.listen((host, int(port)), reuse_port=False, backlog=4096)
    except (OSError, OverflowError, ValueError) as e:
        raise SystemExit(f"cannot listen on {host}:{port}: {e} (set CHAT_HOST or PORT)")
    # send each packet at once, or an acknowledgement waits 40 ms behind its broadcast
    listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    print("server running at http://{}:{}".format(*listener.getsockname()), flush=True)
    # leave some descriptors for the server itself (-1: no limit; on Windows, assume 256)
    descriptors = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 256
    max_size = descriptors - 32 if descriptors > 0 else 10_000
    # drop connections that send nothing, or new clients wait until one closes
    limits = {"max_size": max_size, "socket_timeout": 60, "keepalive": False}
    quiet = {"debug": False, "log_output": False}
    eventlet.wsgi.server(listener, app, protocol=Protocol, **limits, **quiet)
