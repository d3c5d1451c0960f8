"""Socket.IO tutorial, step 8 (client delivery): a chat that delivers exactly once.

To be read beside the page: the same order, the same names. `python app.py` serves it;
HOST and PORT come from the environment, chat.db is opened in the working folder.
"""

import gc
import os
import re
import signal
import socket
import sqlite3
import sys
from contextlib import suppress

import eventlet
import eventlet.wsgi
import socketio

try:
    # open the database file; each statement is a transaction of its own
    # Unlike the page: a lock that another process holds would freeze every client for 5 s a try.
    db = sqlite3.connect("chat.db", isolation_level=None, timeout=0)
    # Unlike the page: each message would wait for the disk several times, not once.
    db.execute("PRAGMA journal_mode = WAL")
    # create our 'messages' table
    db.execute("""
        CREATE TABLE IF NOT EXISTS messages (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            client_offset TEXT UNIQUE,
            content TEXT
        )
    """)
# Unlike the page: a database that cannot be used would end the start in a traceback.
except sqlite3.Error as e:
    sys.exit(f"cannot use chat.db: {e} (move it away, or start in another folder)")

# Unlike the page: all that one client sends at once would come before anyone else's next message.
sio = socketio.Server(async_mode="eventlet", async_handlers=False)
here = os.path.dirname(__file__)
wsgi_app = socketio.WSGIApp(
    sio,
    static_files={
        "/": f"{here}/index.html",
        "/socket.io.min.js": f"{here}/socket.io.min.js",
    },
)


def app(environ, start_response):
    """Serve index.html, the client's file and Socket.IO: a WSGI application."""
    # Unlike the page: eventlet would compress each small message anew for each client.
    environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    return wsgi_app(environ, start_response)


def is_text(value, most):
    """Tell whether value is a str of 1 to most characters, all of which UTF-8 can carry."""
    return isinstance(value, str) and re.fullmatch(
        rf"[^\ud800-\udfff]{{1,{most}}}", value
    )


@sio.on("sohbet mesajı")
def chat_message(sid, msg=None, client_offset=None, *more):
    """Store a message once, broadcast it once, acknowledge it each time it comes.

    Mirrors `socket.on('sohbet mesajı', (msg, clientOffset, callback))`.
    msg: str, 1 to 10,000 characters. client_offset: str, 1 to 100, the message's own.
    Returns the ack: None, the page's `callback()`, or {"error": str}, which no retry helps.
    Raises sqlite3.Error if the message cannot be stored: no ack, so the client retries.
    """
    # Unlike the page: what can never be stored would be tried again and again, or stored as something else.
    if more or not is_text(msg, 10_000) or not is_text(client_offset, 100):
        return {
            "error": "expected two texts: a message of 1 to 10,000 characters "
            "and a client offset of 1 to 100"
        }
    # Unlike the page: a client that sends thousands at once would hold up everyone else for seconds.
    sio.sleep(0)
    try:
        result = db.execute(
            "INSERT INTO messages (content, client_offset) VALUES (?, ?)",
            (msg, client_offset),
        )
    except sqlite3.IntegrityError as e:
        # Unlike the page: a message that another constraint keeps out would be acknowledged, and lost.
        if str(e) != "UNIQUE constraint failed: messages.client_offset":
            raise
        # the message was already inserted, so we let the client know
        return
    # Unlike the page: it would overtake the replay of a client that is still catching up.
    sio.emit("sohbet mesajı", (msg, result.lastrowid), to="live")
    # acknowledge the event


@sio.event
def connect(sid, environ, auth):
    """Accept a client and have what it missed replayed.

    Mirrors `io.on('connection')`. auth: None or a dict, whose "serverOffset" (int, default 0)
    is the last id that the client has seen.
    Raises ConnectionRefusedError for anything else: the client gets CONNECT_ERROR.
    """
    # Unlike the page: an event that a client names "connect" comes here too, for a second replay.
    if environ is not sio.get_environ(sid):
        return
    auth = auth or {}
    server_offset = auth.get("serverOffset") if isinstance(auth, dict) else -1
    if server_offset is None:
        server_offset = 0
    # Unlike the page: a wrong offset would replay nothing, without a word.
    if type(server_offset) is not int or not 0 <= server_offset < 2**63:
        raise socketio.exceptions.ConnectionRefusedError(
            "auth must be an object, its serverOffset a whole number from 0 to 2^63 - 1"
        )
    # Unlike the page: rows emitted here leave before CONNECT, and would be shown twice after a cut.
    sio.start_background_task(replay, sid, server_offset)


def replay(sid, server_offset):
    """Emit to one client each row after server_offset, by id, then let it into the broadcast."""
    # Unlike the page: the replay of a client that has left would go on, and end in a traceback.
    while sio.get_environ(sid):
        try:
            # Unlike the page: a long history in one go would hold up everyone else, and fill the memory.
            rows = db.execute(
                "SELECT id, content FROM messages WHERE id > ? ORDER BY id LIMIT 100",
                (server_offset,),
            ).fetchall()
        except sqlite3.Error as e:
            # Unlike the page: the client would never get what it missed.
            print(
                f"cannot read chat.db: {e} (trying again)", file=sys.stderr, flush=True
            )
            sio.sleep(1)
            continue
        if not rows:
            # Unlike the page: live before that empty read, it would see messages twice; later, miss some.
            return sio.enter_room(sid, "live")
        for row_id, content in rows:
            sio.emit("sohbet mesajı", (content, row_id), to=sid)
        server_offset = rows[-1][0]
        sio.sleep(0)


def most_connections():
    """Return how many connections the process has file descriptors for, as an int."""
    try:
        import resource
    except ImportError:
        return 480  # Windows has no such module; its select() takes 512 sockets
    # Unlike the page: the shell's soft limit, often 1,024, would be all there is.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # the database, the listening socket and the like need some, too
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 32


if __name__ == "__main__":
    # Unlike the page: Ctrl-C would wait for open requests, a long poll among them for 25 s.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Unlike the page: the whole network could read and write, by default.
    host = os.environ.get("HOST") or "127.0.0.1"
    port = os.environ.get("PORT") or 3000
    try:
        # Unlike the page: when all come back after a restart, most would have to try again.
        # Unlike the page: a second server on the same port would start, and take half of the clients.
        listener = eventlet.listen((host, int(port)), backlog=4096, reuse_port=False)
    # Unlike the page: an address that cannot be had would end the start in a traceback.
    except (OSError, OverflowError, ValueError) as e:
        sys.exit(
            f"cannot listen on {host}:{port}: {e} (set HOST and PORT to a free address)"
        )
    # Unlike the page: each ack would wait 40 ms, until the client has confirmed the broadcast.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(f"server running at http://localhost:{listener.getsockname()[1]}", flush=True)
    # Unlike the page: each round of the garbage collector would go through all modules again.
    gc.freeze()
    # Unlike the page: 1,024 would be the most, and where there are fewer descriptors, the end.
    # Unlike the page: each request would write a line of log.
    eventlet.wsgi.server(listener, app, max_size=most_connections(), log_output=False)
