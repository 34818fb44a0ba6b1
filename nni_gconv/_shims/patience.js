// NNI gives the process of the tuner ten seconds to import everything and to connect, NNI's own
// imports included; on a busy machine that is too little, and the experiment dies before it began.
'use strict';
const plain = global.setTimeout;
function setTimeoutPatiently(callback, delay, ...rest) {
  const tuner = delay === 10000 && /tuner_command_channel/.test(new Error().stack);
  return plain.call(this, callback, tuner ? 100000 : delay, ...rest);
}
Object.defineProperties(setTimeoutPatiently, Object.getOwnPropertyDescriptors(plain));
global.setTimeout = setTimeoutPatiently;
