// This compares the tutorial's server and client settings with ours, in turn, in ROUNDS (default 5) rounds, and
// prints the README's table. The exit status is 1 if ours loses a message, or shows one twice or out of order, or
// if the comparison does not reach its end.
// With OWN_TIMEOUTS=1, the clients have the tutorial's timeouts, which are longer.
const { spawn } = require('node:child_process');
const { once } = require('node:events');
const { mkdtempSync, rmSync } = require('node:fs');
const net = require('node:net');
const { tmpdir } = require('node:os');
const { setTimeout: sleep } = require('node:timers/promises');
const { io } = require('socket.io-client');

const EVENT = 'sohbet mesajı', ROOT = `${__dirname}/../..`;
const SIDES = {
  tutorial: { command: ['node', `${__dirname}/server.js`], options: { retries: 3 } },
  ours: { command: [`${ROOT}/.venv/bin/python`, `${ROOT}/app.py`], options: { retries: Infinity, transports: ['websocket'] } },
};
const TIMEOUTS = process.env.OWN_TIMEOUTS ? { ackTimeout: 10_000 }
  : { ackTimeout: 1000, reconnectionDelay: 50, reconnectionDelayMax: 200 };
const random = (n) => Math.floor(Math.random() * n);
const repeat = async (times, action) => { for (let i = 0; i < times; i++) await action(i); };

/** Return when the condition holds; fail after 120 s (Socket.IO notices a dead connection after 45 s). */
async function until(condition) {
  for (const end = Date.now() + 120_000; !condition(); await sleep(1)) {
    if (Date.now() > end) throw new Error(`still false after 120 s: ${condition}`);
  }
}

/** Return a server that can be started, with a free port and a new folder. */
async function createServer([program, file]) {
  const probe = net.createServer().listen(0), { port } = probe.address();
  await once(probe.close(), 'close');
  const server = { port, cwd: mkdtempSync(`${tmpdir()}/compare-`) };
  server.start = async () => {
    const env = { ...process.env, PORT: port, PYTHONWARNINGS: 'ignore' };
    server.process = spawn(program, [file], { cwd: server.cwd, env, stdio: ['ignore', 'pipe', 'inherit'] });
    server.exit = once(server.process, 'exit');
    const fail = () => {
      throw new Error(`${file} did not start: run the README's other blocks first (building sqlite3 needs a C++ compiler)`);
    };
    const limit = sleep(60_000, null, { ref: false });
    await Promise.race([once(server.process.stdout, 'data'), server.exit.then(fail, fail), limit.then(fail)]);
  };
  server.kill = async () => {
    if (!server.process.kill('SIGKILL')) throw new Error(`${file} ended by itself`);
    await server.exit;
  };
  return server;
}

/** Connect a client that, like the page, collects its messages and the last id. */
function connect(port, serverOffset, options) {
  const socket = io(`http://127.0.0.1:${port}`, { auth: { serverOffset }, forceNew: true, ...options });
  socket.received = [];
  return socket.on(EVENT, (msg, id) => { socket.received.push({ msg, id }); socket.auth.serverOffset = id; });
}

/** Count faults: 8 clients write 60 messages each, most of them while 40 connections drop and the server is killed 3 times. */
async function countFaults(server, options) {
  const connections = new Set(), written = [];
  const proxy = net.createServer((client) => {
    const upstream = net.connect(server.port, '127.0.0.1');
    const drop = () => { client.destroy(); upstream.destroy(); connections.delete(drop); };
    for (const side of [client, upstream]) side.on('error', drop).on('close', drop);
    client.pipe(upstream).pipe(client);
    upstream.on('connect', () => connections.add(drop));
  }).listen(0);
  const clients = Array.from({ length: 8 }, () => connect(proxy.address().port, 0, { ...TIMEOUTS, ...options }));
  const isOurs = options === SIDES.ours.options;
  const counters = clients.map(() => 0);
  let answers = 0;
  // each client writes at its own pace, and counts its own messages
  const write = (count) => Promise.all(clients.map((socket, page) => repeat(count, async () => {
    const counter = counters[page]++;
    written.push(`${counter} of page ${page}`);
    socket.emit(EVENT, written.at(-1), `${isOurs ? page : socket.id}-${counter}`, () => answers++);
    await sleep(random(200));
  })));
  const dropOne = async () => {
    await sleep(50 + random(50));
    await until(() => connections.size);
    [...connections][random(connections.size)]();
  };
  const restart = async () => { await sleep(700 + random(500)); await server.kill(); await server.start(); };
  await Promise.all([write(50), repeat(40, dropOne), repeat(3, restart)]);
  await until(() => clients.every((socket) => socket.connected));
  await write(10); // most of these messages are in no replay: they show whether the broadcast works
  await until(() => answers >= written.length);
  const last = ({ received }) => Math.max(...received.map(({ id }) => id));
  await until(() => new Set(clients.map(last)).size === 1);
  await sleep(500);
  for (const each of [...clients, proxy]) each.close();
  const shown = clients.map(({ received }) => received.map(({ msg }) => msg));
  return {
    'messages lost': written.filter((msg) => !shown.every((messages) => messages.includes(msg))).length,
    'shown twice': shown.flatMap((messages) => messages.filter((msg, i) => messages.indexOf(msg) < i)).length,
    'out of order': clients.flatMap(({ received }) => received.filter(({ id }, i) => i && id < received[i - 1].id)).length,
  };
}

/** Measure speeds while no connection drops. */
async function measureSpeeds({ port }) {
  const result = {};
  let sockets = [], counter = 0;
  const measure = async (name, count, action) => {
    const start = performance.now();
    await action();
    result[name] = count / (performance.now() - start);
  };
  const connectAll = async (count, serverOffset = 1e12 /* no replay */) => {
    for (const socket of sockets) socket.close();
    sockets = Array.from({ length: count }, () => connect(port, serverOffset, { transports: ['websocket'] }));
    await until(() => sockets.every((socket) => socket.connected));
  };
  const send = (socket, times) => repeat(times, () => socket.timeout(60_000).emitWithAck(EVENT, 'hello world', `${counter++}`));
  const receive = (count) => until(() => sockets.every(({ received }) => received.length >= count));
  await connectAll(30);
  await measure('acknowledgement speed (ratio), 30 senders', 3000, () => Promise.all(sockets.map((socket) => send(socket, 100))));
  await connectAll(200);
  await measure('delivery speed (ratio), 200 clients', 20_000, () => send(sockets[0], 100).then(() => receive(100)));
  await connectAll(0);
  await sleep(1000); // let the server clean up after the 200 clients
  const replay = () => connectAll(1, 0).then(() => receive(3100));
  await measure('replay speed (ratio)', 5 * 3100, () => repeat(5, replay));
  sockets[0].close();
  return result;
}

(async () => {
  process.exitCode = 1;
  const rounds = +process.env.ROUNDS || 5, rows = {};
  for (let round = 0; round < rounds; round++) {
    for (const side of round % 2 ? ['ours', 'tutorial'] : ['tutorial', 'ours']) {
      const { command, options } = SIDES[side], server = await createServer(command);
      try {
        await server.start();
        for (const measure of [countFaults, measureSpeeds]) {
          for (const [name, value] of Object.entries(await measure(server, options))) {
            rows[name] ??= { tutorial: [], ours: [], isFault: measure === countFaults };
            rows[name][side].push(value);
          }
        }
      } finally {
        server.process.kill('SIGKILL');
        await server.exit.catch(() => {});
        rmSync(server.cwd, { recursive: true });
      }
    }
    console.error(`round ${round + 1} of ${rounds}`);
  }
  const range = (counts) => [...new Set([Math.min(...counts), Math.max(...counts)])].join(' to ');
  console.log('figure | the tutorial | this\n---|---|---');
  for (const [name, { tutorial, ours, isFault }] of Object.entries(rows)) {
    const ratios = ours.map((value, i) => value / tutorial[i]).sort((a, b) => a - b);
    console.log([name, ...isFault ? [range(tutorial), range(ours)] : [1, ratios[rounds >> 1].toFixed(2)]].join(' | '));
  }
  const faults = Object.values(rows).filter(({ isFault, ours }) => isFault && Math.max(...ours));
  process.exitCode = rounds > 0 && !faults.length ? 0 : 1;
})();
