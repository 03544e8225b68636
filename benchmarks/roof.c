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

/* Every line is fetched ahead: fetching one in eight reads a fifth slower than fetching none (Zen 4). */
typedef uint64_t line_of_cache __attribute__((vector_size(64)));
#define AHEAD 4096

static void read_run(const char *begin, size_t bytes) {
    const line_of_cache *p = (const line_of_cache *)begin;
    line_of_cache a = {0}, b = a, c = a, d = a;
    for (size_t i = 0; i + 4 <= bytes / 64; i += 4) {
        for (int k = 0; k < 4; k++) __builtin_prefetch((const char *)(p + i + k) + AHEAD, 0, 0);
        a += p[i], b += p[i + 1], c += p[i + 2], d += p[i + 3];
    }
    a += b + c + d;
    sink = (char)a[0];
}

/* One step adds to CHAINS sums.  The instruction is written out, because compilers copy registers about otherwise, and
   the sums are variables, because a compiler may keep an array in memory: on Zen 4 its stores take half of the time.
   Each run returns the operations of one step; 0: there is no such instruction. */
#define CHAIN(instruction, sum) __asm__ volatile(instruction " %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
#define FOUR(instruction, w, x, y, z) \
    CHAIN(instruction, w); CHAIN(instruction, x); CHAIN(instruction, y); CHAIN(instruction, z)
#define STEPS_OF(instruction, vector, zero, first)                                                           \
    vector s0 = zero, s1 = zero, s2 = zero, s3 = zero, s4 = zero, s5 = zero, s6 = zero, s7 = zero, s8 = zero, \
           s9 = zero, s10 = zero, s11 = zero;                                                                \
    for (long i = 0; i < steps; i++) {                                                                       \
        FOUR(instruction, s0, s1, s2, s3);                                                                   \
        FOUR(instruction, s4, s5, s6, s7);                                                                   \
        FOUR(instruction, s8, s9, s10, s11);                                                                 \
    }                                                                                                        \
    sink = (char)(first(s0) + first(s1) + first(s2) + first(s3) + first(s4) + first(s5) + first(s6) + first(s7) + \
                  first(s8) + first(s9) + first(s10) + first(s11))

static double bf16_run(long steps) {
#if defined(__AVX512BF16__)
    __m512i a = _mm512_set1_epi16(0x3f80), b = a; /* ones */
    STEPS_OF("vdpbf16ps", __m512, _mm512_setzero_ps(), _mm512_cvtss_f32);
    return CHAINS * 32.0 * LANE_OPERATIONS;
#else
    (void)steps;
    return 0;
#endif
}

static double int8_run(long steps) {
#if defined(__AVX512VNNI__)
    __m512i a = _mm512_set1_epi8(1), b = a;
    STEPS_OF("vpdpbusd", __m512i, _mm512_setzero_si512(), _mm512_cvtsi512_si32);
    return CHAINS * 64.0 * LANE_OPERATIONS;
#elif defined(__AVXVNNI__)
    __m256i a = _mm256_set1_epi8(1), b = a;
    STEPS_OF("%{vex%} vpdpbusd", __m256i, _mm256_setzero_si256(), _mm256_cvtsi256_si32);
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
