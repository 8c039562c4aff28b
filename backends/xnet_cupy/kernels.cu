// The CUDA kernels: one pass over memory each, for float and double.
//
// Every array is packed in C order, every index has 64 bits. Elementwise kernels stride over the
// grid; a kernel over rows gives each row to a block of whole warps. NaN, infinities and -0 come
// out as they do of the generic forms in xnet/backend.py.
//
// kernels.py beside this file compiles the instances it launches, by NVRTC, with subnormals kept
// and division correctly rounded. Nothing here includes a header, so that the tests can also
// compile it for the host.

typedef long long Index;

template <class T> constexpr T LOG_OFFSET = static_cast<T>(1e-7);  // as in xnet/backend.py

__device__ inline Index thread() { return Index(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline Index threads() { return Index(gridDim.x) * blockDim.x; }

// -- reductions over a group of threads that share one line of numbers, a row or a column

struct Plus {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};

struct Larger {  // NaN where one of the two is, as NumPy's maximum
    template <class T> __device__ T operator()(T a, T b) const {
        return a == a && !(b <= a) ? b : a;
    }
};

struct Or {
    __device__ int operator()(int a, int b) const { return a | b; }
};

// A whole block, of whole warps, on one line.
struct Block {
    static __device__ Index first() { return threadIdx.x; }
    static __device__ Index step() { return blockDim.x; }

    // Every thread's `value` combined; every thread has the result.
    template <class Combine, class T> static __device__ T all(T value) {
        __shared__ T parts[32];
        Combine combine;
        for (int lanes = 16; lanes > 0; lanes /= 2) {
            value = combine(value, __shfl_xor_sync(0xffffffffu, value, lanes));
        }
        int warps = blockDim.x / 32;
        if (warps == 1) return value;
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
        __syncthreads();
        value = parts[0];
        for (int warp = 1; warp < warps; ++warp) value = combine(value, parts[warp]);
        __syncthreads();  // the next reduction writes to `parts`
        return value;
    }
};

// 32 x 8 threads on 32 neighbouring columns; those of one column are a group. Where there are
// fewer columns, the last one has several groups, which all do the same.
__device__ inline Index tile_column(Index columns) {
    Index j = Index(blockIdx.x) * 32 + threadIdx.x;
    return j < columns ? j : columns - 1;
}

struct Tile {
    static __device__ Index first() { return threadIdx.y; }
    static __device__ Index step() { return 8; }

    template <class Combine, class T> static __device__ T all(T value) {
        __shared__ T parts[8][32];
        parts[threadIdx.y][threadIdx.x] = value;
        __syncthreads();
        value = parts[0][threadIdx.x];
        for (int row = 1; row < 8; ++row) value = Combine()(value, parts[row][threadIdx.x]);
        __syncthreads();
        return value;
    }
};

// -- what decides the bits, in fast mode: the device's own exp and log, sums as they come

struct Fast {
    template <class T> static __device__ T exp(T x) { return ::exp(x); }
    template <class T> static __device__ T log(T x) { return ::log(x); }

    // value(0) + ... + value(count - 1)
    template <class T, class Group, class Value> static __device__ T sum(Value value, Index count) {
        T total = 0;
        for (Index k = Group::first(); k < count; k += Group::step()) total += value(k);
        return Group::template all<Plus>(total);
    }
};

// -- and in reproducible mode: xnet/exact.py, operation by operation, which says why it is exact.
// Compiled with --fmad=false: no multiplication is fused with an addition.

__device__ inline double power(Index k) { return __longlong_as_double((k + 1023) << 52); }
__device__ inline double infinity() { return __longlong_as_double(0x7ff0000000000000); }
__device__ inline double not_a_number() { return __longlong_as_double(0x7ff8000000000000); }

__device__ inline double power_of_two(double p) {
    double q = p * 0x1p53, found = fabs((q + p) - q);
    return found == 0 ? p : found;
}

constexpr double LN2_HIGH = 0x1.62e42fefa3000p-1, LN2_LOW = 0x1.3de6af278ece6p-42;
constexpr double SHIFTER = 0x1.8p52;  // adding it rounds to an integer
__constant__ constexpr double EXP_COEFFICIENTS[] = {
    1 / 6227020800., 1 / 479001600., 1 / 39916800., 1 / 3628800., 1 / 362880., 1 / 40320.,
    1 / 5040., 1 / 720., 1 / 120., 1 / 24., 1 / 6., 1 / 2.
};
__constant__ constexpr double LOG_COEFFICIENTS[] = {
    2 / 23., 2 / 21., 2 / 19., 2 / 17., 2 / 15., 2 / 13., 2 / 11., 2 / 9., 2 / 7., 2 / 5., 2 / 3.
};

__device__ inline double exact_exp(double x) {
    if (x != x) return not_a_number();
    x = x < -746 ? -746 : x > 710 ? 710 : x;
    double n = (x * 0x1.71547652b82fep+0 + SHIFTER) - SHIFTER;
    double r = (x - n * LN2_HIGH) - n * LN2_LOW;
    double p = EXP_COEFFICIENTS[0];
    for (int k = 1; k < 12; ++k) p = p * r + EXP_COEFFICIENTS[k];
    Index whole = Index(n), half = whole >> 1;
    return ((r * r * p + r) + 1) * power(half) * power(whole - half);
}

// The exponent of a power of two.
__device__ inline double exponent(double x) {
    bool subnormal = x < 0x1p-1022;
    Index bits = __double_as_longlong(subnormal ? x * 0x1p60 : x);
    return double((bits >> 52) - 1023 - (subnormal ? 60 : 0));
}

__device__ inline double exact_log(double x) {
    if (x == 0) return -infinity();
    if (!(x > 0 && x < infinity())) return x > 0 ? infinity() : not_a_number();
    bool huge = x > 0x1p900;
    if (huge) x = x * 0x1p-200;
    double largest = power_of_two(x), n = exponent(largest), m = x / largest;
    if (m < 0x1.6a09e667f3bcdp-1) {
        m = m + m;
        n = n - 1;
    }
    if (huge) n = n + 200;
    double f = m - 1, s = f / (f + 2), z = s * s, R = LOG_COEFFICIENTS[0];
    for (int k = 1; k < 11; ++k) R = R * z + LOG_COEFFICIENTS[k];
    double half_square = f * f * 0.5;
    return n * LN2_HIGH - ((half_square - (s * (half_square + R * z) + n * LN2_LOW)) - f);
}

template <class T> __device__ bool is_finite(T x) { return x - x == 0; }

enum { UP = 1, DOWN = 2, NOT_A_NUMBER = 4 };  // what a term that is not finite is

template <class T> __device__ int kind(T x) { return x != x ? NOT_A_NUMBER : x > 0 ? UP : DOWN; }

// `finite`, or what the terms of these kinds make of it.
__device__ inline double special(double finite, int kinds) {
    if (kinds == 0) return finite;
    if (kinds == UP) return infinity();
    return kinds == DOWN ? -infinity() : not_a_number();
}

// How the numbers of a line are cut into slices.
template <class T> struct Cut {
    double half = 1, inverse = 1;  // powers of two: half^2 is divided out first
    double top;                    // then this power of two is above all
    int kinds;                     // of what is not finite; that is cut as 0 is

    template <class Group, class Value> static __device__ Cut of(Value value, Index count) {
        Cut cut;
        double largest = 0;
        cut.kinds = 0;
        for (Index k = Group::first(); k < count; k += Group::step()) {
            T v = value(k);
            if (is_finite(v)) {
                largest = Larger()(largest, fabs(double(v)));
            } else {
                cut.kinds |= kind(v);
            }
        }
        largest = Group::template all<Larger>(largest);
        cut.kinds = Group::template all<Or>(cut.kinds);
        if (sizeof(T) == sizeof(double) && largest > 0x1p400) {
            cut.half = 0x1p300;
            cut.inverse = 0x1p-300;
        }
        if (sizeof(T) == sizeof(double) && largest < 0x1p-400) {
            cut.half = 0x1p-300;
            cut.inverse = 0x1p300;
        }
        cut.top = power_of_two(cut.scaled(largest));
        return cut;
    }

    __device__ double scaled(double v) const { return v * inverse * inverse; }

    // take(s, slice) for the slices of v, `bits` bits each.
    template <class Take> __device__ void slices(T v, int count, int bits, Take take) const {
        double rest = is_finite(v) ? scaled(double(v)) : 0, width = power(-bits), unit = SHIFTER;
        for (int s = 0; s < count; ++s) {
            unit = unit * width;
            double shift = top * unit, part = (rest + shift) - shift;
            take(s, part);
            rest = rest - part;
        }
    }
};

struct Exact {
    template <class T> static __device__ T exp(T x) { return T(exact_exp(double(x))); }
    template <class T> static __device__ T log(T x) { return T(exact_log(double(x))); }

    template <class T, class Group, class Value> static __device__ T sum(Value value, Index count) {
        int length = 0;  // of count - 1, in bits
        while ((count - 1) >> length > 0) ++length;
        int bits = length < 2 ? 51 : 53 - length, digits = sizeof(T) == sizeof(float) ? 24 : 53;
        int slices = (digits + length + bits - 1) / bits;
        Cut<T> cut = Cut<T>::template of<Group>(value, count);
        double sums[8] = {}, total = 0;  // 8 slices are enough for 2^40 terms
        for (Index k = Group::first(); k < count; k += Group::step()) {
            cut.slices(value(k), slices, bits, [&](int s, double part) { sums[s] += part; });
        }
        for (int s = slices - 1; s >= 0; --s) total = Group::template all<Plus>(sums[s]) + total;
        return T(special(total * cut.half * cut.half, cut.kinds));
    }
};

// -- elementwise

struct Identity {
    template <class T> __device__ T operator()(T x) const { return x; }
};

template <class Math> struct Exp {
    template <class T> __device__ T operator()(T x) const { return Math::exp(x); }
};

template <class Math> struct Log {
    template <class T> __device__ T operator()(T x) const { return Math::log(x); }
};

template <class Math> struct Sigmoid {  // exp only ever sees -|x|: it cannot overflow
    template <class T> __device__ T operator()(T x) const {
        T z = Math::exp(-fabs(x));
        T y = T(1) / (T(1) + z);
        return x >= 0 ? y : z * y;
    }
};

struct Relu {  // NaN stays NaN
    template <class T> __device__ T operator()(T x) const { return x <= 0 ? T(0) : x; }
};

template <class T, class Function>
__global__ void apply(const T* x, T* y, Index size) {
    for (Index i = thread(); i < size; i += threads()) y[i] = Function()(x[i]);
}

// What follows a product: y (N, M) + b (M,), and the activation, in place.
template <class T, class Activation>
__global__ void add_bias(T* y, const T* b, Index size, Index columns) {
    for (Index i = thread(); i < size; i += threads()) y[i] = Activation()(y[i] + b[i % columns]);
}

template <class T>
__global__ void sigmoid_backward(const T* dout, const T* y, T* dx, Index size) {
    for (Index i = thread(); i < size; i += threads()) dx[i] = dout[i] * (T(1) - y[i]) * y[i];
}

template <class T>
__global__ void relu_backward(const T* dout, const bool* mask, T* dx, Index size) {
    for (Index i = thread(); i < size; i += threads()) dx[i] = mask[i] ? T(0) : dout[i];
}

// W -= rate g: the product is rounded, then the difference, but in fast mode.
template <class T>
__global__ void descend(T* W, const T* g, T rate, Index size) {
    for (Index i = thread(); i < size; i += threads()) W[i] = W[i] - rate * g[i];
}

// -- rows: a block takes one after the other

template <class T> __device__ T row_maximum(const T* x, Index columns) {
    T top = x[0];
    for (Index j = Block::first(); j < columns; j += Block::step()) top = Larger()(top, x[j]);
    return Block::all<Larger>(top);
}

template <class T, class Math>
__device__ void softmax_row(const T* x, T* y, Index columns) {
    T top = row_maximum(x, columns);
    for (Index j = Block::first(); j < columns; j += Block::step()) y[j] = Math::exp(x[j] - top);
    T total = Math::template sum<T, Block>([=](Index j) { return y[j]; }, columns);
    for (Index j = Block::first(); j < columns; j += Block::step()) y[j] /= total;
}

template <class T, class Math>
__global__ void softmax(const T* x, T* y, Index rows, Index columns) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        softmax_row<T, Math>(x + i * columns, y + i * columns, columns);
    }
}

enum { SIGMOID, RELU, AFFINE };  // as in kernels.py

// The activation of x W + b, x (inputs,), W (inputs, outputs), by a block of 8 warps: each takes
// every eighth row of W, 32 columns at a time, and the first one adds up what they found.
template <class T, class Math>
__device__ void affine_row(
    const T* x, const T* W, const T* b, T* y, Index inputs, Index outputs, Index activation
) {
    __shared__ T parts[8][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (Index start = 0; start < outputs; start += 32) {
        Index j = start + lane;
        T total = 0;
        if (j < outputs) {
            for (Index k = warp; k < inputs; k += 8) total += x[k] * W[k * outputs + j];
        }
        parts[warp][lane] = total;
        __syncthreads();
        if (warp == 0 && j < outputs) {
            total = b[j];
            for (int part = 0; part < 8; ++part) total += parts[part][lane];
            if (activation == SIGMOID) total = Sigmoid<Math>()(total);
            if (activation == RELU) total = Relu()(total);
            y[j] = total;
        }
        __syncthreads();  // y is read next, and `parts` written to
    }
}

// A few rows through a whole stack: for each layer the table has the addresses of W and b, inputs,
// outputs and the activation. `between` has room for two of the widest outputs of each row.
template <class T, class Math>
__global__ void forward_rows(
    const T* x, const Index* table, T* between, T* out, Index rows, Index layers, Index widest,
    bool probabilities
) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        const T* at = x + i * table[2];
        T* to = out;
        for (Index l = 0; l < layers; ++l) {
            const Index* layer = table + 5 * l;
            const T* W = reinterpret_cast<const T*>(layer[0]);
            const T* b = reinterpret_cast<const T*>(layer[1]);
            bool last = l + 1 == layers;
            to = last ? out + i * layer[3] : between + (2 * i + l % 2) * widest;
            affine_row<T, Math>(at, W, b, to, layer[2], layer[3], layer[4]);
            at = to;
        }
        if (probabilities) softmax_row<T, Math>(to, to, table[5 * layers - 2]);
    }
}

// softmax(x), and the terms t log(y + 1e-7) of its cross-entropy error against t.
template <class T, class Math>
__global__ void softmax_with_terms(
    const T* x, const T* t, T* y, T* terms, Index rows, Index columns
) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        softmax_row<T, Math>(x + i * columns, y + i * columns, columns);
        for (Index j = Block::first(); j < columns; j += Block::step()) {
            Index at = i * columns + j;
            terms[at] = t[at] * Math::log(y[at] + LOG_OFFSET<T>);
        }
    }
}

// (y sum(r) - r) scale with r = t y / (y + 1e-7).
template <class T, class Math>
__global__ void softmax_with_loss_backward(
    const T* y, const T* t, T* dx, T scale, Index rows, Index columns
) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        const T *row = y + i * columns, *target = t + i * columns;
        T* r = dx + i * columns;
        for (Index j = Block::first(); j < columns; j += Block::step()) {
            r[j] = target[j] * row[j] / (row[j] + LOG_OFFSET<T>);
        }
        T total = Math::template sum<T, Block>([=](Index j) { return r[j]; }, columns);
        for (Index j = Block::first(); j < columns; j += Block::step()) {
            r[j] = (row[j] * total - r[j]) * scale;
        }
    }
}

// The cross-entropy error of each row's softmax, which is not stored.
template <class T, class Math>
__global__ void cross_entropies(const T* x, const T* t, T* losses, Index rows, Index columns) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        const T *row = x + i * columns, *target = t + i * columns;
        T top = row_maximum(row, columns);
        auto e = [=](Index j) { return Math::exp(row[j] - top); };
        T total = Math::template sum<T, Block>(e, columns);
        auto term = [=](Index j) { return target[j] * Math::log(e(j) / total + LOG_OFFSET<T>); };
        T loss = Math::template sum<T, Block>(term, columns);
        if (threadIdx.x == 0) losses[i] = -loss;
    }
}

template <class T, class Math>
__global__ void squared_errors(const T* x, const T* t, T* losses, Index rows, Index columns) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        auto square = [=](Index j) {
            T difference = x[i * columns + j] - t[i * columns + j];
            return difference * difference;
        };
        T sum = Math::template sum<T, Block>(square, columns);
        if (threadIdx.x == 0) losses[i] = T(0.5) * sum;
    }
}

// -- sums

template <class T, class Math>
__global__ void row_sums(const T* x, T* out, Index rows, Index columns) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        auto value = [=](Index j) { return x[i * columns + j]; };
        T sum = Math::template sum<T, Block>(value, columns);
        if (threadIdx.x == 0) out[i] = sum;
    }
}

// Sums of the columns over pieces of `piece` rows of x (rows, columns): out (pieces, columns).
// Piece blockIdx.y.
template <class T, class Math>
__global__ void column_sums(const T* x, T* out, Index rows, Index columns, Index piece) {
    Index j = tile_column(columns), start = blockIdx.y * piece;
    Index count = rows - start < piece ? rows - start : piece;
    auto value = [=](Index i) { return x[(start + i) * columns + j]; };
    T sum = Math::template sum<T, Tile>(value, count);
    if (threadIdx.y == 0) out[blockIdx.y * columns + j] = sum;
}

// -- the order-free product: slices of the rows of a and of the columns of b, then, once BLAS has
// multiplied them, their sum

// A line of a matrix of `size` elements, value(k) being its element at(k), into `slices` matrices.
template <class Group, class T, class At>
__device__ void cut_line(
    const T* a, At at, Index count, double* out, Index size, Index slices, Index bits,
    double* half, bool* finite
) {
    Cut<T> cut = Cut<T>::template of<Group>([=](Index k) { return a[at(k)]; }, count);
    for (Index k = Group::first(); k < count; k += Group::step()) {
        Index here = at(k);
        cut.slices(a[here], slices, bits, [=](int s, double part) { out[s * size + here] = part; });
    }
    if (Group::first() == 0) {
        *half = cut.half;
        *finite = cut.kinds == 0;
    }
}

template <class T>
__global__ void cut_rows(
    const T* a, double* out, double* half, bool* finite, Index slices, Index bits, Index rows,
    Index columns
) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        auto at = [=](Index k) { return i * columns + k; };
        Index size = rows * columns;
        cut_line<Block>(a, at, columns, out, size, slices, bits, half + i, finite + i);
    }
}

template <class T>
__global__ void cut_columns(
    const T* b, double* out, double* half, bool* finite, Index slices, Index bits, Index rows,
    Index columns
) {
    Index j = tile_column(columns), size = rows * columns;
    auto at = [=](Index k) { return k * columns + j; };
    cut_line<Tile>(b, at, rows, out, size, slices, bits, half + j, finite + j);
}

// out (N, M) = a (N, K) b (K, M) from the products of their slices. products holds, for each slice
// t of b in turn, the matrices A_s B_t for the slices s < slices - t of a.
template <class T>
__global__ void add_products(
    const double* products, const T* a, const T* b, const double* half_a, const double* half_b,
    const bool* finite_a, const bool* finite_b, T* out, Index slices, Index rows, Index contracted,
    Index columns
) {
    Index size = rows * columns;
    for (Index at = thread(); at < size; at += threads()) {
        Index i = at / columns, j = at % columns;
        auto product = [=](Index s, Index t) {
            return products[(t * slices - t * (t - 1) / 2 + s) * size + at];
        };
        double total = 0;
        for (Index order = slices - 1; order >= 0; --order) {
            double exact = product(0, order);
            for (Index s = 1; s <= order; ++s) exact = exact + product(s, order - s);
            total = exact + total;
        }
        double half = half_a[i] * half_b[j];
        int kinds = 0;
        if (!finite_a[i] || !finite_b[j]) {
            for (Index k = 0; k < contracted; ++k) {
                T x = a[i * contracted + k], y = b[k * columns + j];
                if (!is_finite(x) || !is_finite(y)) kinds |= kind(x * y);
            }
        }
        out[at] = T(special(total * half * half, kinds));
    }
}

// -- the incremental numerical gradient


struct Operation {  // a layer behind the perturbed one; W (in, out), then b (out,), from `at` on
    Index kind, at, in, out;
};

template <class Math> __device__ double activated(Index kind, double x) {
    return kind == SIGMOID ? Sigmoid<Math>()(x) : Relu()(x);
}

// The loss of the scores that score(0) to score(classes - 1) compute.
template <class Math, class Score>
__device__ double loss_of(Score score, const double* t, Index classes, bool cross_entropy) {
    if (!cross_entropy) {
        double sum = 0;
        for (Index c = 0; c < classes; ++c) {
            double difference = score(c) - t[c];
            sum += difference * difference;
        }
        return 0.5 * sum;
    }
    double top = score(0), total = 0;
    for (Index c = 1; c < classes; ++c) top = Larger()(top, score(c));
    for (Index c = 0; c < classes; ++c) total += Math::exp(score(c) - top);
    double loss = 0 * total;  // NaN stays NaN, whatever the targets
    for (Index c = 0; c < classes; ++c) {
        // Most targets are zeros, and a logarithm costs as much as the rest of the row.
        if (t[c] == 0) continue;
        loss -= t[c] * Math::log(Math::exp(score(c) - top) / total + LOG_OFFSET<double>);
    }
    return loss;
}

// One thread's units of a layer, in columns of `scratch` so that a warp's accesses are adjacent.
struct Units {
    double* first;
    __device__ double& operator[](Index unit) const { return first[unit * threads()]; }
};

// `units` (width) through the layers behind; returns where the scores are.
template <class Math>
__device__ Units rest_of_network(
    Units units, Units spare, Index width, const Operation* operations, Index count,
    const double* parameters
) {
    for (Index k = 0; k < count; ++k) {
        Operation layer = operations[k];
        if (layer.kind != AFFINE) {
            for (Index u = 0; u < width; ++u) units[u] = activated<Math>(layer.kind, units[u]);
            continue;
        }
        const double* W = parameters + layer.at;
        for (Index q = 0; q < layer.out; ++q) {
            double sum = W[layer.in * layer.out + q];
            for (Index p = 0; p < layer.in; ++p) sum += units[p] * W[p * layer.out + q];
            spare[q] = sum;
        }
        Units filled = spare;
        spare = units;
        units = filled;
        width = layer.out;
    }
    return units;
}

// The sums over `pieces` pieces of the samples of L(w + h) - L(w - h), out (pieces, D + 1, M).
// A thread takes one piece for one weight or bias at a time.
//
// x (N, D); a (N, M), the perturbed layer's output; z, that through the first `before`
// operations; after (N, Q), the output of the next affine layer, whose weights are W_columns
// (Q, M), or z if there is none (`last`); t (N, classes). scratch holds 2 `widest` numbers for
// each thread of the grid.
template <class Math>
__global__ void loss_differences(
    const double* x, const double* a, const double* z, const double* after,
    const double* W_columns, const double* t, const Operation* operations,
    const double* parameters, double* scratch, double* out, double h, bool cross_entropy,
    bool last, Index samples, Index inputs, Index columns, Index width, Index classes,
    Index before, Index behind, Index widest, Index pieces
) {
    Index weights = (inputs + 1) * columns;
    Units units{scratch + thread()}, spare{scratch + widest * threads() + thread()};
    for (Index item = thread(); item < pieces * weights; item += threads()) {
        Index piece = item / weights, i = item % weights / columns, j = item % columns;
        Index start = piece * samples / pieces, stop = (piece + 1) * samples / pieces;
        double difference = 0;
        for (Index n = start; n < stop; ++n) {
            double input = i < inputs ? x[n * inputs + i] : 1;
            if (input == 0) continue;  // nothing changes
            const double *row = after + n * width, *target = t + n * classes;
            for (int sign = 1; sign >= -1; sign -= 2) {
                double changed = a[n * columns + j] + sign * (h * input);
                for (Index k = 0; k < before; ++k) {
                    changed = activated<Math>(operations[k].kind, changed);
                }
                double change = changed - z[n * columns + j];
                auto unit = [=](Index q) {
                    if (last) return q == j ? changed : row[q];
                    return row[q] + change * W_columns[q * columns + j];
                };
                double loss;
                if (behind == 0) {
                    loss = loss_of<Math>(unit, target, classes, cross_entropy);
                } else {
                    for (Index q = 0; q < width; ++q) units[q] = unit(q);
                    Units scores = rest_of_network<Math>(
                        units, spare, width, operations + before, behind, parameters
                    );
                    auto score = [=](Index c) { return scores[c]; };
                    loss = loss_of<Math>(score, target, classes, cross_entropy);
                }
                difference += sign * loss;
            }
        }
        out[item] = difference;
    }
}
