// NNI notes that an assessor stopped a trial only when the trial has ended, and so calls it one that
// the user cancelled. Noted first, it is EARLY_STOPPED.
'use strict';
const Module = require('module');
const load = Module._load;
Module._load = function (...args) {
  const loaded = load.apply(this, args);
  const service = loaded && loaded.V3asV1;
  if (typeof service === 'function' && !service.notesEarlyStops) {
    service.notesEarlyStops = true;
    const cancel = service.prototype.cancelTrialJob;
    service.prototype.cancelTrialJob = function (id, early) {
      if (this.trialJobs[id]) this.trialJobs[id].isEarlyStopped = Boolean(early);
      return cancel.call(this, id, early);
    };
  }
  return loaded;
};
