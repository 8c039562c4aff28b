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

// -- elementwise

struct Identity {
    template <class T> __device__ T operator()(T x) const { return x; }
};

struct Sigmoid {  // exp only ever sees -|x|: it cannot overflow
    template <class T> __device__ T operator()(T x) const {
        T z = exp(-fabs(x));
        T y = T(1) / (T(1) + z);
        return x >= 0 ? y : z * y;
    }
};

struct Relu {  // NaN stays NaN
    template <class T> __device__ T operator()(T x) const { return x <= 0 ? T(0) : x; }
};

template <class T, class Activation>
__global__ void activate(const T* x, T* y, Index size) {
    for (Index i = thread(); i < size; i += threads()) y[i] = Activation()(x[i]);
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

// -- reductions over a block

struct Plus {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};

struct Larger {  // NaN where one of the two is, as NumPy's maximum
    template <class T> __device__ T operator()(T a, T b) const {
        return a == a && !(b <= a) ? b : a;
    }
};

// Every thread's `value` combined; every thread has the result. The block is of whole warps.
template <class Combine, class T> __device__ T over_block(T value) {
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

// -- rows: a block takes one after the other, its threads stride over the columns

template <class T> __device__ T row_maximum(const T* x, Index columns) {
    T top = x[0];
    for (Index j = threadIdx.x; j < columns; j += blockDim.x) top = Larger()(top, x[j]);
    return over_block<Larger>(top);
}

template <class T> __device__ void softmax_row(const T* x, T* y, Index columns) {
    T top = row_maximum(x, columns), total = 0;
    for (Index j = threadIdx.x; j < columns; j += blockDim.x) total += y[j] = exp(x[j] - top);
    total = over_block<Plus>(total);
    for (Index j = threadIdx.x; j < columns; j += blockDim.x) y[j] /= total;
}

template <class T>
__global__ void softmax(const T* x, T* y, Index rows, Index columns) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        softmax_row(x + i * columns, y + i * columns, columns);
    }
}

// softmax(x) and each row's cross-entropy error against t.
template <class T>
__global__ void softmax_with_loss(
    const T* x, const T* t, T* y, T* losses, Index rows, Index columns
) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        const T* target = t + i * columns;
        T* row = y + i * columns;
        softmax_row(x + i * columns, row, columns);
        T sum = 0;
        for (Index j = threadIdx.x; j < columns; j += blockDim.x) {
            sum += target[j] * log(row[j] + LOG_OFFSET<T>);
        }
        sum = over_block<Plus>(sum);
        if (threadIdx.x == 0) losses[i] = -sum;
    }
}

// (y sum(r) - r) scale with r = t y / (y + 1e-7).
template <class T>
__global__ void softmax_with_loss_backward(
    const T* y, const T* t, T* dx, T scale, Index rows, Index columns
) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        const T *row = y + i * columns, *target = t + i * columns;
        T *out = dx + i * columns, total = 0;
        for (Index j = threadIdx.x; j < columns; j += blockDim.x) {
            total += out[j] = target[j] * row[j] / (row[j] + LOG_OFFSET<T>);
        }
        total = over_block<Plus>(total);
        for (Index j = threadIdx.x; j < columns; j += blockDim.x) {
            out[j] = (row[j] * total - out[j]) * scale;
        }
    }
}

// The cross-entropy error of each row's softmax, which is not stored.
template <class T>
__global__ void cross_entropies(const T* x, const T* t, T* losses, Index rows, Index columns) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        const T *row = x + i * columns, *target = t + i * columns;
        T top = row_maximum(row, columns), total = 0, sum = 0;
        for (Index j = threadIdx.x; j < columns; j += blockDim.x) total += exp(row[j] - top);
        total = over_block<Plus>(total);
        for (Index j = threadIdx.x; j < columns; j += blockDim.x) {
            sum += target[j] * log(exp(row[j] - top) / total + LOG_OFFSET<T>);
        }
        sum = over_block<Plus>(sum);
        if (threadIdx.x == 0) losses[i] = -sum;
    }
}

template <class T>
__global__ void squared_errors(const T* x, const T* t, T* losses, Index rows, Index columns) {
    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {
        T sum = 0;
        for (Index j = threadIdx.x; j < columns; j += blockDim.x) {
            T difference = x[i * columns + j] - t[i * columns + j];
            sum += difference * difference;
        }
        sum = over_block<Plus>(sum);
        if (threadIdx.x == 0) losses[i] = T(0.5) * sum;
    }
}

// Sums over pieces of `piece` rows of x (rows, columns): out (pieces, columns). A block of
// 32 x 8 threads takes 32 columns, and 8 rows at a time, of piece blockIdx.y.
template <class T>
__global__ void column_sums(const T* x, T* out, Index rows, Index columns, Index piece) {
    __shared__ T parts[8][32];
    Index j = Index(blockIdx.x) * 32 + threadIdx.x, end = (Index(blockIdx.y) + 1) * piece;
    T sum = 0;
    if (j < columns) {
        Index stop = end < rows ? end : rows;
        for (Index i = end - piece + threadIdx.y; i < stop; i += 8) sum += x[i * columns + j];
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || j >= columns) return;
    for (int row = 1; row < 8; ++row) sum += parts[row][threadIdx.x];
    out[blockIdx.y * columns + j] = sum;
}

// -- the incremental numerical gradient

enum { SIGMOID, RELU, AFFINE };  // as in kernels.py

struct Operation {  // a layer behind the perturbed one; W (in, out), then b (out,), from `at` on
    Index kind, at, in, out;
};

__device__ inline double activated(Index kind, double x) {
    return kind == SIGMOID ? Sigmoid()(x) : Relu()(x);
}

// The loss of the scores that score(0) to score(classes - 1) compute.
template <class Score>
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
    for (Index c = 0; c < classes; ++c) total += exp(score(c) - top);
    double loss = 0 * total;  // NaN stays NaN, whatever the targets
    for (Index c = 0; c < classes; ++c) {
        // Most targets are zeros, and a logarithm costs as much as the rest of the row.
        if (t[c] != 0) loss -= t[c] * log(exp(score(c) - top) / total + LOG_OFFSET<double>);
    }
    return loss;
}

// One thread's units of a layer, in columns of `scratch` so that a warp's accesses are adjacent.
struct Units {
    double* first;
    __device__ double& operator[](Index unit) const { return first[unit * threads()]; }
};

// `units` (width) through the layers behind; returns where the scores are.
__device__ inline Units rest_of_network(
    Units units, Units spare, Index width, const Operation* operations, Index count,
    const double* parameters
) {
    for (Index k = 0; k < count; ++k) {
        Operation layer = operations[k];
        if (layer.kind != AFFINE) {
            for (Index u = 0; u < width; ++u) units[u] = activated(layer.kind, units[u]);
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
                for (Index k = 0; k < before; ++k) changed = activated(operations[k].kind, changed);
                double change = changed - z[n * columns + j];
                auto unit = [=](Index q) {
                    if (last) return q == j ? changed : row[q];
                    return row[q] + change * W_columns[q * columns + j];
                };
                double loss;
                if (behind == 0) {
                    loss = loss_of(unit, target, classes, cross_entropy);
                } else {
                    for (Index q = 0; q < width; ++q) units[q] = unit(q);
                    Units scores = rest_of_network(
                        units, spare, width, operations + before, behind, parameters
                    );
                    auto score = [=](Index c) { return scores[c]; };
                    loss = loss_of(score, target, classes, cross_entropy);
                }
                difference += sign * loss;
            }
        }
        out[item] = difference;
    }
}
