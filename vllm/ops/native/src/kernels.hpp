// What kernels are given, and the table of them that each variant fills.
//
// An operation is one or more phases; every thread of the team runs a phase, and all wait for each other behind it.
// `rows` is how many tokens (or rows of logits) there are: it is not part of the arguments, so that operations recorded
// once can be run for any number of rows.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

// Whether the compiler knows the instructions that multiply tiles, and the system lends them.
#if defined(__x86_64__) && defined(__linux__) && __has_include(<amxbf16intrin.h>) && __has_include(<amxint8intrin.h>)
#define HAS_TILES
#endif

// One thread's view of a running phase.
struct Worker {
    int thread, threads;
    int64_t rows;
    std::atomic<int64_t>* next;  // the first item that no thread has taken
    char* shared;                // scratch of the operation, the same for all threads
    char* own;                   // scratch of this thread

    // Take `count` items; the caller stops when it gets one beyond the last.
    int64_t take(int64_t count) const { return next->fetch_add(count, std::memory_order_relaxed); }
};

enum Format : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

// 16 neighbouring rows of a weight matrix.
struct Group {
    const char* rows;      // the first one; of packed formats, the group's words
    const void* scales;    // INT8: float [16]; INT4: Int4Scales [blocks]
    int64_t stride;        // bytes from row to row; of packed formats, unused
    int32_t count;         // how many of the 16 there are
    int32_t column;        // where the first one's result goes
};

enum Activation : int32_t { NONE = 0, SILU, GELU, GELU_TANH, QUICK_GELU, RELU, RELU_SQUARED, SIGMOID, TANH };

struct LinearArgs {
    const void* x;         // [rows, width], of the model's dtype
    void* y;               // [rows, columns]
    const void* residual;  // [rows, columns] of the model's dtype, added at the end; may be y itself
    const float* bias;     // [groups, 16]
    const Group* groups;
    int64_t num_groups;
    int64_t width;         // of x, in elements
    int64_t x_stride, y_stride, residual_stride;  // in elements
    int32_t format;
    int32_t x_type, y_type;  // FLOAT32 or BFLOAT16
    int32_t activation;
    int32_t gated;         // group i is the gate of group i + num_groups / 2
};

struct QuantizeArgs {
    const void* w;         // [rows, width]
    int64_t row_stride, column_stride;  // in elements
    int32_t type;          // FLOAT32 or BFLOAT16
    int64_t width;
    void* packed;          // the groups' words, one group after another
    void* scales;
    int32_t format;        // INT8 or INT4
};

// Where the tokens of a step are, for one cache group; its address stays, its content changes every step.
struct AttentionPlan {
    const int64_t *first, *start, *count;  // [num_rows] see Layout in vllm/ops/attention.py
    const int32_t* blocks;                 // [num_rows, table_width]
    const int64_t* media;                  // [tokens, 2] or null: positions [first, end) that a token sees beside those before
    const uint8_t* apart;                  // [tokens] or null: a token that neither sees those behind it in its run nor is seen by those before
    int64_t num_rows, table_width;
    int64_t block_size;                    // a multiple of 16
};

struct AttentionArgs {
    // [rows, heads, width], [rows, kv_heads, width], [rows, kv_heads, value_width]; no k: attend to what is there alone; no
    // q: write alone
    const void *q, *k, *v;
    void* out;                               // [rows, heads, value_width]
    void* cache;                             // laid out as attention_cache.inl says
    const AttentionPlan* plan;
    const float* sinks;                      // [heads] or null: exp(sink) is added to the denominator
    const float* slopes;                     // [heads] or null: -slope · |key position - query position|, added to scores
    const float* bias;                       // [heads, 2 reach + 1] or null: by key position - query position, clamped
    int64_t q_stride, k_stride, v_stride, out_stride;  // from token to token, in elements
    int64_t heads, kv_heads, width, value_width;
    int64_t reach;                           // of bias: the greatest distance that it tells from others
    int64_t window;                          // see tokens at distances below it; 0: all
    int64_t shared_bytes;                    // of scratch that all threads share: attention_shared, or 0
    float scale, softcap;
    int32_t type;                            // of q, k, v and out
    int32_t quantized;                       // the cache is INT8, not of that type
    int32_t causal;                          // see no later token
};

struct NormArgs {
    const void* x;         // [rows, heads, width]
    void* y;               // the same; may be x itself
    const void* residual;  // the same or null: y = residual + norm(x); may be y itself
    const void *weight, *bias;  // [width]; null: 1 and 0 (rms_norm has a weight, and no bias)
    int64_t x_stride, y_stride, residual_stride;  // from row to row, in elements; heads lie side by side
    int64_t heads, width;
    float eps, offset;     // rms_norm multiplies with offset + weight
    int32_t type;
};

struct RotaryArgs {
    void *q, *k;               // [rows, heads, width], [rows, kv_heads, width], changed in place
    const float* cos_sin;      // [positions, rotary_width]: the cosines, then the sines
    const int64_t* positions;  // [rows]
    int64_t q_stride, k_stride;  // from row to row, in elements
    int64_t heads, kv_heads, width;
    int64_t rotary_width;      // even
    int32_t interleaved;       // pairs are (2 i, 2 i + 1), not (i, i + rotary_width / 2)
    int32_t type;
};

// Functions of single elements; what each operation reads:
//   add_elements        y = x + other
//   multiply_elements   y = x · other
//   copy_elements       y = x
//   softcap             y = scale · tanh(x / scale)
//   gather              y = scale · row ids[i] + id_offset of x
struct ElementArgs {
    const void *x, *other;
    void* y;
    const int64_t* ids;
    int64_t id_offset;
    int64_t x_stride, other_stride, y_stride;  // from row to row, in elements
    int64_t width;         // of y
    float scale;
    int32_t type;
};

// Layers that remember in a state.  `memory` holds states by block; rows of a step read and leave them as the plan says.
struct ConvArgs {
    const void* x;         // [rows, channels]
    void* y;               // the same
    const void* weight;    // [kernel, channels]
    const void* bias;      // [channels] or null
    void* memory;          // [blocks, kernel - 1, channels]: the elements before
    const AttentionPlan* plan;
    int64_t x_stride, y_stride;  // from row to row, in elements
    int64_t channels, kernel;
    int32_t activation;
    int32_t type, y_type;  // y_type: FLOAT32, or as all else
};

// state = exp(step · a) · state + step · x bᵀ;  y = state c + skip · x;  step = softplus(dt + dt_bias) in [least, most]
struct ScanArgs {
    const void *x, *dt, *b, *c;  // [rows, heads, width], [rows, heads or heads · width] or null: steps are 1, [rows, groups, states] twice
    float* y;                    // [rows, heads, width]
    const float *a, *dt_bias, *skip;  // [heads] or [heads, states, width]; as dt, or null; [heads] or [heads, width]
    float* memory;               // [blocks, heads, states, width]
    const AttentionPlan* plan;
    int64_t x_stride, dt_stride, b_stride, c_stride;  // from row to row, in elements
    int64_t heads, width, groups, states;
    float least, most;
    int32_t per_lane, skip_per_lane;  // dt and a are, or skip is, not of a head but of each of its elements
    int32_t type, dt_type;
};

// state = fade · state;  state = state + strength · sigmoid(beta) · k (v - kᵀ state);  y = qᵀ state;  all float32
struct DeltaArgs {
    const float *q, *k, *v;      // [rows, key_heads, key_width] twice, [rows, heads, width]
    const float *dt, *beta;      // [rows, heads or heads · key_width], [rows, heads]
    const float *a, *dt_bias;    // [heads], as dt: fade = exp(a · softplus(dt + dt_bias))
    float* y;                    // [rows, heads, width]
    float* memory;               // [blocks, heads, key_width, width]
    const AttentionPlan* plan;
    int64_t q_stride, k_stride, v_stride, dt_stride, beta_stride;  // from row to row
    int64_t key_heads, key_width, heads, width;
    float strength;
    int32_t per_key;             // each element of a key fades by itself
};

// state = fade · state + √(1 - fade²) · sigmoid(open) · x;  fade = exp(rates · sigmoid(keep));  √ counts from the second token on
struct LruArgs {
    const void *x, *open, *keep;  // [rows, width]
    float* y;                     // [rows, width]: the states
    const float* rates;           // [width]
    float* memory;                // [blocks, width]
    const AttentionPlan* plan;
    int64_t x_stride, open_stride, keep_stride;  // from row to row, in elements
    int64_t width;
    int32_t type;
};

struct GateArgs {
    const void *x, *gate;  // [rows, groups, width]
    void* y;               // the same
    const void* weight;    // [groups, width] or [width] or null: there is no norm
    int64_t x_stride, gate_stride, y_stride;  // from row to row, in elements
    int64_t groups, width;
    float eps;
    int32_t activation;
    int32_t norm_first;    // else the gate
    int32_t shared_weight; // all groups have one
    int32_t x_type, type;  // x_type: FLOAT32, or as all else
};

struct CheckArgs {
    const void* x;         // [count]; rows are runs of CHECK_RUN of them
    int64_t count;
    int32_t type;
    int32_t* found;        // becomes 1 if a value is not finite
};

union Args {
    CheckArgs check;
    LinearArgs linear;
    QuantizeArgs quantize;
    AttentionArgs attention;
    NormArgs norm;
    RotaryArgs rotary;
    ElementArgs element;
    ConvArgs conv;
    ScanArgs scan;
    DeltaArgs delta;
    LruArgs lru;
    GateArgs gate;
    int64_t words[32];
};

using Phase = void (*)(const Args&, const Worker&);

struct Kernels {
    const char* name;
    Phase linear_prepare, linear_multiply;
    int64_t (*linear_shared)(const LinearArgs&);  // scratch for 16 rows
    int64_t (*linear_own)(const LinearArgs&);     // scratch for each thread
    Phase check_finite;
    int64_t check_run;                            // values in a row of it
    Phase quantize;
    int64_t (*quantize_own)(const QuantizeArgs&);
    Phase attention_write, attention_attend;
    int64_t (*attention_shared)(const AttentionArgs&, int threads);
    int64_t (*attention_own)(const AttentionArgs&);
    Phase rms_norm, layer_norm, rotary, add_elements, multiply_elements, copy_elements, softcap, gather;
    Phase causal_conv, scan_prepare, scan_run, delta_prepare, delta_run, rg_lru, gate;
    int64_t (*conv_own)(const ConvArgs&);
    int64_t (*scan_shared)(const ScanArgs&);      // scratch for 16 rows
    int64_t (*scan_own)(const ScanArgs&);
    int64_t (*delta_shared)(const DeltaArgs&);
    int64_t (*delta_own)(const DeltaArgs&);
    int64_t (*gate_own)(const GateArgs&);
};
