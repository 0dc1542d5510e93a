// Run Perfetto's trace processor, a WebAssembly module made for browsers, on what comes from standard input.
//   node perfetto_engine.js FOLDER_OF_THE_MODULE < requests > replies
// Both are messages of its protocol (TraceProcessorRpcStream).
const fs = require('fs');
const path = require('path');

const folder = process.argv[2];
const read = (url) => fs.readFileSync(path.join(folder, path.basename(url)));

// What it expects of a browser's worker.
globalThis.self = globalThis;
globalThis.WorkerGlobalScope = function () {};
globalThis.location = { href: `file://${folder}/` };
globalThis.fetch = async (url) => new Response(read(url), { headers: { 'Content-Type': 'application/wasm' } });
globalThis.XMLHttpRequest = class {
  open(method, url) { this.url = url; }
  send() { const data = read(this.url); this.response = data.buffer.slice(data.byteOffset, data.byteOffset + data.length); }
};
console.log = console.warn = console.error;

new Function('process', read('engine_bundle.js').toString())(undefined);

const port = { postMessage: (reply) => process.stdout.write(Buffer.from(reply)) };
const requests = new Uint8Array(fs.readFileSync(0));
self.onmessage({ data: port });
const start = () => {
  try {
    port.onmessage({ data: requests });
  } catch (error) {
    if (start.tries++ < 100) setTimeout(start, 100); // not compiled yet
    else throw error;
  }
};
start.tries = 0;
setTimeout(start, 500);
