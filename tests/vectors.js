// Run the test vectors: node tests/vectors.js docs/reproducible/xnet.js docs/reproducible/vectors.json
//
// Prints one JSON object: how many vectors were equal, which differ, and where first, and which are
// of operations that are not here. The constants that are listed there are compared too. In a browser
// that has loaded xnet.js, `verdicts` gives that object of what the file holds.
"use strict";

if (typeof require !== "undefined") globalThis.xnet = require(require("path").resolve(process.argv[2]));

const isReal = (text) => /^-?0x[^p]*p|^(nan|-?inf)$/.test(text);
// Whole numbers are written in decimal, or as 0x without a p.
const parsed = (text) => (isReal(text) ? xnet.hex(text) : BigInt(text));
const setting = (value) =>
  Array.isArray(value) ? value.map(setting)
  : typeof value === "string" && isReal(value) ? xnet.hex(value) : value;
const settingsOf = (given) => Object.fromEntries(Object.entries(given).map(([k, v]) => [k, setting(v)]));

function compute({ operation, dtype: name, settings: given, inputs }) {
  const dtype = xnet.DTYPES[name], settings = settingsOf(given);
  const numbers = (key) => dtype.Array.from(inputs[key].values, (text) => Number(parsed(text)));
  const seeded = () => new xnet.Generator(given.seed.map(BigInt));
  const drawn = (draw) => {
    const generator = seeded();
    return { out: Array.from({ length: given.count }, () => draw(generator)) };
  };
  const each = (key, compute) => ({ [key in inputs ? "out" : key]: Array.from(numbers(key), (v) => dtype.f(compute(v))) });
  const slices = (chosen) => {
    const found = inputs.terms.values.map((terms) => chosen(xnet.DTYPES[given.dtype], Number(terms)));
    return { slices: found.map((one) => one[0]), bits: found.map((one) => one[1]) };
  };

  const plain = {
    product_slices: () => slices(xnet.productSlices),
    sum_slices: () => slices(xnet.sumSlices),
    matmul: () => {
      const [[n, k], [, m]] = [inputs.a.shape, inputs.b.shape], out = new dtype.Array(n * m);
      return { out: xnet.product(dtype, n, k, m, numbers("a"), k, 1, numbers("b"), m, 1, out) };
    },
    sum: () => {
      const a = numbers("a"), { axis } = given, [rows, columns = 1] = inputs.a.shape;
      if (axis === null) return { out: [xnet.sum(dtype, a, 0, 1, a.length)] };
      const along = axis === 0
        ? Array.from({ length: columns }, (_, j) => xnet.sum(dtype, a, j, columns, rows))
        : Array.from({ length: rows }, (_, i) => xnet.sum(dtype, a, i * columns, 1, columns));
      return { out: along };
    },
    exp: () => each("x", xnet.exp),
    expm1: () => each("x", xnet.expm1),
    log: () => each("x", xnet.log),
    log1p: () => each("x", xnet.log1p),
    quantile: () => each("q", xnet.quantile),
    raw: () => drawn((generator) => generator.raw()),
    uniform: () => drawn((generator) => generator.uniform(xnet.DTYPES[given.dtype])),
    normal: () => drawn((generator) => generator.normal()),
    integers: () => drawn((generator) => generator.integer(given.bound)),
    permutation: () => ({ out: seeded().permutation(given.count) }),
    train: () => train(dtype, settings, inputs, numbers),
  };
  if (operation in plain) return plain[operation]();
  if (operation in xnet.OPTIMIZERS) return steps(dtype, operation, settings, inputs, numbers);
  const [kind, direction] = operation.split(".");
  if (kind in xnet.LOSSES) return loss(dtype, kind, direction, settings, inputs, numbers);
  if (kind in { ...xnet.LAYERS, ...xnet.POINTWISE, ...xnet.ROWS })
    return layer(dtype, kind, direction, settings, inputs, numbers);
  return null;
}

function layer(dtype, kind, direction, { training = false, ...settings }, inputs, numbers) {
  const one = xnet.layer(dtype, kind, settings), [n, width] = inputs.x.shape;
  for (const arrays of [one.params, one.state])
    for (const name of Object.keys(arrays)) if (name in inputs) arrays[name].set(numbers(name));
  one.training = training;
  if ("u" in inputs) {
    const u = numbers("u").values();
    one.uniform = () => u.next().value;
  }
  const y = one.forward(numbers("x"), n, width);
  if (direction === "forward") return { y, ...one.state };
  if ("y" in inputs) y.set(numbers("y"));
  const found = { dx: one.backward(numbers("dout")) };
  for (const [name, gradient] of Object.entries(one.grads)) found[`d${name}`] = gradient;
  return found;
}

function loss(dtype, kind, direction, settings, inputs, numbers) {
  const one = xnet.LOSSES[kind], s = { ...one.settings, ...settings }, [n, width] = inputs.x.shape;
  const rows = (array) =>
    Array.from({ length: n }, (_, i) => Float64Array.from(array.subarray(i * width, (i + 1) * width)));
  const x = rows(numbers("x"));
  const targets = rows(numbers("t")).map((t) => one.targets?.(dtype, s, t) ?? t);
  const all = (compute) => x.flatMap((row, i) => [...compute(row, targets[i])]);
  if (direction === "backward") {
    const share = dtype.f(1 / n);
    return { dx: all((row, t) => one.backward(dtype, s, row, t)).map((d) => dtype.f(d * share)) };
  }
  const y = Float64Array.from(x, (row, i) => one.forward(dtype, s, row, targets[i]));
  return {
    targets: all((row, t) => t),
    prediction: all((row) => one.predict(dtype, s, row)),
    y,
    loss: [dtype.f(xnet.sum(dtype, y, 0, 1, n) / n)],
  };
}

function steps(dtype, kind, settings, inputs, numbers) {
  const W = numbers("W"), g = numbers("g"), names = Object.keys(inputs).filter((name) => /^memory/.test(name));
  const memory = names.map(numbers), found = { W: [] };
  for (const name of names) found[name] = [];
  inputs.n.values.forEach((n, k) => {
    xnet.update(dtype, kind, settings, Number(n), W, g.subarray(k * W.length, (k + 1) * W.length), memory);
    found.W.push(...W);
    names.forEach((name, slot) => found[name].push(...memory[slot]));
  });
  return found;
}

function train(dtype, settings, inputs, numbers) {
  const layers = settings.layers.map(([name, given]) => [name, settingsOf(given)]);
  const network = new xnet.Network(dtype, layers, [settings.loss[0], settingsOf(settings.loss[1])], settings.seed);
  const found = { loss: [] }, width = inputs.x.shape[1];
  const keep = () => {
    for (const [name, array] of network.named()) (found[name] ??= []).push(...array);
  };
  keep();
  const labels = inputs.t.values.map(Number), last = network.layers.at(-1);
  const options = {
    batch: settings.batch_size,
    steps: settings.steps,
    seed: settings.batch_seed,
    optimizer: settings.optimizer[0],
    settings: settingsOf(settings.optimizer[1]),
  };
  xnet.train(network, numbers("x"), xnet.oneHot(labels, last.outputs), width, options, (step, value, batch) => {
    found[`batch${step}`] = batch;
    found.loss.push(value);
    keep();
  });
  return { ...found, sha256: [network.sha256()] };
}

const shown = (v) => (Object.is(v, -0) ? "-0" : String(v));

// Where what was found is not what was expected: null for nowhere.
function difference(found, outputs) {
  for (const [output, { values }] of Object.entries(outputs)) {
    if (!(output in found)) return { output, found: "nothing" };
    for (const [place, text] of values.entries()) {
      const is = /^[0-9a-f]{64}$/.test(text) ? text : parsed(text);
      const got = found[output][place];
      const same = typeof is === "bigint" ? BigInt(got) === is : Object.is(got, is);
      if (!same) return { output, place, found: shown(got), expected: shown(is) };
    }
  }
  return null;
}

function verdicts({ version, constants, vectors }) {
  if (version !== 1) throw new Error(`the vectors are of version ${version}, expected 1`);
  const result = { equal: 0, differ: [], missing: [] };
  for (const [group, numbers] of Object.entries(constants)) {
    for (const [name, text] of Object.entries(numbers)) {
      const found = xnet.constants[group]?.[name], expected = xnet.hex(text);
      if (found === undefined) result.missing.push(`constants, ${group}: ${name}`);
      else if (!Object.is(found, expected))
        result.differ.push({ name: `${group}, constant ${name}`, found: shown(found), expected: shown(expected) });
    }
  }
  for (const vector of vectors) {
    let found;
    try {
      found = compute(vector);
    } catch (error) {
      result.differ.push({ name: vector.name, error: String(error) });
      continue;
    }
    const where = found === null ? null : difference(found, vector.outputs);
    if (found === null) result.missing.push(vector.name);
    else if (where !== null) result.differ.push({ name: vector.name, ...where });
    else result.equal++;
  }
  return result;
}

if (typeof require !== "undefined") {
  const file = require("fs").readFileSync(process.argv[3]);
  console.log(JSON.stringify(verdicts(JSON.parse(file))));
}
