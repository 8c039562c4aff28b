// What training in JavaScript costs: XNET_DATA_DIR=... node benchmarks/javascript.js
//
// Fifty steps of MNIST (784-50-10, ReLU, batches of 100) with SGD and Adam, of both dtypes, and the
// hash of the weights: medians of five runs, of processor time, to which other work adds little. The
// program tests/train_page.js says how many steps of the page's training Node takes a second.
"use strict";

const fs = require("fs");
const path = require("path");
const zlib = require("zlib");
const xnet = require("../docs/reproducible/xnet.js");

function idx(name, header) {
  const folder = process.env.XNET_DATA_DIR;
  if (!folder) throw new Error("set XNET_DATA_DIR to the folder of MNIST's four files");
  const names = ["", "mnist"].flatMap((part) => ["", ".gz"].map((end) => path.join(folder, part, name + end)));
  const found = names.find((each) => fs.existsSync(each));
  if (!found) throw new Error(`XNET_DATA_DIR=${folder} holds no ${name}`);
  const bytes = fs.readFileSync(found);
  return (found.endsWith(".gz") ? zlib.gunzipSync(bytes) : bytes).subarray(header);
}

const STEPS = 50, BATCH = 100, RUNS = 5;
const x = Float32Array.from(idx("train-images-idx3-ubyte", 16), (ink) => ink / 255);
const t = xnet.oneHot([...idx("train-labels-idx1-ubyte", 8)], 10);
const order = new xnet.Generator(0).permutation(t.length / 10);
const layers = [
  ["Affine", { inputs: 784, outputs: 50 }],
  ["ReLU", {}],
  ["Affine", { inputs: 50, outputs: 10 }],
];

function run(dtype, optimizer, settings) {
  const network = new xnet.Network(dtype, layers);
  const rows = new dtype.Array(BATCH * 784), targets = new dtype.Array(BATCH * 10);
  const before = process.cpuUsage();
  for (let step = 0; step < STEPS; step++) {
    order.subarray(step * BATCH, (step + 1) * BATCH).forEach((place, i) => {
      rows.set(x.subarray(place * 784, (place + 1) * 784), i * 784);
      targets.set(t.subarray(place * 10, (place + 1) * 10), i * 10);
    });
    network.trainStep(rows, targets, BATCH, 784, optimizer, settings);
  }
  const { user, system } = process.cpuUsage(before);
  return [(user + system) / 1000, network.sha256()];
}

for (const name of ["float32", "float64"]) {
  for (const [optimizer, settings] of [["SGD", { lr: 0.1 }], ["Adam", { lr: 0.01 }]]) {
    const runs = Array.from({ length: RUNS }, () => run(xnet.DTYPES[name], optimizer, settings));
    const [milliseconds, hash] = runs.sort((a, b) => a[0] - b[0])[(RUNS - 1) / 2];
    console.log(`${name} ${optimizer}: ${milliseconds.toFixed(0)} ms for ${STEPS} steps, ${hash.slice(0, 16)}`);
  }
}
