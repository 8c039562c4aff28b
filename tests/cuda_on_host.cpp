// Runs a kernel on the host, thread by thread: a test's stand-in for a device.
//
// A block's threads run one after the other. One that must wait for others, at __syncthreads or a
// warp shuffle, gives way and goes on when all have come: each has a stack of its own from then on.
// A warp runs as far ahead of the others as barriers let it, the first one or the last one first:
// where a barrier is missing, results change. Threads that do not all come to the same barrier are
// an error, not a hang.

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>
#include <setjmp.h>
#include <ucontext.h>

#include "cuda_on_host.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

enum class State { running, at_block_barrier, at_warp_barrier, done };

struct Fiber {  // a stack, and the thread that runs on it
    jmp_buf place;
    std::unique_ptr<char[]> stack{new char[stack_size]};
    unsigned thread = 0;
    dim3 index{};
    bool idle = false;  // it waits in `fiber_main` for threads to run
    static constexpr size_t stack_size = 1 << 17;
};

struct Block {
    void (*kernel)(void**) = nullptr;
    void** arguments = nullptr;
    unsigned count = 0, next = 0;
    bool descending = false;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<State> states;                 // by thread
    std::vector<Fiber*> waiting;               // the stack of each thread that has given way
    std::vector<bool> odd;                     // whether a thread's last shuffle was an odd one
    std::vector<unsigned long long> exchange;  // what a shuffle passes on, by that and by thread
    Fiber* current = nullptr;
    jmp_buf scheduler;
    std::string error;
};

static Block block;

static void fiber_main() {
    Fiber* self = block.current;
    for (;;) {  // run threads until none is left; one that waited is done by its own fiber
        if (block.next == block.count) {
            self->idle = true;
            if (_setjmp(self->place) == 0) _longjmp(block.scheduler, 1);
            self->idle = false;
            continue;
        }
        unsigned turn = block.next++, thread = block.descending ? block.count - 1 - turn : turn;
        self->thread = thread;
        self->index = {
            thread % blockDim.x, thread / blockDim.x % blockDim.y,
            thread / blockDim.x / blockDim.y
        };
        threadIdx = self->index;
        block.kernel(block.arguments);
        block.states[self->thread] = State::done;
    }
}

static void give_way(State state) {
    Fiber* self = block.current;
    block.states[self->thread] = state;
    block.waiting[self->thread] = self;
    // swapcontext would do, but for a system call at each switch.
    if (_setjmp(self->place) == 0) _longjmp(block.scheduler, 1);
    threadIdx = self->index;
}

static void resume(Fiber* fiber) {
    block.current = fiber;
    if (_setjmp(block.scheduler) == 0) _longjmp(fiber->place, 1);
}

// Start threads on the stack of this number, until one waits.
static void start(size_t number) {
    if (number == block.fibers.size()) block.fibers.push_back(std::make_unique<Fiber>());
    Fiber* fiber = block.fibers[number].get();
    if (fiber->idle) return resume(fiber);
    block.current = fiber;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber->stack.get();
    context.uc_stack.ss_size = Fiber::stack_size;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
    if (_setjmp(block.scheduler) == 0) setcontext(&context);
}

// Let the threads in [first, last) go on that wait, if all of them wait at this barrier.
static bool release(unsigned first, unsigned last, State barrier) {
    for (unsigned t = first; t < last; ++t) {
        if (block.states[t] != barrier) return false;
    }
    for (unsigned t = first; t < last; ++t) block.states[t] = State::running;
    return true;
}

// Let a warp run until its threads wait for other warps; whether any of them went on.
static bool run_warp(unsigned first, unsigned last) {
    bool progress = false;
    for (bool again = true; again;) {
        again = false;
        for (unsigned k = first; k < last; ++k) {
            unsigned thread = block.descending ? first + last - 1 - k : k;
            if (block.states[thread] == State::running) {
                resume(block.waiting[thread]);
                again = progress = true;
            }
        }
        // A warp that is not whole cannot shuffle.
        if (last - first == 32 && release(first, last, State::at_warp_barrier)) again = true;
    }
    return progress;
}

static bool run_block() {
    block.next = 0;
    block.states.assign(block.count, State::running);
    block.waiting.assign(block.count, nullptr);
    block.odd.assign(block.count, false);
    block.exchange.assign(2 * block.count, 0);
    for (size_t used = 0; block.next < block.count; ++used) start(used);
    unsigned warps = (block.count + 31) / 32;
    for (;;) {
        bool progress = false, done = true;
        for (unsigned k = 0; k < warps; ++k) {
            unsigned first = 32 * (block.descending ? warps - 1 - k : k);
            progress |= run_warp(first, std::min(first + 32, block.count));
        }
        for (State state : block.states) done &= state == State::done;
        if (done) return true;
        if (!release(0, block.count, State::at_block_barrier) && !progress) {
            block.error = "threads wait at a barrier that others do not come to";
            return false;
        }
    }
}

}  // namespace host

extern "C" const char* launch(
    void (*kernel)(void**), const unsigned* grid, const unsigned* threads, void** arguments,
    bool descending
) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads[0], threads[1], threads[2]};
    host::block.kernel = kernel;
    host::block.arguments = arguments;
    host::block.count = threads[0] * threads[1] * threads[2];
    host::block.descending = descending;
    host::block.error.clear();
    size_t blocks = size_t(grid[0]) * grid[1] * grid[2];
    for (size_t b = 0; b < blocks && host::block.error.empty(); ++b) {
        size_t i = descending ? blocks - 1 - b : b;
        blockIdx = {
            unsigned(i % grid[0]), unsigned(i / grid[0] % grid[1]), unsigned(i / grid[0] / grid[1])
        };
        host::run_block();
    }
    return host::block.error.c_str();
}

// -- what a kernel calls

void __syncthreads() { host::give_way(host::State::at_block_barrier); }

void host::exchange(void* value, size_t size, int lanes) {
    unsigned self = block.current->thread;
    block.odd[self] = !block.odd[self];
    // Of two shuffles in a row, the second writes elsewhere: no thread need wait for those that
    // still read what the first wrote.
    auto* passed = &block.exchange[block.odd[self] ? block.count : 0];
    std::memcpy(&passed[self], value, size);
    give_way(State::at_warp_barrier);
    std::memcpy(value, &passed[self ^ unsigned(lanes)], size);
}
