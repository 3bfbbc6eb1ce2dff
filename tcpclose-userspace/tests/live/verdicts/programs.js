// Programs that leave connections open, or do not: node programs.js WAY PORT. They end when their standard input does.
"use strict";
const http = require("http");
const net = require("net");
const [way, port] = [process.argv[2], Number(process.argv[3])];
const kept = [];
process.stdin.on("end", () => process.exit(0)).resume();
const ready = () => console.log("ready");
const ways = {
  // Reads each to its end, and does not end its own side.
  leaking_server: () =>
    net.createServer({ allowHalfOpen: true }, (socket) => kept.push(socket.resume())).listen(port, "127.0.0.1", ready),
  server: () => http.createServer((_, response) => response.end("ok")).listen(port, "127.0.0.1", ready),
  leaking_client: () => {
    ready();
    setInterval(() => {
      const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true });
      socket.on("error", () => {}).resume().write("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
      kept.push(socket);
    }, 400);
  },
  pool: () => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 5 });
    const use = () => http.get({ port, host: "127.0.0.1", agent }, (response) => response.resume()).on("error", () => {});
    for (let i = 0; i < 5; i++) use();
    ready();
    setInterval(use, 4000);
  },
};
ways[way]();
