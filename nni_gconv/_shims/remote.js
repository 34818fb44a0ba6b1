// Machines elsewhere: what NNI's remote training service leaves open. Each part stands alone.
const Module = require('module');
const fs = require('fs');
const {Duplex} = require('stream');
const {spawn} = require('child_process');
const ofNni = name => Module.createRequire(process.argv[1])(name);
const load = Module._load;
const patches = {
  ssh2: ssh, remote: lostMachines, rpc_util: deadCalls, routerTrainingService: hybrid, factory: hybrid,
};
Module._load = function (...args) {
  const loaded = load.apply(this, args);
  const patch = patches[String(args[0]).split('/').pop()];
  if (patch && loaded && typeof loaded === 'object') patch(loaded);
  return loaded;
};
const once = (object, name) => {
  if (object[name]) return false;
  Object.defineProperty(object, name, {value: true});
  return true;
};

// NNI takes any host key; upgrades itself with pip on each machine at every start; and dies of a
// connection that breaks. Here: the keys that were verified before, no pip, and a listener. A key
// with a passphrase that is not in the file is left to the agent. A machine behind another one is
// reached by a command, as ssh does it for ProxyJump; NNI knows of none.
function ssh(ssh2) {
  if (!ssh2.Client || !once(ssh2, 'nniGconv')) return;
  const file = process.env.NNI_GCONV_WAYS;
  const known = file ? JSON.parse(fs.readFileSync(file, 'utf8')) : {};
  const {connect, exec} = ssh2.Client.prototype;
  ssh2.Client.prototype.connect = function (config) {
    config = {keepaliveInterval: 5000, keepaliveCountMax: 3, ...config};
    const {keys, command, host} = known[`${config.host}:${config.port || 22}`] || {};
    if (command) config.sock = throughCommand(command);
    else if (host) config.host = host;  // a machine may stand there by its name in ~/.ssh/config
    if (keys) {
      const kinds = Object.keys(keys).flatMap(
        kind => (kind === 'ssh-rsa' ? ['rsa-sha2-512', 'rsa-sha2-256'] : [kind])
      ).filter(kind => /^(ssh-ed25519|ecdsa-sha2-nistp\d+|rsa-sha2-\d+)$/.test(kind));
      if (kinds.length) config.algorithms = {...config.algorithms, serverHostKey: kinds};
      config.hostHash = 'sha256';
      config.hostVerifier = digest => Object.values(keys).includes(digest);
    }
    const locked = config.privateKey && !config.passphrase
      && ssh2.utils.parseKey(config.privateKey) instanceof Error;
    if (locked && process.env.SSH_AUTH_SOCK) delete config.privateKey;
    if (!config.password && process.env.SSH_AUTH_SOCK) config.agent = process.env.SSH_AUTH_SOCK;
    this.on('error', () => {});
    return connect.call(this, config);
  };
  ssh2.Client.prototype.exec = function (command, ...rest) {
    command = command.replace(/-m pip install nni --upgrade\s*$/, '-c "import nni"');
    return exec.call(this, command, ...rest);
  };
}

function throughCommand(command) {
  const child = spawn('/bin/sh', ['-c', `exec ${command}`], {stdio: ['pipe', 'pipe', 'inherit']});
  const both = Duplex.from({writable: child.stdin, readable: child.stdout});
  both.on('close', () => child.kill());
  child.on('error', error => both.destroy(error));
  return both;
}

// A machine that is lost takes the trials that run there with it, not those that have ended; it is
// looked for during ten minutes, and gets no trial before it is found.
function lostMachines(exports) {
  const service = exports.RemoteTrainingServiceV3;
  if (typeof service !== 'function' || !once(service, 'nniGconv')) return;
  const {start, stop, stopWorker} = service.prototype;
  service.prototype.start = function () {
    this.ended = new Set();
    this.emitter.on('trial_stop', trial => this.ended.add(trial));
    return start.call(this);
  };
  service.prototype.stop = function () {
    this.stopping = true;
    return stop.call(this);
  };
  service.prototype.stopWorker = function (worker, ...rest) {
    for (const [trial, its] of this.workersByTrial) {
      if (its === worker && this.ended.has(trial)) this.workersByTrial.delete(trial);
    }
    return stopWorker.call(this, worker, ...rest);
  };
  service.prototype.restartWorker = async function (lost) {
    const {host} = lost.config;
    this.stopWorker(lost, true);
    lost.ssh.disconnect();
    for (let tries = 0; tries < 60 && !this.stopping; tries += 1) {
      let worker;
      try {
        worker = await this.launchWorker(lost.config);
        const {getTarballPath} = ofNni('common/tarball');
        for (const name of this.uploadedDirs) await worker.upload(name, getTarballPath(name));
        this.emitEnvUpdate();
        this.log.info(`Worker ${host} has been recovered`);
        return;
      } catch (error) {
        this.log.error(`Worker ${host} is not back yet:`, error);
        worker = worker || this.workers.find(one => one.config === lost.config);
        if (worker) this.stopWorker(worker, true);
      }
      await new Promise(resolve => setTimeout(resolve, 10000));
    }
  };
}

// A question to a machine that is lost is never answered: NNI would wait for ever.
function deadCalls(exports) {
  const helper = exports.RpcHelper;
  if (typeof helper !== 'function' || !once(helper, 'nniGconv')) return;
  const wait = helper.prototype.waitResponse;
  helper.prototype.waitResponse = function (id) {
    if (!this.watched) {
      this.watched = true;
      const fail = () => {
        for (const answer of this.responses.values()) {
          if (!answer.settled) answer.reject(new Error('the machine is lost'));
        }
      };
      this.channel.onError(fail);
      this.channel.onClose(fail);
    }
    if (this.channel.closing) return Promise.reject(new Error('the machine is lost'));
    return wait.call(this, id);
  };
}

// NNI runs a list of training services by an older way, with other folders and a second port. Here
// this machine and those of the list are environments of one service.
function hybrid(exports) {
  const router = exports.RouterTrainingService;
  if (typeof router === 'function' && once(router, 'nniGconv')) {
    const construct = router.construct;
    router.construct = async function (config) {
      const list = config.trainingService;
      const ours = Array.isArray(list)
        && list.every(one => ['local', 'remote'].includes(one.platform) && !one.reuseMode);
      if (!ours) return construct.call(this, config);
      const {V3asV1} = ofNni('training_service/v3/compat');
      return new V3asV1({...list[0], platform: 'hybrid', services: list});
    };
  }
  const factory = exports.trainingServiceFactoryV3;
  if (typeof factory === 'function' && once(factory, 'nniGconv')) {
    exports.trainingServiceFactoryV3 = config => (
      config.services ? new Hybrid(config.services.map(factory)) : factory(config));
    once(exports.trainingServiceFactoryV3, 'nniGconv');
  }
}

class Hybrid {
  constructor(services) {
    this.services = services;
    this.environments = services.map(() => []);
    this.byEnv = new Map();
    this.byTrial = new Map();
    for (const name of ['onTrialStart', 'onTrialEnd', 'onRequestParameter', 'onMetric']) {
      this[name] = callback => services.forEach(service => service[name](callback));
    }
  }
  update(index, environments) {
    this.environments[index] = environments;
    environments.forEach(env => this.byEnv.set(env.id, this.services[index]));
    return this.environments.flat();
  }
  onEnvironmentUpdate(callback) {
    this.services.forEach((service, index) => service.onEnvironmentUpdate(
      environments => callback(this.update(index, environments))));
  }
  async init() { await Promise.all(this.services.map(service => service.init())); }
  async start() {
    const started = await Promise.all(this.services.map(service => service.start()));
    started.forEach((environments, index) => this.update(index, environments));
    return this.environments.flat();
  }
  async stop() { await Promise.allSettled(this.services.map(service => service.stop())); }
  async uploadDirectory(name, path) {
    await Promise.all(this.services.map(service => service.uploadDirectory(name, path)));
  }
  async createTrial(envId, ...rest) {
    const service = this.byEnv.get(envId);
    if (!service) return null;
    const trial = await service.createTrial(envId, ...rest);
    if (trial) this.byTrial.set(trial, service);
    return trial;
  }
  async stopTrial(trial) { await this.byTrial.get(trial)?.stopTrial(trial); }
  async sendParameter(trial, parameter) {
    // A trial may ask before the answer to its creation is here.
    for (let i = 0; i < 100 && !this.byTrial.has(trial); i += 1) {
      await new Promise(resolve => setTimeout(resolve, 100));
    }
    await this.byTrial.get(trial)?.sendParameter(trial, parameter);
  }
  async downloadTrialDirectory(trial) {
    const service = this.byTrial.get(trial);
    if (!service) throw new Error(`no machine of trial ${trial}`);
    return await service.downloadTrialDirectory(trial);
  }
}
