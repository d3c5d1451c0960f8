// Compares the tutorial's server and client settings with ours, in turn, and prints the README's table.
// ROUNDS (default 5) and PYTHON (default .venv/bin/python) come from the environment.
// The exit status is 1 if ours loses, duplicates or disorders a message.
const { execFileSync, spawn } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { io } = require('socket.io-client');

const EVENT = 'sohbet mesajı', LATEST = { serverOffset: 1e12 };
const ROOT = path.join(__dirname, '../..');
const PYTHON = path.resolve(process.env.PYTHON || path.join(ROOT, '.venv/bin/python'));
const SIDES = {
  tutorial: { command: ['node', `${__dirname}/server.js`], retries: 3, id: (socket) => socket.id },
  ours: { command: [PYTHON, `${ROOT}/app.py`], retries: Infinity, transports: ['websocket'], id: (socket) => socket.page },
};
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const random = (n) => Math.floor(Math.random() * n);
const freePort = (server) => new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server.address().port)));

/** Wait for the condition, 60 s at most. */
async function until(condition) {
  for (const end = Date.now() + 60_000; !condition() && Date.now() < end;) await sleep(1);
}

/** Start a server in a new folder. */
async function startServer(command) {
  const cwd = fs.mkdtempSync(path.join(require('node:os').tmpdir(), 'compare-')), probe = net.createServer();
  const PORT = await freePort(probe);
  await new Promise((resolve) => probe.close(resolve));
  const server = { PORT, cwd, url: `http://127.0.0.1:${PORT}` };
  server.start = () => new Promise((resolve) => {
    server.process = spawn(command[0], command.slice(1), { cwd, env: { ...process.env, PORT }, stdio: ['ignore', 'pipe', 'inherit'] });
    server.process.stdout.on('data', (text) => `${text}`.includes('server running') && resolve());
  });
  server.kill = () => new Promise((resolve) => server.process.on('exit', resolve).kill('SIGKILL'));
  server.end = () => server.kill().then(() => fs.rmSync(cwd, { recursive: true }));
  await server.start();
  return server;
}

/** Count faults while 8 clients write 60 messages each, 40 connections drop, and the server is killed 3 times. */
async function faults({ command, id, ...options }) {
  const server = await startServer(command), connections = new Set(), written = [];
  const proxy = net.createServer((client) => {
    const upstream = net.connect(server.PORT, '127.0.0.1');
    const drop = () => { client.destroy(); upstream.destroy(); connections.delete(drop); };
    for (const end of [client, upstream]) end.on('error', drop).on('close', drop);
    client.pipe(upstream).pipe(client);
    connections.add(drop);
  });
  const url = `http://127.0.0.1:${await freePort(proxy)}`;
  const clients = [0, 1, 2, 3, 4, 5, 6, 7].map((page) => {
    const delays = { ackTimeout: 1000, reconnectionDelay: 50, reconnectionDelayMax: 200 };
    const socket = io(url, { auth: { serverOffset: 0 }, forceNew: true, ...delays, ...options });
    socket.on(EVENT, (msg, serverOffset) => { socket.shown.push([msg, serverOffset]); socket.auth.serverOffset = serverOffset; });
    if (options.transports) socket.on('disconnect', () => { socket.sendBuffer = []; });
    return Object.assign(socket, { page: `page ${page}`, shown: [] });
  });
  let answers = 0;
  const repeat = async (times, action) => { for (let i = 0; i < times; i++) await action(i); };
  await Promise.all([
    repeat(60, async (i) => {
      for (const socket of clients) {
        written.push(`${i} of ${socket.page}`);
        socket.emit(EVENT, written.at(-1), `${id(socket)}-${i}`, () => answers++);
      }
      await sleep(random(60));
    }),
    repeat(40, async () => { await sleep(50 + random(50)); [...connections][random(connections.size)]?.(); }),
    repeat(3, async () => { await sleep(700 + random(500)); await server.kill(); await server.start(); }),
  ]);
  await until(() => answers >= written.length && clients.every((socket) => socket.connected));
  const last = () => clients.map((socket) => socket.auth.serverOffset);
  await until(() => Math.min(...last()) === Math.max(...last()));
  await sleep(500);
  const result = { 'messages lost': 0, 'shown twice': 0, 'out of order': 0 };
  for (const { shown } of clients) {
    const distinct = new Set(shown.map(([msg]) => msg));
    result['messages lost'] = Math.max(result['messages lost'], written.length - distinct.size);
    result['shown twice'] += shown.length - distinct.size;
    result['out of order'] += shown.filter(([, id], i) => i && id < shown[i - 1][1]).length;
  }
  for (const socket of [...clients, proxy]) socket.close();
  await server.end();
  return result;
}

/** Measure a server that nothing disturbs. */
async function speeds({ command }) {
  const server = await startServer(command), result = {};
  let offset = 0;
  const connect = (auth = LATEST) => new Promise((resolve) => {
    const socket = io(server.url, { auth, forceNew: true, reconnection: false, transports: ['websocket'] });
    socket.received = 0;
    socket.on(EVENT, () => socket.received++).on('connect', () => resolve(socket));
  });
  const connectAll = (count) => Promise.all(Array.from({ length: count }, () => connect()));
  const perSecond = async (count, action) => { const start = performance.now(); await action(); return count / (performance.now() - start) * 1000; };
  const send = async (sockets, times) => {
    const one = async (socket) => { for (let i = 0; i < times; i++) await socket.emitWithAck(EVENT, 'hello world', `${offset++}`); };
    await Promise.all(sockets.map(one));
  };
  for (const count of [1, 30]) {
    const sockets = await connectAll(count), times = 600 / Math.sqrt(count) | 0;
    result[`acknowledgements a second, ${count} sender${count > 1 ? 's' : ''}`] = await perSecond(count * times, () => send(sockets, times));
    for (const socket of sockets) socket.close();
  }
  const listeners = await connectAll(200);
  result['deliveries a second, 200 clients'] = await perSecond(20_000, async () => {
    await send([await connect()], 100);
    await until(() => listeners.every((socket) => socket.received === 100));
  });
  for (const socket of listeners) socket.close();
  const code = 'import sqlite3; db = sqlite3.connect("chat.db", timeout=60); rows = [("a message of the history",)] * 5000\n';
  execFileSync(PYTHON, ['-c', `${code}db.executemany("INSERT INTO messages (content) VALUES (?)", rows); db.commit()`], { cwd: server.cwd });
  result['replayed messages a second'] = await perSecond(5000, async () => {
    const socket = await connect({ serverOffset: 0 });
    await until(() => socket.received >= 5000);
    socket.close();
  });
  result['memory (less is better)'] = +execFileSync('ps', ['-o', 'rss=', '-p', server.process.pid]);
  await server.end();
  return result;
}

(async () => {
  const rounds = +process.env.ROUNDS || 5, table = {};
  for (let round = 0; round < rounds; round++) {
    for (const measure of [faults, speeds]) {
      const results = {};
      for (const side of round % 2 ? ['ours', 'tutorial'] : ['tutorial', 'ours']) results[side] = await measure(SIDES[side]);
      for (const key in results.ours) {
        (table[key] ??= { isFault: measure === faults, rows: [] }).rows.push([results.tutorial[key], results.ours[key]]);
      }
    }
    console.error(`round ${round + 1} of ${rounds}`);
  }
  console.log('figure | the tutorial | this\n--- | --- | ---');
  for (const [key, { isFault, rows }] of Object.entries(table)) {
    const range = (values) => [...new Set([Math.min(...values), Math.max(...values)])].join(' to ');
    const ratio = rows.map(([tutorial, ours]) => ours / tutorial).sort((a, b) => a - b)[rows.length >> 1].toFixed(2);
    console.log(`${key} | ${isFault ? `${range(rows.map((row) => row[0]))} | ${range(rows.map((row) => row[1]))}` : `1 | ${ratio}`}`);
  }
  process.exit(Object.values(table).some(({ isFault, rows }) => isFault && rows.some((row) => row[1])) ? 1 : 0);
})();
