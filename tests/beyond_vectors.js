// What the test vectors do not reach: node tests/beyond_vectors.js docs/reproducible
//
// A sum and a product over longer axes, how those are cut, a seed of six words that differ, hundreds of
// numbers for each activation, and a short training with each optimizer.
"use strict";

const path = require("path");
const xnet = require(path.resolve(process.argv[2], "xnet.js"));

// C's hexadecimal text of a number that is neither 0 nor subnormal.
function text(v) {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, v);
  const bits = view.getBigUint64(0), power = Number((bits >> 52n) & 2047n) - 1023;
  return `${v < 0 ? "-" : ""}0x1.${(bits & ((1n << 52n) - 1n)).toString(16).padStart(13, "0")}p${power}`;
}

const found = {};
for (const dtype of Object.values(xnet.DTYPES)) {
  const generator = new xnet.Generator([1, 2, 3, 4, 5, 6]);
  const normal = (count) => dtype.Array.from({ length: count }, () => generator.normal());
  const sum = xnet.sum(dtype, normal(1 << 18), 0, 1, 1 << 18);
  const [a, b] = [normal(2 * 7000), normal(7000 * 3)];
  const product = xnet.product(dtype, 2, 7000, 3, a, 7000, 1, b, 3, 1, new dtype.Array(6));
  const lengths = Array.from({ length: 50 }, (_, k) => 2 ** (k >> 1) + (k & 1));
  found[dtype.name] = {
    sum: text(sum),
    product: Array.from(product, text),
    sumSlices: lengths.map((length) => xnet.sumSlices(dtype, length)),
    productSlices: lengths.map((length) => xnet.productSlices(dtype, length)),
    activations: {},
    trainings: {},
  };
  const hash = (array) => xnet.sha256([xnet.littleEndian(array)]);
  const x = normal(400).map((v) => 3 * v), dout = normal(400);
  for (const name of Object.keys(xnet.POINTWISE)) {
    const layer = xnet.layer(dtype, name);
    found[dtype.name].activations[name] = [hash(layer.forward(x, 20, 20)), hash(layer.backward(dout))];
  }
  const rows = normal(12 * 5), t = xnet.oneHot(Array.from({ length: 12 }, (_, i) => i % 3), 3);
  const layers = [["Affine", { inputs: 5, outputs: 6 }], ["Tanh", {}], ["Affine", { inputs: 6, outputs: 3 }]];
  for (const optimizer of Object.keys(xnet.OPTIMIZERS)) {
    const network = new xnet.Network(dtype, layers);
    xnet.train(network, rows, t, 5, { batch: 5, steps: 7, optimizer, settings: {} });
    found[dtype.name].trainings[optimizer] = [network.sha256(), hash(network.predict(rows, 12, 5))];
  }
}
console.log(JSON.stringify(found));
