// What NNI's own resume loses or does twice. It numbers new trials as if those that have ended had
// not been (two trials of one number, two sets of parameters of one id); it forgets a trial that
// was waiting to be resumed when the manager died again; and a grid is not told of the trials that
// had no result yet, and makes them a second time.
const fs = require('fs');
const path = require('path');
const Module = require('module');
const asked = JSON.parse(fs.readFileSync(path.join(__dirname, 'resume.json'), 'utf8'));
const again = new Set(asked.again);
const load = Module._load;
Module._load = function (...args) {
  const loaded = load.apply(this, args);
  const manager = loaded && loaded.NNIManager;
  if (typeof manager === 'function' && !manager.resumesOnce) {
    manager.resumesOnce = true;
    const recover = manager.prototype.addRecoveredTrialJob;
    manager.prototype.addRecoveredTrialJob = function (jobs) {
      const params = this.experimentProfile.params;
      if (asked.maxTrialNumber) params.maxTrialNumber = asked.maxTrialNumber;
      if (asked.trialConcurrency) params.trialConcurrency = asked.trialConcurrency;
      for (const job of jobs) {
        if (job.status === 'ADD_RESUMED' || again.has(job.trialJobId)) job.status = 'WAITING';
      }
      const count = recover.call(this, jobs);
      const chosen = jobs.flatMap(job => (job.hyperParameters || []).slice(0, 1));
      this.trialDataForResume = JSON.stringify(chosen.map(text => JSON.parse(text)));
      const numbers = jobs.map(job => job.sequenceId).filter(Number.isInteger);
      this.experimentProfile.nextSequenceId = Math.max(-1, ...numbers) + 1;
      return count;
    };
    const init = manager.prototype.sendInitTunerCommands;
    manager.prototype.sendInitTunerCommands = function () {
      // As text: JavaScript would write 1.0 as 1, which a grid takes for another value.
      if (asked.tried) this.trialDataForTuner = asked.tried;
      return init.call(this);
    };
  }
  return loaded;
};
