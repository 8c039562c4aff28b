// The CUDA kernels that are written by hand, for float and double: sums, products, and the frames
// that operations stand in. What an operation computes is not here: generated.py beside this file
// writes it from the operation's formula, as a structure that a kernel takes for a template
// parameter, or as a kernel of its own, and appends it to this text. So it does `Fast` and `Exact`,
// the two ways of `Math`, with exp, log and their kin.
//
// Every array is packed in C order, every index has 64 bits. Elementwise kernels stride over the
// grid; a kernel over rows gives each row to a block of whole warps. NaN, infinities and -0 come
// out as they do of the generic forms in xnet/backend.py.
//
// kernels.py compiles the instances it launches, by NVRTC, with subnormals kept and division
// correctly rounded. Nothing here includes a header, so that the tests can also compile it for the
// host.

typedef long long Index;

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

// One thread that has a line to itself.
struct Alone {
    static __device__ Index first() { return 0; }
    static __device__ Index step() { return 1; }

    template <class Combine, class T> static __device__ T all(T value) { return value; }
};

// -- what decides the bits, in fast mode: sums as they come

struct Plain {
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

// What the formulas of exp and log take: see `ELEMENTARY` there.

// a 2^n, rounded once, for an integer n in [-1080, 1030].
__device__ inline double scale(double a, double n) {
    Index whole = n == n ? Index(n) : 0, half = whole >> 1;
    return a * power(half) * power(whole - half);
}

// The n of a power of two 2^n.
__device__ inline double logarithm(double x) {
    bool subnormal = x < 0x1p-1022;
    Index bits = __double_as_longlong(subnormal ? x * 0x1p60 : x);
    return double((bits >> 52) - 1023 - (subnormal ? 60 : 0));
}

// x = fraction 2^exponent, the former within [1/2, 1], for a finite x above 0.
__device__ inline double fraction(double x) {
    if (x > 0x1p900) x = x * 0x1p-200;
    return x / power_of_two(x);
}

__device__ inline double exponent(double x) {
    if (x > 0x1p900) return logarithm(power_of_two(x * 0x1p-200)) + 200;
    return logarithm(power_of_two(x));
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
        double rest = is_finite(v) ? scaled(double(v)) : 0, width = power(-bits);
        double unit = 0x1.8p52;  // adding it rounds to an integer
        for (int s = 0; s < count; ++s) {
            unit = unit * width;
            double shift = top * unit, part = (rest + shift) - shift;
            take(s, part);
            rest = rest - part;
        }
    }
};

struct Sliced {
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

// The largest of value(0) to value(count - 1), NaN where one of them is.
template <class T, class Group, class Value> __device__ T largest(Value value, Index count) {
    T top = T(-infinity());
    for (Index k = Group::first(); k < count; k += Group::step()) top = Larger()(top, value(k));
    return Group::template all<Larger>(top);
}

// -- layers: `Function` is what follows a product, with the numbers that its formulas take

// Function(y + b), y (N, M) and b (M,), in place.
template <class T, class Math, class Function, class... Number>
__global__ void add_bias(T* y, const T* b, Index size, Index columns, Number... number) {
    const T numbers[] = {number..., T(0)};
    for (Index i = thread(); i < size; i += threads()) {
        y[i] = Function::template of<Math>(numbers, y[i] + b[i % columns]);
    }
}

template <class T> struct Layer {  // Function number `function` of x W + b, W (inputs, outputs)
    const T *W, *b;
    Index inputs, outputs, function, numbers;
};

// One layer of a row x, by a block of 8 warps: each takes every eighth row of W, 32 columns at a
// time, and the first one adds up what they found.
template <class Math, class Functions, class T>
__device__ void layer_row(Layer<T> layer, const T* numbers, const T* x, T* y) {
    __shared__ T parts[8][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (Index start = 0; start < layer.outputs; start += 32) {
        Index j = start + lane;
        T total = 0;
        if (j < layer.outputs) {
            for (Index k = warp; k < layer.inputs; k += 8) {
                total += x[k] * layer.W[k * layer.outputs + j];
            }
        }
        parts[warp][lane] = total;
        __syncthreads();
        if (warp == 0 && j < layer.outputs) {
            total = layer.b[j];
            for (int part = 0; part < 8; ++part) total += parts[part][lane];
            y[j] = Functions::template of<Math>(layer.function, numbers + layer.numbers, total);
        }
        __syncthreads();  // y is read next, and `parts` written to
    }
}

// A few rows through all `layers`, and what the loss predicts of the scores. `between` has room for
// two of the widest outputs of each row.
template <class T, class Math, class Functions, class Predicted, class... Number>
__global__ void forward_rows(
    const T* x, const Layer<T>* layers, const T* numbers, T* between, T* out, Index rows,
    Index count, Index widest, Number... number
) {
    const T of_loss[] = {number..., T(0)};
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        const T* at = x + i * layers[0].inputs;
        Index columns = layers[count - 1].outputs;
        T* scores = out + i * columns;
        for (Index l = 0; l < count; ++l) {
            T* to = l + 1 == count ? scores : between + (2 * i + l % 2) * widest;
            layer_row<Math, Functions>(layers[l], numbers, at, to);
            at = to;
        }
        // No thread writes a score before all have read those that its own needs.
        Predicted::template along<Math, Block>(
            of_loss, columns, [=](Index j) { return scores[j]; },
            [=](Index j, T value) { scores[j] = value; }
        );
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

// A layer behind the perturbed one: a product W (in, out) with b (out,), where `function` is below
// 0, else a function with its numbers; they stand in `parameters` from `at` on.
struct Operation {
    Index function, at, in, out;
};

// One thread's units of a layer, in columns of `scratch` so that a warp's accesses are adjacent.
struct Units {
    double* first;
    __device__ double& operator[](Index unit) const { return first[unit * threads()]; }
};

// `units` (width) through the layers behind; returns where the scores are.
template <class Math, class Functions>
__device__ Units rest_of_network(
    Units units, Units spare, Index width, const Operation* operations, Index count,
    const double* parameters
) {
    for (Index k = 0; k < count; ++k) {
        Operation layer = operations[k];
        const double* W = parameters + layer.at;
        if (layer.function >= 0) {
            for (Index u = 0; u < width; ++u) {
                units[u] = Functions::template of<Math>(layer.function, W, units[u]);
            }
            continue;
        }
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
// operations; after (N, Q), the output of the next product, whose weights are W_columns
// (Q, M), or z if there is none (`last`); t (N, classes). scratch holds 2 `widest` numbers for
// each thread of the grid.
template <class Math, class Functions, class Loss, class... Number>
__global__ void loss_differences(
    const double* x, const double* a, const double* z, const double* after,
    const double* W_columns, const double* t, const Operation* operations,
    const double* parameters, double* scratch, double* out, double h, bool last, Index samples,
    Index inputs, Index columns, Index width, Index classes, Index before, Index behind,
    Index widest, Index pieces, Number... number
) {
    const double of_loss[] = {number..., 0};
    Index weights = (inputs + 1) * columns;
    Units units{scratch + thread()}, spare{scratch + widest * threads() + thread()};
    for (Index item = thread(); item < pieces * weights; item += threads()) {
        Index piece = item / weights, i = item % weights / columns, j = item % columns;
        Index start = piece * samples / pieces, stop = (piece + 1) * samples / pieces;
        double difference = 0;
        for (Index n = start; n < stop; ++n) {
            double input = i < inputs ? x[n * inputs + i] : 1;
            if (input == 0) continue;  // nothing changes
            const double* row = after + n * width;
            auto target = [=](Index c) { return t[n * classes + c]; };
            for (int sign = 1; sign >= -1; sign -= 2) {
                double changed = a[n * columns + j] + sign * (h * input);
                for (Index k = 0; k < before; ++k) {
                    const double* numbers = parameters + operations[k].at;
                    changed = Functions::template of<Math>(operations[k].function, numbers, changed);
                }
                double change = changed - z[n * columns + j];
                auto unit = [=](Index q) {
                    if (last) return q == j ? changed : row[q];
                    return row[q] + change * W_columns[q * columns + j];
                };
                auto add = [&](Index, double loss) { difference += sign * loss; };
                if (behind == 0) {
                    Loss::template along<Math, Alone>(of_loss, classes, unit, target, add);
                } else {
                    for (Index q = 0; q < width; ++q) units[q] = unit(q);
                    Units scores = rest_of_network<Math, Functions>(
                        units, spare, width, operations + before, behind, parameters
                    );
                    auto score = [=](Index c) { return scores[c]; };
                    Loss::template along<Math, Alone>(of_loss, classes, score, target, add);
                }
            }
        }
        out[item] = difference;
    }
}
