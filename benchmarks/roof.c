/* What this machine can do at most, right now: it prints one line of JSON for every line it is sent.

   read   bytes per second that all threads read from memory, each its own long run
   bf16   operations per second of the bf16 dot product, operands in registers; 0 without the instruction
   int8   the same of the int8 dot product

   cc -O3 -march=native -pthread roof.c -o roof;  ./roof threads megabytes */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ROUNDS 3            /* the best of so many: a roof is what was possible */
#define CHAINS 12           /* independent sums, to hide the latency of one */
#define STEPS 8000000       /* of all chains */
#define LANE_OPERATIONS 2   /* a multiplication and an addition */

static int num_threads;
static size_t share_bytes;
static char *memory;
static pthread_barrier_t gate;
static volatile char sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void read_run(const char *begin, size_t bytes) {
    const uint64_t *p = (const uint64_t *)begin;
    uint64_t sums[64] = {0}; /* the compiler keeps them in vector registers */
    for (size_t i = 0; i + 64 <= bytes / 8; i += 64) {
        __builtin_prefetch(p + i + 512);
        for (int k = 0; k < 64; k++) sums[k] += p[i + k];
    }
    uint64_t all = 0;
    for (int k = 0; k < 64; k++) all += sums[k];
    sink = (char)all;
}

/* One step adds to CHAINS sums.  The instruction is written out, because compilers copy registers about otherwise.
   Each run returns the operations of one step; 0: there is no such instruction. */
#define CHAIN(instruction, k) __asm__ volatile(instruction " %2, %1, %0" : "+v"(sums[k]) : "v"(a), "v"(b))
#define FOUR(instruction, k) \
    CHAIN(instruction, k); CHAIN(instruction, k + 1); CHAIN(instruction, k + 2); CHAIN(instruction, k + 3)
#define STEP(instruction) FOUR(instruction, 0); FOUR(instruction, 4); FOUR(instruction, 8)

static double bf16_run(long steps) {
#if defined(__AVX512BF16__)
    __m512 sums[CHAINS];
    __m512i a = _mm512_set1_epi16(0x3f80), b = a; /* ones */
    for (int k = 0; k < CHAINS; k++) sums[k] = _mm512_setzero_ps();
    for (long i = 0; i < steps; i++) { STEP("vdpbf16ps"); }
    for (int k = 1; k < CHAINS; k++) sums[0] = _mm512_add_ps(sums[0], sums[k]);
    sink = (char)_mm512_reduce_add_ps(sums[0]);
    return CHAINS * 32.0 * LANE_OPERATIONS;
#else
    (void)steps;
    return 0;
#endif
}

static double int8_run(long steps) {
#if defined(__AVX512VNNI__)
    __m512i sums[CHAINS], a = _mm512_set1_epi8(1), b = a;
    for (int k = 0; k < CHAINS; k++) sums[k] = _mm512_setzero_si512();
    for (long i = 0; i < steps; i++) { STEP("vpdpbusd"); }
    for (int k = 1; k < CHAINS; k++) sums[0] = _mm512_add_epi32(sums[0], sums[k]);
    sink = (char)_mm512_reduce_add_epi32(sums[0]);
    return CHAINS * 64.0 * LANE_OPERATIONS;
#elif defined(__AVXVNNI__)
    __m256i sums[CHAINS], a = _mm256_set1_epi8(1), b = a;
    for (int k = 0; k < CHAINS; k++) sums[k] = _mm256_setzero_si256();
    for (long i = 0; i < steps; i++) { STEP("%{vex%} vpdpbusd"); }
    for (int k = 1; k < CHAINS; k++) sums[0] = _mm256_add_epi32(sums[0], sums[k]);
    sink = (char)_mm256_extract_epi8(sums[0], 0);
    return CHAINS * 32.0 * LANE_OPERATIONS;
#else
    (void)steps;
    return 0;
#endif
}

enum kind { READ, BF16, INT8 };
static enum kind wanted;
static int finished;

static double work(int thread) {
    if (wanted == READ) {
        read_run(memory + thread * share_bytes, share_bytes);
        return (double)share_bytes;
    }
    return (wanted == BF16 ? bf16_run(STEPS) : int8_run(STEPS)) * STEPS;
}

static void *helper(void *index) {
    for (;;) {
        pthread_barrier_wait(&gate);
        if (finished) return NULL;
        work((int)(intptr_t)index);
        pthread_barrier_wait(&gate);
    }
}

static double best_rate(enum kind kind) {
    double best = 0;
    wanted = kind;
    for (int i = 0; i < ROUNDS; i++) {
        double begin = now(); /* before the gate: nobody may have worked for free */
        pthread_barrier_wait(&gate);
        double done = work(0);
        pthread_barrier_wait(&gate);
        double rate = done * num_threads / (now() - begin);
        if (rate > best) best = rate;
    }
    return best;
}

int main(int argc, char **argv) {
    if (argc != 3 || (num_threads = atoi(argv[1])) < 1 || atol(argv[2]) < 1) {
        fprintf(stderr, "usage: roof threads megabytes\n");
        return 2;
    }
    share_bytes = ((size_t)atol(argv[2]) << 20) / num_threads / 4096 * 4096;
    memory = mmap(NULL, share_bytes * num_threads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return perror("mmap"), 1;
    madvise(memory, share_bytes * num_threads, MADV_HUGEPAGE);
    uint64_t word = 1; /* no two pages alike: a host may keep equal pages once */
    for (uint64_t *p = (uint64_t *)memory; (char *)p < memory + share_bytes * num_threads; p++)
        *p = word = word * 6364136223846793005u + 1442695040888963407u;
    pthread_barrier_init(&gate, NULL, num_threads);
    pthread_t *threads = calloc(num_threads, sizeof *threads);
    for (int i = 1; i < num_threads; i++) pthread_create(&threads[i], NULL, helper, (void *)(intptr_t)i);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        double read = best_rate(READ), bf16 = best_rate(BF16), int8 = best_rate(INT8);
        printf("{\"read\": %.4g, \"bf16\": %.4g, \"int8\": %.4g}\n", read, bf16, int8);
        fflush(stdout);
    }
    finished = 1;
    pthread_barrier_wait(&gate);
    return 0;
}
