// What the page trains, in Node: node tests/train_page.js docs/reproducible [run]
//
// `run` says which of those in page_data.js; the first, if it is not given. Prints one JSON object: the
// hash of the initial weights and those after each step, and how many steps a second were taken.
"use strict";

const path = require("path");
const [folder, run = 0] = process.argv.slice(2);
const xnet = require(path.resolve(folder, "xnet.js"));
const { training, digits, runs } = require(path.resolve(folder, "page_data.js"));

const { optimizer, dtype: name, activation, hidden, epochs, seed } = runs[run];
const dtype = xnet.DTYPES[name], rows = digits.slice(0, training), he = { weight_init_std: "he" };
const x = dtype.Array.from(rows.flatMap((row) => [...row.slice(1)]), (letter) => (letter.charCodeAt(0) - 97) / 16);
const t = xnet.oneHot(rows.map((row) => Number(row[0])), 10);
const layers = [
  ["Affine", { inputs: 64, outputs: hidden, ...he }],
  [activation, {}],
  ["Affine", { inputs: hidden, outputs: 10, ...he }],
];
const network = new xnet.Network(dtype, layers, undefined, seed), hashes = [network.sha256()];
const steps = epochs * Math.ceil(training / 100), settings = optimizer === "SGD" ? { lr: 0.1 } : {};
let seconds = 0, before = performance.now();
xnet.train(network, x, t, 64, { steps, seed, optimizer, settings }, () => {
  seconds += (performance.now() - before) / 1000;
  hashes.push(network.sha256());
  before = performance.now();
});
console.log(JSON.stringify({ hashes, perSecond: steps / seconds }));
