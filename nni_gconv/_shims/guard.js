// NNI's web server answers whoever reaches it, and so does whatever a web page tells the browser of
// its user to send: a WebSocket or a JSON post to 127.0.0.1 starts a trial. Here only this machine's
// own pages and programs are served: the Host is a loopback name (a page whose name was bound to
// 127.0.0.1 sends its own), the Origin is that very Host, and the process at the other end belongs
// to the user who started the experiment.
const fs = require('fs');
const http = require('http');
const Module = require('module');
const open = process.env.NNI_GCONV_OPEN === '1';
const words = name => (process.env[name] || '').split(',').filter(Boolean);
const hosts = new Set(['127.0.0.1', 'localhost', '[::1]', ...words('NNI_GCONV_HOSTS')]);
// Open to the network it has many names; a number cannot be bound to another machine's address.
const number = /^(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-f:.]+\])$/;
const users = new Set(
  [process.getuid?.(), 0, ...[process.env.SUDO_UID, ...words('NNI_GCONV_USERS')].map(Number)]);

function count(request, header) {
  return request.rawHeaders.filter((text, i) => i % 2 === 0 && text.toLowerCase() === header).length;
}

function foreign(request) {
  const {host = '', origin, ...headers} = request.headers;
  const [, name] = host.toLowerCase().match(/^(\[[^\]]*\]|[^:[\]]*)(?::\d{1,5})?$/) || [];
  const known = name && (hosts.has(name) || (open && number.test(name)));
  if (!known || count(request, 'host') > 1) return 'Host is not this machine';
  const own = origin === undefined
    || (count(request, 'origin') === 1 && origin.toLowerCase() === `http://${host.toLowerCase()}`);
  if (!own) return 'Origin is another page';
  // A picture or a script of another page has no Origin, but browsers say where it is from. A link
  // to the web UI may be followed from anywhere.
  const site = headers['sec-fetch-site'];
  const followed = headers['sec-fetch-mode'] === 'navigate'
    && (headers['sec-fetch-dest'] || 'document') === 'document' && request.method === 'GET';
  const other = site !== undefined && !['same-origin', 'none'].includes(site);
  return other && !followed ? 'asked for by another page' : undefined;
}

// NNI hands /netron on to a server elsewhere, and ends when there is no network; its file routes
// follow `..`.
function path(request) {
  let steps;
  try {
    steps = decodeURIComponent(decodeURIComponent(request.url.split('?')[0])).split(/[/\\]/);
  } catch {
    return 'the address cannot be read';
  }
  if (steps[0] !== '' || steps.includes('..') || steps.some(step => step.includes('\0'))) {
    return 'the address leads elsewhere';
  }
  return steps.find(Boolean)?.toLowerCase() === 'netron' ? 'there is no such page' : undefined;
}

// Other users of this machine reach its loopback interface too.
const loopback = /^(::ffff:127\.|127\.|::1$)/;
function hex(address) {
  const four = address.match(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/);
  if (!four) return ['00000000000000000000000001000000'];
  const text = four.slice(1).reverse().map(part => Number(part).toString(16).padStart(2, '0')).join('');
  return [text.toUpperCase(), '0000000000000000FFFF0000' + text.toUpperCase()];
}
const port = value => value.toString(16).toUpperCase().padStart(4, '0');
function stranger(socket) {
  const {remoteAddress: from = '', remotePort, localAddress: to = '', localPort} = socket;
  if (open || !loopback.test(from) || process.platform !== 'linux') return undefined;
  const [here, there] = [hex(to), hex(from)];
  for (const name of ['tcp', 'tcp6']) {
    let rows;
    try {
      rows = fs.readFileSync(`/proc/self/net/${name}`, 'latin1').split('\n').slice(1);
    } catch {
      continue;
    }
    for (const row of rows) {
      const [, local, remote, , , , , uid, , inode] = row.trim().split(/\s+/);
      const same = there.some(text => local === `${text}:${port(remotePort)}`)
        && here.some(text => remote === `${text}:${port(localPort)}`);
      // Of one that has gone the system no longer knows whose it was.
      if (same) return inode === '0' || !users.has(Number(uid)) ? `belongs to user ${uid}` : undefined;
    }
  }
  return undefined;
}

function refused(request) {
  const reason = request.socket.nniGconvStranger;
  if (reason) return [403, `${reason}; NNI_GCONV_USERS of the experiment's environment lets others in`];
  const outside = foreign(request);
  if (outside) return [403, outside];
  const wrong = path(request);
  return wrong ? [404, wrong] : undefined;
}

const emit = http.Server.prototype.emit;
http.Server.prototype.emit = function (event, request, answer, ...rest) {
  if (event === 'connection') request.nniGconvStranger = stranger(request);
  const asks = ['request', 'upgrade', 'connect', 'checkContinue', 'checkExpectation'].includes(event);
  const no = asks ? refused(request) : undefined;
  if (no === undefined) {
    if (event === 'request') {
      answer.setHeader('X-Frame-Options', 'SAMEORIGIN');
      answer.setHeader('Cross-Origin-Resource-Policy', 'same-origin');
    }
    return emit.call(this, event, request, answer, ...rest);
  }
  const [status, reason] = no;
  const body = `refused: ${reason}\n`;
  const head = {'Content-Type': 'text/plain', 'Content-Length': Buffer.byteLength(body), Connection: 'close'};
  if (answer instanceof http.ServerResponse) {
    answer.writeHead(status, head);
    answer.end(body);
  } else {
    const lines = Object.entries(head).map(([name, value]) => `${name}: ${value}\r\n`).join('');
    request.socket.end(`HTTP/1.1 ${status} ${http.STATUS_CODES[status]}\r\n${lines}\r\n${body}`);
  }
  return true;
};

// The tuner's process turns what names code into code. What trials, other machines and posted
// parameters send is data.
const names = /__(symbol|instance_type|nni_type|nni_obj)__/;
function code(text) {
  for (let before = ''; before !== text;) {
    before = text; // JSON within JSON: escapes of escapes
    text = text.replace(/\\+u([0-9a-f]{4})/gi, (_, digits) => String.fromCharCode(parseInt(digits, 16)));
  }
  return names.test(text);
}
const load = Module._load;
Module._load = function (...args) {
  const loaded = load.apply(this, args);
  const get = loaded && loaded.getTunerServer;
  if (typeof get === 'function' && !get.guarded && args[0].endsWith('tuner_command_channel')) {
    get.guarded = true;
    const server = Object.getPrototypeOf(get());
    const send = server.sendCommand;
    server.sendCommand = function (type, content) {
      // What the user's own file says comes first and as an update.
      if (!['IN', 'SS'].includes(type) && typeof content === 'string' && code(content)) {
        console.error(`refused: a ${type} message to the tuner names code`);
        return undefined;
      }
      return send.call(this, type, content);
    };
  }
  return loaded;
};
