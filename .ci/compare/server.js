// This is the server of the tutorial's step 8 (Turkish edition), without the page and with a configurable port.
const { createServer } = require('node:http');
const { Server } = require('socket.io');
const sqlite3 = require('sqlite3');
const { open } = require('sqlite');

async function main() {
  const db = await open({ filename: 'chat.db', driver: sqlite3.Database });
  await db.exec(`
    CREATE TABLE IF NOT EXISTS messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        client_offset TEXT UNIQUE,
        content TEXT
    );
  `);
  const server = createServer();
  const io = new Server(server, { connectionStateRecovery: {} });

  io.on('connection', async (socket) => {
    socket.on('sohbet mesajı', async (msg, clientOffset, callback) => {
      let result;
      try {
        result = await db.run('INSERT INTO messages (content, client_offset) VALUES (?, ?)', msg, clientOffset);
      } catch (e) {
        if (e.errno === 19 /* SQLITE_CONSTRAINT */ ) callback();
        return;
      }
      io.emit('sohbet mesajı', msg, result.lastID);
      callback();
    });

    if (!socket.recovered) {
      await db.each('SELECT id, content FROM messages WHERE id > ?', [socket.handshake.auth.serverOffset || 0],
        (_err, row) => socket.emit('sohbet mesajı', row.content, row.id)).catch(() => { /* something went wrong */ });
    }
  });

  const port = process.env.PORT || 3000;
  server.listen(port, () => console.log(`server running at http://localhost:${port}`));
}

main();
