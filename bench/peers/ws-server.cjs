// Node's ws, without compression: echo, or a copy for everybody.
const { WebSocketServer } = require("ws");

const [port, mode] = process.argv.slice(2);
const server = new WebSocketServer({ host: "127.0.0.1", port: Number(port), backlog: 4096, perMessageDeflate: false });
server.on("connection", (socket) => {
  socket._socket.setNoDelay(true);
  socket.on("error", () => {});
  socket.on("message", (data, binary) => {
    if (mode !== "fanout") {
      socket.send(data, { binary });
      return;
    }
    for (const client of server.clients) {
      client.send(data, { binary });
    }
  });
});
