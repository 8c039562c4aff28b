// xnet's reproducible mode in plain JavaScript: a second implementation, which shares no code with the
// library. The pages beside it specify what is computed, and vectors.json holds it to that.
//
// JavaScript's numbers are IEEE 754 doubles, + - * / and Math.sqrt round once, and no engine may
// fuse a product with a sum: that is all it takes. Math.fround rounds to float32; Math.exp, log, pow
// and their kin are not used, for they differ between engines. Numbers written as text ("0x1.8p-1")
// are the specification's own: `hex` reads them.
//
// One function holds everything, so that its text can be handed to a Worker, from a page that was
// opened as a file too. In Node: const xnet = require("./xnet.js").
"use strict";

function defineXnet() {
  // -- numbers

  // 2^-1022 to 2^1023, by doubling and halving 1.
  const POWERS = new Float64Array(2046);
  for (let k = 0, up = 1, down = 1; k <= 1023; k++, up *= 2, down /= 2) {
    POWERS[1022 + k] = up;
    if (k <= 1022) POWERS[1022 - k] = down;
  }
  const powerOf2 = (k) => POWERS[1022 + k];

  // a 2^n for an integer n, rounded once: as two factors, of which only the second can round.
  function scale(a, n) {
    const half = n >> 1;
    return a * POWERS[1022 + half] * POWERS[1022 + (n - half)];
  }

  // A number from C's hexadecimal text, exactly.
  function hex(text) {
    if (text === "nan") return NaN;
    if (text === "inf" || text === "-inf") return text === "inf" ? Infinity : -Infinity;
    const [, sign, whole, part, power] = /^(-?)0x([0-9a-f]+)\.?([0-9a-f]*)p([+-]?\d+)$/.exec(text);
    const value = scale(parseInt(whole + part, 16), Number(power) - 4 * part.length);
    return sign ? -value : value;
  }

  const hexes = (text) => text.trim().split(/\s+/).map(hex);

  // How many binary digits an integer has; 0 has none.
  function bitLength(n) {
    let bits = 0;
    for (; n >= 1; n = Math.floor(n / 2)) bits++;
    return bits;
  }

  // A dtype: how a number is rounded to it, its arrays, and the bits that slices have to keep.
  const DTYPES = {
    float32: { name: "float32", f: Math.fround, Array: Float32Array, digits: 24, kept: 32 },
    float64: { name: "float64", f: (v) => v, Array: Float64Array, digits: 53, kept: 60 },
  };

  // base^n by multiplications alone.
  function power(base, n) {
    let result = 1;
    for (; n; n >>= 1, base *= base) if (n & 1) result *= base;
    return result;
  }

  // -- slices: the smallest power of two that is at least p, and what goes with a product or a sum

  function nextPower(p) {
    const q = p * powerOf2(53);
    const found = Math.abs((q + p) - q);
    return found === 0 ? p : found;
  }

  // The root of what brings a float64 row with such a largest number back into range.
  function halfScale(dtype, largest) {
    if (dtype.name !== "float64") return 1;
    return largest > powerOf2(400) ? powerOf2(300) : largest < powerOf2(-400) ? powerOf2(-300) : 1;
  }

  // How many slices, and of how many bits: [slices, bits].
  const productSlices = kept((dtype, contracted) => {
    for (let slices = 2; ; slices++) {
      const most = Math.ceil((contracted * (slices + 2)) / 4);
      const bits = Math.floor((53 - bitLength(most - 1)) / 2);
      if (slices * bits >= dtype.kept) return [slices, bits];
    }
  });

  const sumSlices = kept((dtype, terms) => {
    const more = bitLength(terms - 1);
    const bits = Math.min(51, 53 - more);
    return [Math.ceil((dtype.digits + more) / bits), bits];
  });

  // A function of a dtype and a length, which is asked for few of them again and again.
  function kept(compute) {
    const float32 = [], float64 = [];
    return (dtype, length) => {
      const known = dtype === DTYPES.float32 ? float32 : float64;
      return (known[length] ??= compute(dtype, length));
    };
  }

  // (v + shift) - shift rounds v to slice s, counted from 1, below the power of two `largest`.
  const shiftOf = (largest, bits, s) => largest * (1.5 * powerOf2(52 - bits * s));

  // -- the product

  // What products work in is kept from one to the next, and grows.
  const rooms = new Map();
  function room(name, length, Kind = Float64Array) {
    let found = rooms.get(name);
    if (found === undefined || found.length < length) rooms.set(name, (found = new Kind(length)));
    return found;
  }

  // out = a b, of (n, k) and (k, m). Element (i, j) of a lies at i * aRow + j * aColumn, so that a
  // transpose is a matter of these; likewise b. out has rows of m.
  function product(dtype, n, k, m, a, aRow, aColumn, b, bRow, bColumn, out) {
    if (n * k * m === 0) return out.fill(0, 0, n * m);
    const [slices, bits] = productSlices(dtype, k);
    // All slices of a row of b side by side, the upper ones first, each filled up to fours with 0. Of
    // a, slice s meets those that make an order s + t below `slices`; the sums of one order are
    // exact, and so is their sum.
    const padded = (m + 3) & ~3, width = slices * padded;
    const wide = room("wide", k * width);
    const halves = room("halves", m);
    if (!cutColumns(dtype, k, m, b, bRow, bColumn, slices, bits, padded, wide, halves))
      return productWithInfinities(dtype, n, k, m, a, aRow, aColumn, b, bRow, bColumn, out);
    const values = room("values", k), places = room("places", k, Int32Array);
    const first = room("first", k), second = room("second", k), cutPlaces = room("cutPlaces", k, Int32Array);
    const sums = room("sums", width);
    for (let i = 0; i < n; i++) {
      // The numbers of the row that are not 0: the others change no sum.
      let count = 0, largest = 0;
      for (let c = 0, p = i * aRow; c < k; c++, p += aColumn) {
        const v = a[p];
        if (v === 0) continue;
        const size = Math.abs(v);
        if (!(size < Infinity))
          return productWithInfinities(dtype, n, k, m, a, aRow, aColumn, b, bRow, bColumn, out);
        if (size > largest) largest = size;
        values[count] = v;
        places[count++] = c * width;
      }
      if (count === 0) {
        out.fill(0, i * m, (i + 1) * m);
        continue;
      }
      sums.fill(0, 0, width);
      const half = halfScale(dtype, largest);
      if (half !== 1) {
        for (let p = 0; p < count; p++) values[p] = values[p] / half / half;
        largest = largest / half / half;
      }
      // Two slices at a time, so that a number of `wide` is fetched once for both.
      const top = nextPower(largest);
      for (let s = 1; s <= slices && count > 0; s += 2) {
        const shift = shiftOf(top, bits, s), both = s < slices;
        const secondShift = both ? shiftOf(top, bits, s + 1) : 0;
        let cut = 0, left = 0, seconds = 0;
        for (let p = 0; p < count; p++) {
          const v = values[p], place = places[p];
          const one = (v + shift) - shift, below = v - one;
          const two = both ? (below + secondShift) - secondShift : 0, rest = below - two;
          if (two !== 0) seconds++;
          if (one !== 0 || two !== 0) {
            first[cut] = one;
            second[cut] = two;
            cutPlaces[cut++] = place;
          }
          if (rest !== 0) {
            values[left] = rest;
            places[left++] = place;
          }
        }
        count = left;
        const end = (slices + 1 - s) * padded, common = seconds > 0 ? end - padded : 0, at = (s - 1) * padded;
        addTwice(first, second, cutPlaces, cut, wide, common, sums, at, at + padded);
        addRows(first, cutPlaces, cut, wide, common, end, sums, at);
      }
      // The orders, the smallest first: here alone is something rounded.
      for (let j = 0, p = i * m; j < m; j++, p++) {
        let total = 0;
        for (let order = slices - 1; order >= 0; order--) total = sums[order * padded + j] + total;
        const both = half * halves[j];
        out[p] = total * both * both;
      }
    }
    return out;
  }

  // The slices of every column of b (k, m), relative to its largest number; false if that is not finite.
  function cutColumns(dtype, k, m, b, bRow, bColumn, slices, bits, padded, wide, halves) {
    const largest = room("largest", m).fill(0, 0, m), shifts = room("shifts", slices * m);
    for (let c = 0; c < k; c++) {
      for (let j = 0, p = c * bRow; j < m; j++, p += bColumn) {
        const size = Math.abs(b[p]);
        if (!(size < Infinity)) return false;
        if (size > largest[j]) largest[j] = size;
      }
    }
    let scaled = false;
    for (let j = 0; j < m; j++) {
      const half = (halves[j] = halfScale(dtype, largest[j]));
      if (half !== 1) scaled = true;
      const top = nextPower(largest[j] / half / half);
      for (let s = 1; s <= slices; s++) shifts[(s - 1) * m + j] = shiftOf(top, bits, s);
    }
    const width = slices * padded, rests = room("rests", m);
    if (padded > m) wide.fill(0, 0, k * width);
    for (let c = 0; c < k; c++) {
      for (let j = 0, p = c * bRow; j < m; j++, p += bColumn) rests[j] = b[p];
      if (scaled) for (let j = 0; j < m; j++) rests[j] = rests[j] / halves[j] / halves[j];
      for (let s = 0; s < slices; s++) {
        for (let j = 0, to = c * width + s * padded, q = s * m; j < m; j++, to++, q++) {
          const rest = rests[j], shift = shifts[q], part = (rest + shift) - shift;
          wide[to] = part;
          rests[j] = rest - part;
        }
      }
    }
    return true;
  }

  // sums[at + j] += values[p] * wide[places[p] + j] for all p, and all j from `start` to below `end`,
  // by fours, which stay in registers.
  function addRows(values, places, count, wide, start, end, sums, at) {
    for (let j = start; j < end; j += 4) {
      const to = at + j;
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      for (let p = 0; p < count; p++) {
        const v = values[p], q = places[p] + j;
        s0 += v * wide[q];
        s1 += v * wide[q + 1];
        s2 += v * wide[q + 2];
        s3 += v * wide[q + 3];
      }
      sums[to] += s0, sums[to + 1] += s1, sums[to + 2] += s2, sums[to + 3] += s3;
    }
  }

  // The same for two at once: also sums[under + j] += seconds[p] * wide[places[p] + j]; from 0 on.
  function addTwice(values, seconds, places, count, wide, end, sums, at, under) {
    for (let j = 0; j < end; j += 4) {
      const to = at + j, too = under + j;
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
      for (let p = 0; p < count; p++) {
        const v = values[p], u = seconds[p], q = places[p] + j;
        const w0 = wide[q], w1 = wide[q + 1], w2 = wide[q + 2], w3 = wide[q + 3];
        s0 += v * w0;
        t0 += u * w0;
        s1 += v * w1;
        t1 += u * w1;
        s2 += v * w2;
        t2 += u * w2;
        s3 += v * w3;
        t3 += u * w3;
      }
      sums[to] += s0, sums[to + 1] += s1, sums[to + 2] += s2, sums[to + 3] += s3;
      sums[too] += t0, sums[too + 1] += t1, sums[too + 2] += t2, sums[too + 3] += t3;
    }
  }

  const isFinite = (v) => v - v === 0;

  // Infinities and NaN take part as in IEEE 754; the rest is the product without them.
  function productWithInfinities(dtype, n, k, m, a, aRow, aColumn, b, bRow, bColumn, out) {
    const at = (array, i, row, j, column) => array[i * row + j * column];
    const finite = (v) => (isFinite(v) ? v : 0);
    const p = Float64Array.from({ length: n * k }, (_, e) => finite(at(a, Math.floor(e / k), aRow, e % k, aColumn)));
    const q = Float64Array.from({ length: k * m }, (_, e) => finite(at(b, Math.floor(e / m), bRow, e % m, bColumn)));
    product(dtype, n, k, m, p, k, 1, q, m, 1, out);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < m; j++) {
        let special = 0; // inf - inf is NaN, and so is whatever comes after it
        for (let c = 0; c < k; c++) {
          const v = at(a, i, aRow, c, aColumn), w = at(b, c, bRow, j, bColumn);
          if (!isFinite(v) || !isFinite(w)) special += v * w;
        }
        if (special !== 0) out[i * m + j] = special;
      }
    }
    return out;
  }

  // -- the sum of `count` numbers, `stride` apart

  const partial = new Float64Array(64), sumShifts = new Float64Array(64);
  function sum(dtype, a, start, stride, count) {
    if (count === 0) return 0;
    let largest = 0, special = 0;
    for (let i = 0, p = start; i < count; i++, p += stride) {
      const v = a[p], size = Math.abs(v);
      if (!(size < Infinity)) special += v;
      else if (size > largest) largest = size;
    }
    if (special !== 0) return special;
    const [slices, bits] = sumSlices(dtype, count);
    const half = halfScale(dtype, largest), top = nextPower(largest / half / half);
    if (slices <= 2) {
      const shift = shiftOf(top, bits, 1), second = slices === 2 ? shiftOf(top, bits, 2) : 0;
      let upper = 0, lower = 0;
      for (let i = 0, p = start; i < count; i++, p += stride) {
        const v = half === 1 ? a[p] : a[p] / half / half, part = (v + shift) - shift;
        upper += part;
        if (slices === 2) lower += ((v - part) + second) - second;
      }
      return dtype.f((upper + (lower + 0)) * half * half);
    }
    for (let s = 0; s < slices; s++) {
      partial[s] = 0;
      sumShifts[s] = shiftOf(top, bits, s + 1);
    }
    for (let i = 0, p = start; i < count; i++, p += stride) {
      let rest = half === 1 ? a[p] : a[p] / half / half;
      for (let s = 0; s < slices; s++) {
        const part = (rest + sumShifts[s]) - sumShifts[s];
        partial[s] += part;
        rest -= part;
      }
    }
    let total = 0;
    for (let s = slices - 1; s >= 0; s--) total = partial[s] + total;
    return dtype.f(total * half * half);
  }

  // -- exp, log, expm1, log1p of one float64 number

  const LN2_HIGH = hex("0x1.62e42fefa3p-1"), LN2_LOW = hex("0x1.3de6af278ece6p-42");
  const LOG2_E = hex("0x1.71547652b82fep+0"), SQRT_HALF = hex("0x1.6a09e667f3bcdp-1");
  const SHIFTER = 1.5 * powerOf2(52); // adding it rounds to an integer
  const LOWEST = -746, HIGHEST = 710; // where exp has become 0 and inf

  // 1/13! to 1/2!
  const EXP = hexes(`
    0x1.6124613a86d09p-33 0x1.1eed8eff8d898p-29 0x1.ae64567f544e4p-26 0x1.27e4fb7789f5cp-22
    0x1.71de3a556c734p-19 0x1.a01a01a01a01ap-16 0x1.a01a01a01a01ap-13 0x1.6c16c16c16c17p-10
    0x1.1111111111111p-7 0x1.5555555555555p-5 0x1.5555555555555p-3 0x1p-1`);
  // 2/23 to 2/3
  const LOG = hexes(`
    0x1.642c8590b2164p-4 0x1.8618618618618p-4 0x1.af286bca1af28p-4 0x1.e1e1e1e1e1e1ep-4
    0x1.1111111111111p-3 0x1.3b13b13b13b14p-3 0x1.745d1745d1746p-3 0x1.c71c71c71c71cp-3
    0x1.2492492492492p-2 0x1.999999999999ap-2 0x1.5555555555555p-1`);

  const [E13, E12, E11, E10, E9, E8, E7, E6, E5, E4, E3, E2] = EXP;
  const [L11, L10, L9, L8, L7, L6, L5, L4, L3, L2, L1] = LOG;

  // 1/2! + r/3! + ... + r^11/13!
  const series = (r) =>
    (((((((((((E13 * r + E12) * r + E11) * r + E10) * r + E9) * r + E8) * r + E7) * r + E6) * r + E5) *
      r + E4) * r + E3) * r + E2);

  function exp(x) {
    const v = x < LOWEST ? LOWEST : x > HIGHEST ? HIGHEST : x;
    const n = (v * LOG2_E + SHIFTER) - SHIFTER;
    const r = (v - n * LN2_HIGH) - n * LN2_LOW;
    return scale((r * r * series(r) + r) + 1, n);
  }

  function expm1(x) {
    if (x === 0) return x;
    if (x > 40) return exp(x);
    const v = x < -40 ? -40 : x;
    const n = (v * LOG2_E + SHIFTER) - SHIFTER;
    const r = (v - n * LN2_HIGH) - n * LN2_LOW;
    return scale(r * r * series(r) + r, n) + (scale(1, n) - 1);
  }

  const bytes = new DataView(new ArrayBuffer(8));

  function log(x) {
    if (!(x > 0 && x < Infinity)) return x === 0 ? -Infinity : x === Infinity ? x : NaN;
    const subnormal = x < powerOf2(-1022);
    bytes.setFloat64(0, subnormal ? x * powerOf2(54) : x);
    // x = part 2^n with part in [1/2, 1): the exponent's 11 bits, and the number with that of 1/2
    let n = (bytes.getUint16(0) >> 4) - 1022;
    bytes.setUint16(0, (bytes.getUint16(0) & 15) | (1022 << 4));
    const part = bytes.getFloat64(0);
    if (subnormal) n -= 54;
    let f = part - 1;
    if (part < SQRT_HALF) {
      f = (part + part) - 1;
      n -= 1;
    }
    const s = f / (f + 2), z = s * s;
    const R = (((((((((L11 * z + L10) * z + L9) * z + L8) * z + L7) * z + L6) * z + L5) * z + L4) * z +
      L3) * z + L2) * z + L1;
    const halfSquare = f * f * 0.5;
    return n * LN2_HIGH - ((halfSquare - (s * (halfSquare + R * z) + n * LN2_LOW)) - f);
  }

  function log1p(x) {
    const u = 1 + x, whole = log(u);
    return u > 0 && u < Infinity ? whole + (x - (u - 1)) / u : whole;
  }

  // -- random numbers

  const MASK32 = 0xffffffffn;
  const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

  // An integer of 128 bits as 8 of 16, the lowest first: their products are exact as numbers.
  const limbs = (v) => Float64Array.from({ length: 8 }, (_, k) => Number((v >> BigInt(16 * k)) & 0xffffn));
  const FACTORS = limbs(MULTIPLIER);

  // Numerators and denominators of AS 241, from the highest power down.
  const CENTRE = [hexes(`
    0x1.39a296f7d925ep+11 0x1.052d26b2e45e4p+15 0x1.06c1c55b78f2p+16 0x1.66c3e869b752ap+15
    0x1.ad1d8cd4ee71dp+13 0x1.ece5d2213c0ccp+10 0x1.0a4888b1a436ep+7 0x1.b18d91e9eef75p+1`), hexes(`
    0x1.46a7eca984b69p+12 0x1.c0e457cb1ae76p+14 0x1.3317caa64f4bep+15 0x1.4b772d5d65266p+14
    0x1.512322e75c89fp+12 0x1.5797efdc8b3f7p+9 0x1.5281b386e1ab5p+5 0x1p+0`)];
  const MIDDLE = [hexes(`
    0x1.9615ac0b7ace9p-11 0x1.744eb6c45ec67p-6 0x1.ef2abb9b85c37p-3 0x1.453cc085375b2p+0
    0x1.d2ecb1a3d02c4p+1 0x1.713f71462256ap+2 0x1.2857748cab19bp+2 0x1.6c665fde9526ap+0`), hexes(`
    0x1.20d3f686439e4p-30 0x1.1f18cbfdf2728p-11 0x1.f207a7eab17bfp-7 0x1.2f5123394f04p-3
    0x1.61292f23385c9p-1 0x1.ad278e6526633p+0 0x1.06cefbb46a449p+1 0x1p+0`)];
  const FAR = [hexes(`
    0x1.afb74d693bf93p-23 0x1.c6ec6cc59e02ap-16 0x1.45c1908425345p-10 0x1.b2b41193b4ee7p-6
    0x1.2fad9315255cfp-2 0x1.c8ea6461fa445p+0 0x1.5daea6e875003p+2 0x1.aa1b1c13ee526p+2`), hexes(`
    0x1.269bff1f8c19p-49 0x1.31446f740b9ep-23 0x1.35c2c496374bfp-16 0x1.9c8bc979dc5d7p-11
    0x1.e76f93215462ap-7 0x1.186eb183443fbp-3 0x1.331d34fc7d77fp-1 0x1p+0`)];
  const [CENTRE_EDGE, CENTRE_SQUARE, MIDDLE_START] = hexes(
    "0x1.b333333333333p-2 0x1.71eb851eb851fp-3 0x1.999999999999ap+0");

  const polynomial = (x, coefficients) => coefficients.reduce((value, c) => value * x + c);
  const ratio = (x, [above, below]) => polynomial(x, above) / polynomial(x, below);

  // The normal number that 1/2 + q of all lie below.
  function quantile(q) {
    if (Math.abs(q) <= CENTRE_EDGE) return q * ratio(CENTRE_SQUARE - q * q, CENTRE);
    const r = Math.sqrt(-log(0.5 - Math.abs(q)));
    const z = r <= 5 ? ratio(r - MIDDLE_START, MIDDLE) : ratio(r - 5, FAR);
    return q < 0 ? -z : z;
  }

  // The words of a seed, a whole number, lowest first.
  function words(seed) {
    const found = [];
    let left = BigInt(seed);
    do found.push(Number(left & MASK32)); while ((left >>= 32n));
    return found;
  }

  // The stream of a seed: a whole number (a BigInt, too), or an array of such.
  class Generator {
    constructor(seed) {
      const entropy = [seed].flat().flatMap(words);
      let h = 0x43b0d7e5;
      const hashed = (v, factor) => {
        v = (v ^ h) >>> 0;
        h = Math.imul(h, factor) >>> 0;
        v = Math.imul(v, h) >>> 0;
        return (v ^ (v >>> 16)) >>> 0;
      };
      const mixed = (x, y) => {
        const v = (Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y)) >>> 0;
        return (v ^ (v >>> 16)) >>> 0;
      };
      const pool = [0, 1, 2, 3].map((k) => hashed(entropy[k] ?? 0, 0x931e8875));
      for (let k = 0; k < 4; k++)
        for (let j = 0; j < 4; j++) if (j !== k) pool[j] = mixed(pool[j], hashed(pool[k], 0x931e8875));
      for (const word of entropy.slice(4))
        for (let j = 0; j < 4; j++) pool[j] = mixed(pool[j], hashed(word, 0x931e8875));
      h = 0x8b51f9dd;
      const w = [...pool, ...pool].map((v) => BigInt(hashed(v, 0x58f38ded)));
      const [A, B, C, D] = [0, 2, 4, 6].map((k) => w[k] + (w[k + 1] << 32n));
      const increment = ((C << 64n) + D) * 2n + 1n;
      this.increment = limbs(increment);
      // From a state of 0: a step, A and B added, a step; the second comes with the first number.
      this.state = limbs(increment + ((A << 64n) + B));
      this.step();
    }

    step() {
      const { state, increment } = this;
      // From the highest limb down: each needs those below it as they were.
      for (let i = 7; i >= 0; i--) {
        let t = increment[i];
        for (let j = 0; j <= i; j++) t += state[j] * FACTORS[i - j];
        state[i] = t;
      }
      for (let i = 0, carry = 0; i < 8; i++) {
        const t = state[i] + carry;
        carry = Math.floor(t / 65536);
        state[i] = t - carry * 65536;
      }
    }

    // The next integer of PCG64, of 64 bits: this.high and this.low are the 32 upper and lower ones.
    next() {
      this.step();
      const s = this.state;
      const high = ((s[7] ^ s[3]) << 16) | (s[6] ^ s[2]), low = ((s[5] ^ s[1]) << 16) | (s[4] ^ s[0]);
      const r = s[7] >> 10, [upper, lower] = r & 32 ? [low, high] : [high, low], by = r & 31;
      this.high = (by ? (upper >>> by) | (lower << (32 - by)) : upper) >>> 0;
      this.low = (by ? (lower >>> by) | (upper << (32 - by)) : lower) >>> 0;
    }

    // The same as a BigInt.
    raw() {
      this.next();
      return (BigInt(this.high) << 32n) | BigInt(this.low);
    }

    uniform(dtype = DTYPES.float64) {
      this.next();
      if (dtype.digits === 24) return (this.high >>> 8) * powerOf2(-24);
      return (this.high * powerOf2(21) + (this.low >>> 11)) * powerOf2(-53);
    }

    normal() {
      return quantile(this.uniform() - 0.5 + powerOf2(-54));
    }

    // A whole number from 0 to below the bound, as a BigInt.
    integer(bound) {
      bound = BigInt(bound);
      const unused = BigInt(64 - (bound - 1n).toString(2).length);
      for (;;) {
        const found = this.raw() >> unused;
        if (found < bound) return found;
      }
    }

    permutation(n) {
      for (;;) {
        const high = new Uint32Array(n), low = new Uint32Array(n);
        for (let k = 0; k < n; k++) {
          this.next();
          high[k] = this.high;
          low[k] = this.low;
        }
        const order = Int32Array.from(high, (_, place) => place);
        order.sort((p, q) => high[p] - high[q] || low[p] - low[q]);
        const equal = (p, q) => high[p] === high[q] && low[p] === low[q];
        if (!order.some((place, k) => k > 0 && equal(place, order[k - 1]))) return order;
      }
    }
  }

  // -- formulas of single numbers: f rounds to the dtype after every operation, s holds settings

  const maximum = (a, b) => (a >= b || a !== a ? a : b);
  const minimum = (a, b) => (a <= b || a !== a ? a : b);

  function sigmoid(f, x) {
    const z = f(exp(-Math.abs(x))), y = f(1 / f(1 + z));
    return x >= 0 ? y : f(z * y);
  }

  const eluPart = (f, alpha, x) => f(f(alpha) * f(expm1(minimum(x, 0))));
  const GELU_SLOPE = 1.5957691216057308, GELU_CUBE = 0.044715, GELU_SQUARE = 0.134145;

  function gate(f, x) {
    const z = f(exp(-Math.abs(x)));
    if (x >= 0) {
      const up = f(1 + f(2 * z));
      return f(up / f(up + f(2 * f(z * z))));
    }
    const down = f(z * f(z + 2));
    return f(down / f(down + 2));
  }

  const POINTWISE = {
    Sigmoid: {
      forward: (f, s, x) => sigmoid(f, x),
      backward: (f, s, d, x, y) => f(f(d * f(1 - y)) * y),
    },
    ReLU: {
      forward: (f, s, x) => (x <= 0 ? 0 : x),
      backward: (f, s, d, x, y) => (y <= 0 ? 0 : d),
    },
    Tanh: {
      forward: (f, s, x) => {
        const z = f(expm1(f(-2 * Math.abs(x)))), y = f(-z / f(2 + z));
        return x < 0 ? -y : y;
      },
      backward: (f, s, d, x, y) => f(d * f(f(1 - y) * f(1 + y))),
    },
    LeakyReLU: {
      settings: { slope: 0.01 },
      forward: (f, s, x) => (x > 0 ? x : f(f(s.slope) * x)),
      backward: (f, s, d, x) => (x > 0 ? d : f(f(s.slope) * d)),
    },
    ELU: {
      settings: { alpha: 1 },
      forward: (f, s, x) => (x > 0 ? x : eluPart(f, s.alpha, x)),
      backward: (f, s, d, x, y) => (x > 0 ? d : f(d * f(y + f(s.alpha)))),
    },
    SELU: {
      settings: { alpha: 1.6732632423543772, scale: 1.0507009873554805 },
      forward: (f, s, x) => f(f(s.scale) * (x > 0 ? x : eluPart(f, s.alpha, x))),
      backward: (f, s, d, x, y) => f(d * (x > 0 ? f(s.scale) : f(y + f(s.scale * s.alpha)))),
    },
    Softplus: {
      forward: (f, s, x) => f(maximum(x, 0) + f(log1p(f(exp(-Math.abs(x)))))),
      backward: (f, s, d, x, y) => f(d * -f(expm1(-y))),
    },
    SiLU: {
      forward: (f, s, x) => f(x * sigmoid(f, x)),
      backward: (f, s, d, x, y) => {
        const g = sigmoid(f, x);
        return f(d * f(g + f(y * f(1 - g))));
      },
    },
    GELU: {
      forward: (f, s, x) =>
        f(x * sigmoid(f, f(f(GELU_SLOPE) * f(x + f(f(GELU_CUBE) * f(f(x * x) * x)))))),
      backward: (f, s, d, x) => {
        const square = minimum(f(x * x), 10000);
        const g = sigmoid(f, f(f(GELU_SLOPE) * f(x + f(f(GELU_CUBE) * f(x * square)))));
        const slope = f(f(GELU_SLOPE) * f(1 + f(f(GELU_SQUARE) * square)));
        return f(d * f(g + f(x * f(f(g * f(1 - g)) * slope))));
      },
    },
    HardSigmoid: {
      forward: (f, s, x) => (x <= -3 ? 0 : x >= 3 ? 1 : f(f(x / 6) + 0.5)),
      backward: (f, s, d, x) => (x <= -3 || x >= 3 ? 0 : f(d / 6)),
    },
    HardTanh: {
      forward: (f, s, x) => (x <= -1 ? -1 : x >= 1 ? 1 : x),
      backward: (f, s, d, x) => (x <= -1 || x >= 1 ? 0 : d),
    },
    Mish: {
      forward: (f, s, x) => f(x * gate(f, x)),
      backward: (f, s, d, x) => {
        const t = gate(f, x);
        return f(d * f(t + f(x * f(f(f(1 - t) * f(1 + t)) * sigmoid(f, x)))));
      },
    },
  };

  // -- formulas of rows; a row is a Float64Array of numbers that the dtype has

  function largestOf(x) {
    let largest = -Infinity;
    for (const v of x) {
      if (v !== v) return v;
      if (v > largest) largest = v;
    }
    return largest;
  }

  const rowSum = (dtype, x) => sum(dtype, x, 0, 1, x.length);

  function softmax(dtype, x, y = new Float64Array(x.length)) {
    const f = dtype.f, largest = largestOf(x);
    for (let j = 0; j < x.length; j++) y[j] = f(exp(f(x[j] - largest)));
    const total = rowSum(dtype, y);
    for (let j = 0; j < x.length; j++) y[j] = f(y[j] / total);
    return y;
  }

  function logSoftmax(dtype, x, y = new Float64Array(x.length)) {
    const f = dtype.f, largest = largestOf(x);
    for (let j = 0; j < x.length; j++) y[j] = f(exp(f(x[j] - largest)));
    const total = f(log(rowSum(dtype, y)));
    for (let j = 0; j < x.length; j++) y[j] = f(f(x[j] - largest) - total);
    return y;
  }

  // The gradient by x of -sum(t log softmax(x)).
  function logSoftmaxSlope(dtype, x, t, dx = new Float64Array(x.length)) {
    const f = dtype.f, total = rowSum(dtype, t);
    softmax(dtype, x, dx);
    for (let j = 0; j < x.length; j++) dx[j] = f(f(dx[j] * total) - t[j]);
    return dx;
  }

  const ROWS = {
    Softmax: {
      forward: (dtype, s, x) => softmax(dtype, x),
      backward: (dtype, s, d, x, y) => {
        const f = dtype.f, total = rowSum(dtype, d.map((v, j) => f(v * y[j])));
        return y.map((v, j) => f(v * f(d[j] - total)));
      },
    },
  };

  // -- losses: of a row of scores x and targets t, a number, and the gradient by x

  const identity = (dtype, s, x) => x;
  const smaller = (f, x, t) => x.map((v, j) => f(v - t[j]));

  // margin + x_j - x_t
  function excess(dtype, s, x, t) {
    const f = dtype.f, meant = rowSum(dtype, x.map((v, j) => f(t[j] * v)));
    return x.map((v) => f(f(v - meant) + f(s.margin)));
  }

  // log(1 - y) for log y.
  const logRest = (f, logY) => logY.map((v) => f(log(maximum(-f(expm1(v)), f(1e-30)))));

  const logs = new Map(); // a row of logarithms for each width
  const LOSSES = {
    SoftmaxWithLoss: {
      settings: { label_smoothing: 0, class_weights: null },
      predict: (dtype, s, x) => softmax(dtype, x),
      targets: (dtype, s, t) => {
        const f = dtype.f, share = s.label_smoothing;
        if (share) {
          const more = f(f(f(share) * rowSum(dtype, t)) / t.length);
          t = t.map((v) => f(f(f(1 - share) * v) + more));
        }
        return s.class_weights === null ? t : t.map((v, j) => f(v * f(s.class_weights[j])));
      },
      forward: (dtype, s, x, t) => {
        if (!logs.has(x.length)) logs.set(x.length, new Float64Array(x.length));
        const f = dtype.f, y = logSoftmax(dtype, x, logs.get(x.length));
        for (let j = 0; j < x.length; j++) y[j] = t[j] === 0 ? 0 : f(t[j] * y[j]);
        return -rowSum(dtype, y);
      },
      backward: (dtype, s, x, t, dx) => logSoftmaxSlope(dtype, x, t, dx),
    },
    IdentityWithLoss: {
      predict: identity,
      forward: (dtype, s, x, t) => {
        const f = dtype.f, d = smaller(f, x, t);
        return f(0.5 * rowSum(dtype, d.map((v) => f(v * v))));
      },
      backward: (dtype, s, x, t) => smaller(dtype.f, x, t),
    },
    AbsoluteError: {
      predict: identity,
      forward: (dtype, s, x, t) => rowSum(dtype, smaller(dtype.f, x, t).map(Math.abs)),
      backward: (dtype, s, x, t) =>
        x.map((v, j) => (v > t[j] ? 1 : v < t[j] ? -1 : dtype.f(v - t[j]))),
    },
    Huber: {
      settings: { delta: 1 },
      predict: identity,
      forward: (dtype, s, x, t) => {
        const f = dtype.f, delta = f(s.delta), half = f(0.5 * s.delta);
        return rowSum(dtype, smaller(f, x, t).map(Math.abs).map((d) =>
          d <= delta ? f(0.5 * f(d * d)) : f(delta * f(d - half))));
      },
      backward: (dtype, s, x, t) =>
        smaller(dtype.f, x, t).map((d) => maximum(minimum(d, dtype.f(s.delta)), dtype.f(-s.delta))),
    },
    Hinge: {
      settings: { margin: 1 },
      predict: identity,
      forward: (dtype, s, x, t) => {
        const f = dtype.f;
        return rowSum(dtype, excess(dtype, s, x, t).map((v, j) => f(f(1 - t[j]) * maximum(v, 0))));
      },
      backward: (dtype, s, x, t) => {
        const f = dtype.f, active = excess(dtype, s, x, t).map((v, j) => (v > 0 ? f(1 - t[j]) : 0));
        const total = rowSum(dtype, active);
        return active.map((v, j) => f(v - f(t[j] * total)));
      },
    },
    BinaryCrossEntropy: {
      predict: (dtype, s, x) => x.map((v) => sigmoid(dtype.f, v)),
      forward: (dtype, s, x, t) => {
        const f = dtype.f;
        return rowSum(dtype, x.map((v, j) =>
          f(f(maximum(v, 0) - f(t[j] * v)) + f(log1p(f(exp(-Math.abs(v))))))));
      },
      backward: (dtype, s, x, t) => x.map((v, j) => dtype.f(sigmoid(dtype.f, v) - t[j])),
    },
    KullbackLeibler: {
      predict: (dtype, s, x) => softmax(dtype, x),
      forward: (dtype, s, x, t) => {
        const f = dtype.f, y = logSoftmax(dtype, x);
        return rowSum(dtype, t.map((v, j) => (v === 0 ? 0 : f(v * f(f(log(v > 0 ? v : 1)) - y[j])))));
      },
      backward: (dtype, s, x, t) => logSoftmaxSlope(dtype, x, t),
    },
    Focal: {
      settings: { gamma: 2 },
      predict: (dtype, s, x) => softmax(dtype, x),
      forward: (dtype, s, x, t) => {
        const f = dtype.f, logY = logSoftmax(dtype, x);
        const weight = logRest(f, logY).map((v) => f(exp(f(f(s.gamma) * v))));
        return -rowSum(dtype, t.map((v, j) => (v === 0 ? 0 : f(v * f(weight[j] * logY[j])))));
      },
      backward: (dtype, s, x, t) => {
        const f = dtype.f, gamma = f(s.gamma), logY = logSoftmax(dtype, x);
        const y = logY.map((v) => f(exp(v))), rest = logRest(f, logY);
        const slope = t.map((v, j) => {
          const weight = f(exp(f(gamma * rest[j]))), steeper = f(exp(f(f(gamma * rest[j]) - rest[j])));
          return f(v * f(f(gamma * f(f(y[j] * steeper) * (v === 0 ? 0 : logY[j]))) - weight));
        });
        const total = rowSum(dtype, slope);
        return slope.map((v, j) => f(v - f(y[j] * total)));
      },
    },
  };

  // -- layers: forward and backward of n rows, in arrays that are kept from one step to the next

  class Layer {
    constructor(dtype, settings = {}) {
      this.dtype = dtype;
      this.settings = settings;
      this.params = {}; // by name: the arrays that training changes
      this.grads = {};
      this.state = {}; // what training leaves for predictions
      this.training = false;
      this.uniform = null; // draws a random number, in training
    }

    // An array of at least this length, the same one until a longer one is needed.
    keep(name, length) {
      if (this[name] === undefined || this[name].length < length)
        this[name] = new this.dtype.Array(length);
      return this[name];
    }

    gradients(shapes) {
      for (const [name, length] of Object.entries(shapes)) this.grads[name] = new this.dtype.Array(length);
    }

    columnSums(a, n, m, out) {
      for (let j = 0; j < m; j++) out[j] = sum(this.dtype, a, j, m, n);
      return out;
    }
  }

  class Affine extends Layer {
    constructor(dtype, settings) {
      super(dtype, settings);
      const { inputs, outputs } = settings;
      [this.inputs, this.outputs] = [inputs, outputs];
      this.params = { W: new dtype.Array(inputs * outputs), b: new dtype.Array(outputs) };
      this.gradients({ W: inputs * outputs, b: outputs });
    }

    initialize(generator) {
      const { inputs, outputs, weight_init_std: std = 0.01 } = this.settings;
      const factor = std === "he" ? Math.sqrt(2 / inputs)
        : std === "xavier" ? Math.sqrt(2 / (inputs + outputs)) : std;
      if (factor) for (let k = 0; k < this.params.W.length; k++) this.params.W[k] = factor * generator.normal();
      else this.params.W.fill(0);
    }

    forward(x, n) {
      const { inputs: d, outputs: m } = this, { W, b } = this.params, y = this.keep("y", n * m);
      [this.x, this.n] = [x, n];
      product(this.dtype, n, d, m, x, d, 1, W, m, 1, y);
      for (let p = 0, j = 0; p < n * m; p++, j = j + 1 === m ? 0 : j + 1) y[p] += b[j];
      return y;
    }

    // The gradient by the input, unless this is the `first` layer, of which nobody asks for it.
    backward(dout, first = false) {
      const { inputs: d, outputs: m, n, x, dtype } = this;
      product(dtype, d, n, m, x, 1, d, dout, m, 1, this.grads.W);
      this.columnSums(dout, n, m, this.grads.b);
      if (first) return null;
      return product(dtype, n, m, d, dout, m, 1, this.params.W, 1, m, this.keep("dx", n * d));
    }
  }

  class Pointwise extends Layer {
    constructor(dtype, settings, formula) {
      super(dtype, { ...formula.settings, ...settings });
      this.formula = formula;
    }

    initialize() {}

    forward(x, n, width) {
      const { dtype: { f }, settings, formula: { forward } } = this, y = this.keep("y", n * width);
      [this.x, this.length] = [x, n * width];
      for (let p = 0; p < this.length; p++) y[p] = forward(f, settings, x[p]);
      return y;
    }

    backward(dout) {
      const { dtype: { f }, settings, formula: { backward }, x, y } = this, dx = this.keep("dx", this.length);
      for (let p = 0; p < this.length; p++) dx[p] = backward(f, settings, dout[p], x[p], y[p]);
      return dx;
    }
  }

  class Rows extends Pointwise {
    row = (a, i) => Float64Array.from(a.subarray(i * this.width, (i + 1) * this.width));

    forward(x, n, width) {
      const y = this.keep("y", n * width);
      [this.x, this.n, this.width] = [x, n, width];
      for (let i = 0; i < n; i++)
        y.set(this.formula.forward(this.dtype, this.settings, this.row(x, i)), i * width);
      return y;
    }

    backward(dout) {
      const { n, width } = this, dx = this.keep("dx", n * width);
      for (let i = 0; i < n; i++) {
        const [d, x, y] = [dout, this.x, this.y].map((a) => this.row(a, i));
        dx.set(this.formula.backward(this.dtype, this.settings, d, x, y), i * width);
      }
      return dx;
    }
  }

  class Dropout extends Layer {
    constructor(dtype, settings) {
      super(dtype, { ratio: 0.5, ...settings });
    }

    initialize() {}

    forward(x, n, width) {
      if (!this.training) return x;
      const { dtype: { f }, settings: { ratio } } = this, y = this.keep("y", n * width);
      this.dropped = Array.from({ length: n * width }, () => this.uniform() < f(ratio));
      this.dropped.forEach((gone, p) => (y[p] = gone ? 0 : x[p] / f(1 - ratio)));
      return y;
    }

    backward(dout) {
      if (!this.training) return dout;
      const { dtype: { f }, settings: { ratio } } = this, dx = this.keep("dx", this.dropped.length);
      this.dropped.forEach((gone, p) => (dx[p] = gone ? 0 : dout[p] / f(1 - ratio)));
      return dx;
    }
  }

  class Normalization extends Layer {
    constructor(dtype, settings) {
      super(dtype, settings);
      this.units = settings.units;
      this.state = { mean: new dtype.Array(this.units), std: new dtype.Array(this.units).fill(1) };
    }

    initialize() {}

    forward(x, n) {
      const { dtype: { f }, units, state: { mean, std } } = this, y = this.keep("y", n * units);
      for (let p = 0; p < n * units; p++) y[p] = f(f(x[p] - mean[p % units]) / std[p % units]);
      return y;
    }

    backward(dout) {
      const { dtype: { f }, units, state: { std }, y } = this, dx = this.keep("dx", y.length);
      for (let p = 0; p < dx.length; p++) dx[p] = f(dout[p] / std[p % units]);
      return dx;
    }
  }

  class Normalized extends Layer {
    constructor(dtype, settings) {
      super(dtype, { eps: 1e-5, ...settings });
      this.units = settings.units;
      this.params = { gamma: new dtype.Array(this.units).fill(1), beta: new dtype.Array(this.units) };
      this.gradients({ gamma: this.units, beta: this.units });
    }

    initialize() {}

    // gamma normal + beta
    finish(n) {
      const { dtype: { f }, units, params: { gamma, beta }, normal } = this, y = this.keep("y", n * units);
      for (let p = 0; p < n * units; p++) y[p] = f(f(gamma[p % units] * normal[p]) + beta[p % units]);
      return y;
    }

    byParameters(dout) {
      const { dtype: { f }, units, n, normal, grads } = this;
      this.columnSums(dout.slice(0, n * units).map((v, p) => f(v * normal[p])), n, units, grads.gamma);
      this.columnSums(dout, n, units, grads.beta);
    }
  }

  class BatchNorm extends Normalized {
    constructor(dtype, settings) {
      super(dtype, { decay: 0.9, ...settings });
      this.state = { mean: new dtype.Array(this.units), variance: new dtype.Array(this.units).fill(1) };
    }

    forward(x, n) {
      const { dtype, dtype: { f }, units, state, settings: { eps, decay } } = this;
      const size = n * units, normal = this.keep("normal", size);
      this.n = n;
      this.std = new dtype.Array(units);
      const share = 1 - decay;
      for (let j = 0; j < units; j++) {
        let mean = state.mean[j], variance = state.variance[j];
        if (this.training) {
          mean = f(sum(dtype, x, j, units, n) / n);
          const squares = Array.from({ length: n }, (_, i) => f(x[i * units + j] - mean)).map((d) => f(d * d));
          variance = f(sum(dtype, squares, 0, 1, n) / n);
          const moved = (old, now) => f(f(f(1 - share) * old) + f(f(share) * now));
          state.mean[j] = moved(state.mean[j], mean);
          state.variance[j] = moved(state.variance[j], variance);
        }
        this.std[j] = f(Math.sqrt(f(variance + f(eps))));
        for (let p = j; p < size; p += units) normal[p] = f(f(x[p] - mean) / this.std[j]);
      }
      return this.finish(n);
    }

    backward(dout) {
      const { dtype: { f }, units, n, std, normal, grads, params: { gamma } } = this;
      const dx = this.keep("dx", n * units);
      this.byParameters(dout);
      for (let p = 0; p < n * units; p++) {
        const j = p % units;
        let d = dout[p];
        if (this.training)
          d = f(f(d - f(grads.beta[j] / n)) - f(normal[p] * f(grads.gamma[j] / n)));
        dx[p] = f(d * f(gamma[j] / std[j]));
      }
      return dx;
    }
  }

  class LayerNorm extends Normalized {
    forward(x, n) {
      const { dtype, dtype: { f }, units, settings: { eps } } = this;
      const normal = this.keep("normal", n * units), d = new Float64Array(units);
      this.n = n;
      this.std = new dtype.Array(n);
      for (let i = 0; i < n; i++) {
        const mean = f(sum(dtype, x, i * units, 1, units) / units);
        for (let j = 0; j < units; j++) d[j] = f(x[i * units + j] - mean);
        const variance = f(rowSum(dtype, d.map((v) => f(v * v))) / units);
        this.std[i] = f(Math.sqrt(f(variance + f(eps))));
        for (let j = 0; j < units; j++) normal[i * units + j] = f(d[j] / this.std[i]);
      }
      return this.finish(n);
    }

    backward(dout) {
      const { dtype, dtype: { f }, units, n, std, normal, params: { gamma } } = this;
      const dx = this.keep("dx", n * units), d = new Float64Array(units);
      this.byParameters(dout);
      for (let i = 0, at = 0; i < n; i++, at += units) {
        for (let j = 0; j < units; j++) d[j] = f(dout[at + j] * gamma[j]);
        const mean = f(rowSum(dtype, d) / units);
        const along = f(rowSum(dtype, d.map((v, j) => f(v * normal[at + j]))) / units);
        for (let j = 0; j < units; j++)
          dx[at + j] = f(f(f(d[j] - mean) - f(normal[at + j] * along)) / std[i]);
      }
      return dx;
    }
  }

  const LAYERS = { Affine, Dropout, Normalization, BatchNorm, LayerNorm };

  // The layer of an operation, by its name.
  function layer(dtype, name, settings = {}) {
    if (name in LAYERS) return new LAYERS[name](dtype, settings);
    if (name in POINTWISE) return new Pointwise(dtype, settings, POINTWISE[name]);
    if (name in ROWS) return new Rows(dtype, settings, ROWS[name]);
    throw new Error(`${name} is no layer: ${Object.keys({ ...LAYERS, ...POINTWISE, ...ROWS }).join(", ")}`);
  }

  // -- optimizers: the n-th step of an array W with gradient g; memory is as many arrays of zeros

  const sign = (c) => (c > 0 ? 1 : c < 0 ? -1 : c);

  // `step` gives, for settings and n, the function of one number W and its gradient that gives the
  // new W, and changes the i-th numbers of what is remembered, p and q.
  function adam(f, s, n) {
    const c1 = 1 - power(s.beta1, n), c2 = 1 - power(s.beta2, n), eps = f(s.eps);
    const b1 = f(s.beta1), rest1 = f(1 - s.beta1), b2 = f(s.beta2), rest2 = f(1 - s.beta2);
    const before = s.epsilon_hat; // eps goes before the correction
    const rate = f(before ? (s.lr * Math.sqrt(c2)) / c1 : s.lr / c1), correction = before ? 1 : f(1 / c2);
    return (W, g, i, p, q) => {
      p[i] = f(f(b1 * p[i]) + f(rest1 * g));
      q[i] = f(f(b2 * q[i]) + f(rest2 * f(g * g)));
      return f(W - f(f(rate * p[i]) / f(f(Math.sqrt(f(correction * q[i]))) + eps)));
    };
  }

  function nadam(f, s, n) {
    const c1 = 1 - power(s.beta1, n), c2 = f(1 - power(s.beta2, n)), lr = f(s.lr), eps = f(s.eps);
    const b1 = f(s.beta1), rest1 = f(1 - s.beta1), b2 = f(s.beta2), rest2 = f(1 - s.beta2);
    const ahead = f(s.beta1 / (1 - s.beta1 * power(s.beta1, n))), now = f((1 - s.beta1) / c1);
    return (W, g, i, p, q) => {
      p[i] = f(f(b1 * p[i]) + f(rest1 * g));
      q[i] = f(f(b2 * q[i]) + f(rest2 * f(g * g)));
      const direction = f(f(ahead * p[i]) + f(now * g));
      return f(W - f(f(lr * direction) / f(f(Math.sqrt(f(q[i] / c2))) + eps)));
    };
  }

  const ADAM = { lr: 0.001, beta1: 0.9, beta2: 0.999, eps: 1e-8, epsilon_hat: false, weight_decay: null };
  const OPTIMIZERS = {
    SGD: {
      slots: 0,
      settings: { lr: 0.01, weight_decay: null },
      step: (f, s) => {
        const lr = f(s.lr);
        return (W, g) => f(W - f(lr * g));
      },
    },
    Momentum: {
      slots: 1,
      settings: { lr: 0.01, momentum: 0.9, weight_decay: null },
      step: (f, s) => {
        const lr = f(s.lr), momentum = f(s.momentum);
        return (W, g, i, v) => {
          v[i] = f(f(momentum * v[i]) - f(lr * g));
          return f(W + v[i]);
        };
      },
    },
    Nesterov: {
      slots: 1,
      settings: { lr: 0.01, momentum: 0.9, weight_decay: null },
      step: (f, s) => {
        const lr = f(s.lr), momentum = f(s.momentum);
        return (W, g, i, v) => {
          v[i] = f(f(momentum * v[i]) - f(lr * g));
          return f(W + f(f(momentum * v[i]) - f(lr * g)));
        };
      },
    },
    AdaGrad: {
      slots: 1,
      settings: { lr: 0.01, eps: 1e-7, weight_decay: null },
      step: (f, s) => {
        const lr = f(s.lr), eps = f(s.eps);
        return (W, g, i, h) => {
          h[i] = f(h[i] + f(g * g));
          return f(W - f(f(lr * g) / f(f(Math.sqrt(h[i])) + eps)));
        };
      },
    },
    RMSProp: {
      slots: 1,
      settings: { lr: 0.01, decay: 0.99, eps: 1e-7, weight_decay: null },
      step: (f, s) => {
        const lr = f(s.lr), eps = f(s.eps), decay = f(s.decay), rest = f(1 - s.decay);
        return (W, g, i, h) => {
          h[i] = f(f(decay * h[i]) + f(rest * f(g * g)));
          return f(W - f(f(lr * g) / f(f(Math.sqrt(h[i])) + eps)));
        };
      },
    },
    Adam: { slots: 2, settings: ADAM, step: adam },
    AdamW: { slots: 2, decoupled: true, settings: { ...ADAM, weight_decay: 0.01 }, step: adam },
    Nadam: { slots: 2, settings: ADAM, step: nadam },
    Lion: {
      slots: 1,
      decoupled: true,
      settings: { lr: 1e-4, beta1: 0.9, beta2: 0.99, weight_decay: null },
      step: (f, s) => {
        const lr = f(s.lr), b1 = f(s.beta1), rest1 = f(1 - s.beta1), b2 = f(s.beta2), rest2 = f(1 - s.beta2);
        return (W, g, i, p) => {
          const c = f(f(b1 * p[i]) + f(rest1 * g));
          p[i] = f(f(b2 * p[i]) + f(rest2 * g));
          return f(W - f(lr * sign(c)));
        };
      },
    },
  };

  // Change W and the memory in place: the n-th step, n from 1.
  function update(dtype, name, settings, n, W, g, memory) {
    const { f } = dtype, optimizer = OPTIMIZERS[name], s = { ...optimizer.settings, ...settings };
    const step = optimizer.step(f, s, n), [p, q] = memory, decay = s.weight_decay;
    const shrunk = decay === null ? 0 : f(s.lr * decay), added = decay === null ? 0 : f(decay);
    for (let i = 0; i < W.length; i++) {
      let w = W[i], gradient = g[i];
      if (decay !== null && optimizer.decoupled) w = f(w - f(shrunk * w));
      else if (decay !== null) gradient = f(gradient + f(added * w));
      W[i] = step(w, gradient, i, p, q);
    }
  }

  // -- a network

  class Network {
    // layers: [name, settings] each; the loss: [name, settings].
    constructor(dtype, layers, loss = ["SoftmaxWithLoss", {}], seed = 0) {
      this.dtype = dtype;
      this.layers = layers.map(([name, settings]) => layer(dtype, name, settings));
      const found = LOSSES[loss[0]];
      if (found === undefined) throw new Error(`${loss[0]} is no loss: ${Object.keys(LOSSES).join(", ")}`);
      [this.loss, this.lossSettings] = [found, { ...found.settings, ...loss[1] }];
      const generator = new Generator(seed);
      for (const one of this.layers) one.initialize(generator);
      if (this.layers.some((one) => one instanceof Dropout)) {
        const draws = new Generator(generator.integer(1n << 63n));
        for (const one of this.layers) one.uniform = () => draws.uniform(dtype);
      }
      this.memory = new Map();
      this.steps = 0;
    }

    // Parameters, by layer and within it, then what training leaves for predictions: [name, array].
    // A name ends in a number that counts the layers which have such an array.
    named() {
      const found = [];
      for (const kind of ["params", "state"]) {
        const counts = {};
        for (const one of this.layers) {
          for (const [name, array] of Object.entries(one[kind])) {
            counts[name] = (counts[name] ?? 0) + 1;
            found.push([`${kind === "state" ? "state." : ""}${name}${counts[name]}`, array]);
          }
        }
      }
      return found;
    }

    scores(x, n, width) {
      for (const one of this.layers) {
        x = one.forward(x, n, width);
        width = one.outputs ?? width;
      }
      return [x, width];
    }

    // One step on n rows x with targets t of as many columns as there are scores: the loss before it.
    // x and t must stay as they are until the step is done.
    trainStep(x, t, n, width, optimizer, settings) {
      const { dtype, dtype: { f } } = this;
      for (const one of this.layers) one.training = true;
      const [scores, classes] = this.scores(x, n, width);
      if (this.rowX === undefined || this.rowX.length !== classes)
        [this.rowX, this.rowT, this.rowD] = [0, 0, 0].map(() => new Float64Array(classes));
      if (this.losses === undefined || this.losses.length < n) {
        this.losses = new Float64Array(n);
        this.dout = new dtype.Array(n * classes);
      }
      const share = f(1 / n), { rowX, rowT, losses, dout } = this;
      for (let i = 0, at = 0; i < n; i++, at += classes) {
        for (let j = 0; j < classes; j++) {
          rowX[j] = scores[at + j];
          rowT[j] = t[at + j];
        }
        const targets = this.loss.targets?.(dtype, this.lossSettings, rowT) ?? rowT;
        losses[i] = this.loss.forward(dtype, this.lossSettings, rowX, targets);
        const d = this.loss.backward(dtype, this.lossSettings, rowX, targets, this.rowD);
        for (let j = 0; j < classes; j++) dout[at + j] = d[j] * share;
      }
      const loss = f(sum(dtype, losses, 0, 1, n) / n);
      let d = dout;
      for (let k = this.layers.length - 1; k >= 0; k--) d = this.layers[k].backward(d, k === 0);
      this.steps++;
      for (const one of this.layers) {
        for (const [name, W] of Object.entries(one.params)) {
          if (!this.memory.has(W)) {
            const { slots } = OPTIMIZERS[optimizer];
            this.memory.set(W, Array.from({ length: slots }, () => new dtype.Array(W.length)));
          }
          update(dtype, optimizer, settings, this.steps, W, one.grads[name], this.memory.get(W));
        }
      }
      return loss;
    }

    // What the network says of n rows: as many numbers a row as there are scores.
    predict(x, n, width) {
      for (const one of this.layers) one.training = false;
      const [scores, classes] = this.scores(x, n, width), y = new this.dtype.Array(n * classes);
      for (let at = 0; at < y.length; at += classes)
        y.set(this.loss.predict(this.dtype, this.lossSettings, Float64Array.from(scores.subarray(at, at + classes))), at);
      return y;
    }

    sha256() {
      return sha256(this.named().map(([, array]) => littleEndian(array)));
    }
  }

  // Train on rows x (n, width) with labels, or targets, shuffled in each epoch by the stream of `seed`;
  // `show(step, loss, places)` is called after each step, and ends the training where it returns false.
  function train(network, x, t, width, { batch = 100, steps, seed = 0, optimizer = "SGD", settings = {} }, show) {
    const n = x.length / width, classes = t.length / n, { dtype } = network, generator = new Generator(seed);
    const rows = new dtype.Array(batch * width), targets = new dtype.Array(batch * classes);
    let order = generator.permutation(n), done = 0;
    for (let step = 1; step <= steps; step++) {
      if (done >= n) [order, done] = [generator.permutation(n), 0];
      const taken = order.subarray(done, (done += batch));
      taken.forEach((place, i) => {
        rows.set(x.subarray(place * width, (place + 1) * width), i * width);
        targets.set(t.subarray(place * classes, (place + 1) * classes), i * classes);
      });
      const loss = network.trainStep(rows, targets, taken.length, width, optimizer, settings);
      if (show?.(step, loss, taken) === false) return;
    }
  }

  // Rows of 0 and 1 for labels.
  function oneHot(labels, classes) {
    const t = new Float32Array(labels.length * classes);
    labels.forEach((label, i) => (t[i * classes + label] = 1));
    return t;
  }

  // -- SHA-256 (FIPS 180-4), for crypto.subtle keeps a page waiting

  function littleEndian(array) {
    const view = new DataView(new ArrayBuffer(array.byteLength)), size = array.BYTES_PER_ELEMENT;
    const set = size === 4 ? "setFloat32" : "setFloat64";
    for (let i = 0; i < array.length; i++) view[set](i * size, array[i], true);
    return new Uint8Array(view.buffer);
  }

  // The first 32 bits behind the point of the square roots of the first 8 primes, and of the cube
  // roots of the first 64.
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  // floor of the `degree`-th root of value, integers, by halving
  function integerRoot(value, degree) {
    let low = 0n, high = value;
    while (low < high) {
      const middle = (low + high + 1n) / 2n;
      if (middle ** degree <= value) low = middle;
      else high = middle - 1n;
    }
    return low;
  }
  const fraction = (p, degree) => Number(integerRoot(BigInt(p) << (32n * degree), degree) & MASK32);
  const SHA_START = primes.slice(0, 8).map((p) => fraction(p, 2n));
  const SHA_ROUNDS = Int32Array.from(primes, (p) => fraction(p, 3n));

  // Of arrays of bytes, one after the other.
  function sha256(parts) {
    const length = parts.reduce((total, part) => total + part.length, 0);
    const message = new Uint8Array((((length + 8) >> 6) + 1) << 6);
    let at = 0;
    for (const part of parts) {
      message.set(part, at);
      at += part.length;
    }
    message[length] = 128;
    const view = new DataView(message.buffer), w = new Int32Array(64), state = Int32Array.from(SHA_START);
    view.setUint32(message.length - 8, Math.floor(length / 536870912));
    view.setUint32(message.length - 4, (length << 3) >>> 0);
    for (let block = 0; block < message.length; block += 64) {
      for (let i = 0; i < 16; i++) w[i] = view.getInt32(block + 4 * i);
      for (let i = 16; i < 64; i++) {
        const p = w[i - 15], q = w[i - 2];
        const s0 = ((p >>> 7) | (p << 25)) ^ ((p >>> 18) | (p << 14)) ^ (p >>> 3);
        const s1 = ((q >>> 17) | (q << 15)) ^ ((q >>> 19) | (q << 13)) ^ (q >>> 10);
        w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
      }
      let [a, b, c, d, e, f, g, h] = state;
      for (let i = 0; i < 64; i++) {
        const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
        const t1 = (h + s1 + ((e & f) ^ (~e & g)) + SHA_ROUNDS[i] + w[i]) | 0;
        const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
        const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        h = g, g = f, f = e, e = (d + t1) | 0;
        d = c, c = b, b = a, a = (t1 + t2) | 0;
      }
      [a, b, c, d, e, f, g, h].forEach((v, i) => (state[i] += v));
    }
    return Array.from(state, (v) => (v >>> 0).toString(16).padStart(8, "0")).join("");
  }

  // The constants by the specification's names: coefficients count down to the given one.
  const named = (letter, values, last) =>
    Object.fromEntries(values.map((value, k) => [`${letter}${values.length - 1 - k + last}`, value]));
  const constants = {
    exp: { LOG2_E, LN2_HIGH, LN2_LOW, SHIFTER, LOWEST, HIGHEST, ...named("c", EXP, 2) },
    log: { LN2_HIGH, LN2_LOW, SQRT_HALF, ...named("L", LOG, 1) },
    quantile: Object.assign({}, ...[...CENTRE, ...MIDDLE, ...FAR].map((values, k) => named("abcdef"[k], values, 0))),
  };

  return {
    constants, DTYPES, POINTWISE, ROWS, LOSSES, LAYERS, OPTIMIZERS,
    hex, productSlices, product, sumSlices, sum, exp, expm1, log, log1p, quantile, Generator,
    layer, update, Network, train, oneHot, sha256, littleEndian,
  };
}

const xnet = defineXnet();
if (typeof module !== "undefined") module.exports = xnet;
