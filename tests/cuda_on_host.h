// What kernels.cu sees when it is compiled for the host: CUDA's words, as far as it uses them.
//
// cuda_on_host.cpp runs what comes of it. This is compiled with every kernel: it holds little.

#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::exp;
using std::expm1;
using std::fabs;
using std::log;
using std::log1p;
using std::sqrt;

void __syncthreads();

namespace host {

// A value for that of the thread whose number differs by the bits of `lanes`.
void exchange(void* value, size_t size, int lanes);

}  // namespace host

template <class T> T __shfl_xor_sync(unsigned, T value, int lanes) {
    host::exchange(&value, sizeof value, lanes);
    return value;
}

inline double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline long long __double_as_longlong(double value) {
    long long bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// -- entry points: the types of the parameters, and a call with CUDA's array of addresses

namespace host {

// As NumPy has it, one letter and the bytes of a number; and a * for an address.
template <class T> void spell(char*& text) {
    if constexpr (std::is_pointer_v<T>) {
        spell<std::remove_cv_t<std::remove_pointer_t<T>>>(text);
        *text++ = '*';
    } else if constexpr (std::is_class_v<T>) {
        spell<long long>(text);  // a structure is passed as whole numbers of 64 bits
    } else {
        *text++ = std::is_same_v<T, bool> ? 'b' : std::is_floating_point_v<T> ? 'f' : 'i';
        *text++ = '0' + sizeof(T);
    }
}

// The types of a kernel's parameters, a space behind each.
template <class... T> const char* signature(void (*)(T...)) {
    static char text[6 * sizeof...(T) + 1], *end = text;
    if (end == text) ((spell<T>(end), *end++ = ' '), ...);
    return text;
}

template <class... T, size_t... i>
void call(void (*kernel)(T...), void** arguments, std::index_sequence<i...>) {
    kernel(*static_cast<std::remove_cv_t<T>*>(arguments[i])...);
}

template <class... T> void call(void (*kernel)(T...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<T...>());
}

}  // namespace host
