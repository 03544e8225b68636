// The threads that run operations, and sequences of operations.
//
// The team is the one that torch uses (its OpenMP runtime, lent to us by two function addresses): two teams of threads
// on the same cores would keep each other from running.  Without it, threads of our own wait for work.
#pragma once
#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.hpp"

struct Operation {
    Phase phase;
    Args args;
    int64_t shared_per_panel;  // bytes of shared scratch for 16 rows
    int64_t shared;            // and for any number
    int64_t own;               // bytes of scratch for each thread
};

class Scratch {
   public:
    char* at_least(int64_t bytes) {
        if (bytes > size) {
            std::free(memory);
            size = (bytes + 4095) / 4096 * 4096;
            memory = (char*)std::aligned_alloc(4096, size);
            if (!memory) size = 0;
        }
        return memory;
    }
    ~Scratch() { std::free(memory); }

   private:
    char* memory = nullptr;
    int64_t size = 0;
};

class Team {
   public:
    using Region = void (*)(void (*)(void*), void*, unsigned, unsigned);
    using Number = int (*)();

    // Without addresses, `threads` - 1 threads are started beside the caller's.
    void set(int count, Region region_, Number number_, Number members_) {
        threads = std::min(count, (int)MEMBERS);
        region = region_, number = number_, members = members_;
        while (!region && (int)helpers.size() < threads - 1) {
            int id = (int)helpers.size() + 1;
            helpers.emplace_back([this, id, seen = call.load()] { help(id, seen); });
            helpers.back().detach();
        }
    }

    // Run the operations one after another for so many rows, with at most `wanted` threads.  False if memory for
    // scratch is short.
    bool run(const Operation* first, size_t count, int wanted, int64_t rows_) {
        operations = first, num_operations = count, rows = rows_;
        running = std::min(wanted, threads);
        int64_t panels = (rows + 15) / 16, shared_bytes = 0, own_bytes = 0;
        for (size_t i = 0; i < count; i++) {
            shared_bytes = std::max(shared_bytes, first[i].shared_per_panel * panels + first[i].shared);
            own_bytes = std::max(own_bytes, first[i].own);
        }
        own_bytes = (own_bytes + 4095) / 4096 * 4096;
        if (shared_bytes && !shared.at_least(shared_bytes)) return false;
        if (own_bytes && !own.at_least(own_bytes * running)) return false;
        own_size = own_bytes;
        next[0] = next[1] = 0;
        arrived = 0;
        if (running == 1) {
            work(0, 1);
        } else if (region) {
            region([](void* self) { ((Team*)self)->work(((Team*)self)->number(), ((Team*)self)->members()); }, this,
                   running, 0);
        } else {
            call.store((call.load(std::memory_order_relaxed) | MEMBERS) + 1 + running, std::memory_order_release);
            { std::lock_guard<std::mutex> hold(lock); }
            wake.notify_all();
            work(0, running);
        }
        return true;
    }

    int threads = 1;

   private:
    // Behind the last barrier nothing of the run is read: by then the caller may be preparing the next one.
    void work(int thread, int count) {
        const Operation* first = operations;
        for (size_t i = 0, end = num_operations; i < end; i++) {
            const Operation& op = first[i];
            op.phase(op.args, {thread, count, rows, &next[i & 1], shared.at_least(0), own.at_least(0) + thread * own_size});
            barrier(count, i & 1);
        }
    }

    // The last to arrive readies the counter that the operation after the next one uses.
    void barrier(int count, int used) {
        if (count == 1) {
            next[used].store(0, std::memory_order_relaxed);
            return;
        }
        uint32_t now = passed.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
            arrived.store(0, std::memory_order_relaxed);
            next[used].store(0, std::memory_order_relaxed);
            passed.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; passed.load(std::memory_order_acquire) == now; spins++) pause(spins);
    }

    void help(int id, uint32_t seen) {
        for (uint32_t now;; seen = now) {
            for (int spins = 0; (now = call.load(std::memory_order_acquire)) == seen && spins < 20000; spins++) pause(spins);
            if (now == seen) {
                std::unique_lock<std::mutex> hold(lock);
                wake.wait(hold, [&] { return (now = call.load(std::memory_order_acquire)) != seen; });
            }
            if (int count = now & MEMBERS; id < count) work(id, count);
        }
    }

    // A thread that waits long may be keeping the one it waits for off its core.
    static void pause(int spins) {
        if (spins % 4096 == 4095) {
            std::this_thread::yield();
            return;
        }
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    Region region = nullptr;
    Number number = nullptr, members = nullptr;
    std::vector<std::thread> helpers;
    std::mutex lock;
    std::condition_variable wake;
    // The number of the run, and in the low bits how many threads take part: read at once, so that a thread which is
    // late, because the run went on without it, does not take the next run's number of threads for this one's.
    static constexpr uint32_t MEMBERS = 1023;
    std::atomic<uint32_t> call{0};

    const Operation* operations = nullptr;
    size_t num_operations = 0;
    int64_t rows = 0, own_size = 0;
    int running = 1;
    Scratch shared, own;
    alignas(64) std::atomic<int64_t> next[2];
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> passed{0};
};
