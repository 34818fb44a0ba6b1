// NNI's web server has no login, serves files and runs what it is sent, yet listens on every
// interface; there is no option for it. A listen() that names no host gets the loopback one.
const net = require('net');
const listen = net.Server.prototype.listen;
const host = process.env.NNI_BIND_HOST || '127.0.0.1';
const open = h => h === undefined || h === null || h === '' || h === '0.0.0.0' || h === '::';
net.Server.prototype.listen = function (...args) {
  const first = args[0];
  if (first === undefined || first === null || typeof first === 'function') {
    if (typeof first !== 'function') args.shift();
    args.unshift(0, host);
  } else if (typeof first === 'number' || (typeof first === 'string' && /^\d+$/.test(first))) {
    if (typeof args[1] !== 'string') args.splice(1, 0, host);
    else if (open(args[1])) args[1] = host;
  } else if (typeof first === 'object' && first.port !== undefined && first.path === undefined) {
    if (open(first.host)) args[0] = {...first, host};
  }
  return listen.apply(this, args);
};
