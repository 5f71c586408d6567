// Node's smtp-server as a submission service on this machine. Writes the port that it listens on to
// standard output, and each message that it takes to a file of its own, named by the moment.
// node relay.js '{"folder": …, "key": …, "certificate": …, "user": …, "password": …, …}'
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SMTPServer } from "smtp-server";

const given = JSON.parse(process.argv[2]);
let taken = 0;

const server = new SMTPServer({
  secure: given.secure,
  key: readFileSync(given.key),
  cert: readFileSync(given.certificate),
  authMethods: given.methods,
  hidePIPELINING: given.onebyone,
  size: given.size,
  maxClients: given.links,
  disableReverseLookup: true,
  onAuth(login, session, done) {
    const fits =
      login.username === given.user &&
      (login.password === given.password || login.validatePassword?.(given.password));
    done(fits ? null : new Error("Invalid username or password"), { user: login.username });
  },
  onData(stream, session, done) {
    const pieces = [];
    stream.on("data", (piece) => pieces.push(piece));
    stream.on("end", () => {
      if (stream.sizeExceeded) {
        done(Object.assign(new Error("Message exceeds fixed maximum size"), { responseCode: 552 }));
        return;
      }
      const file = join(given.folder, `${process.pid}-${++taken}`);
      writeFileSync(`${file}.part`, Buffer.concat(pieces));
      renameSync(`${file}.part`, file);
      setTimeout(done, given.thinks ?? 0, null, `taken as ${taken}`);
    });
  },
});
server.on("error", () => {}); // a client that is killed
const listening = server.listen(given.port ?? 0, "127.0.0.1", () => {
  console.log(listening.address().port);
});
