// NNI gives the tuner's process ten seconds to connect. On a busy machine Python alone takes that
// long to import it, and the experiment ends before it began.
const Module = require('module');
const seconds = Number(process.env.NNI_GCONV_TUNER_SECONDS || 90);
const load = Module._load;
Module._load = function (...args) {
  const loaded = load.apply(this, args);
  const get = loaded && loaded.getTunerServer;
  if (typeof get === 'function' && !get.patient && args[0].endsWith('tuner_command_channel')) {
    get.patient = true;
    Object.getPrototypeOf(get()).init = function () {
      const timer = setTimeout(() => {
        const words = `Tuner did not connect in ${seconds} seconds. See dispatcher.log.`;
        if (!this.connect.settled) this.connect.reject(new Error(words));
      }, 1000 * seconds);
      return this.connect.promise.finally(() => clearTimeout(timer));
    };
  }
  return loaded;
};
