// A server that keeps connections whose peers have closed them, and answers their ends from one of five functions.
'use strict';
const net = require('net');

function leak_0(socket) { socket.write('0'); }
function leak_1(socket) { socket.write('1'); }
function leak_2(socket) { socket.write('2'); }
function leak_3(socket) { socket.write('3'); }
function leak_4(socket) { socket.write('4'); }
const leaks = [leak_0, leak_1, leak_2, leak_3, leak_4];

let nth = 0;
const held = [];
const server = net.createServer({ allowHalfOpen: true }, (socket) => {
  const leak = leaks[nth++ % 5];
  held.push(socket);
  socket.on('error', () => {});
  socket.on('end', () => leak(socket));
  socket.resume();
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
