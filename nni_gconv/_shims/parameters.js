// NNI hands parameters out in the order in which trials ask for them, and writes them down in the
// order in which it started them: of trials that start together, one gets what is shown for the
// other. A trial that has its id before it starts (as a resumed one does) is given its own.
// A resumed trial whose machine is gone keeps its id too, and starts on another one.
const Module = require('module');
const {randomBytes} = require('crypto');
const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789';
const id = () => Array.from(randomBytes(5), byte => letters[byte % letters.length]).join('');
const load = Module._load;
Module._load = function (...args) {
  const loaded = load.apply(this, args);
  const service = loaded && loaded.V3asV1;
  if (typeof service === 'function' && !service.givesOwnParameters) {
    service.givesOwnParameters = true;
    const submit = service.prototype.submitTrialJob;
    service.prototype.submitTrialJob = async function (form) {
      await this.startDeferred.promise;
      const there = form.id && this.environments.some(one => one.id === form.envId);
      const envId = there ? form.envId : this.schedule();
      return submit.call(this, envId ? {...form, id: form.id || id(), envId} : form);
    };
  }
  return loaded;
};
