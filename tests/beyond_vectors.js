// What the test vectors do not reach: node tests/beyond_vectors.js docs/reproducible
//
// A sum and a product over longer axes, how those are cut, and a seed of six words that differ.
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
  };
}
console.log(JSON.stringify(found));
