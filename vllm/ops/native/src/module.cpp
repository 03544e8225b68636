// The Python module `_kernels`: numbers and addresses in, nothing of torch.
//
// An operation's function runs it at once, or, while a program is recorded, appends it to the program:
//
//   start_recording(); linear(...); rms_norm(...); program = stop_recording()
//   run(program, rows)
//
// Addresses must stay valid for as long as the program lives.  Calls come from one thread at a time.
//
// SOURCES_DIGEST, from the build, is what vllm/ops/native/sources.py says of the sources.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <initializer_list>

#include "team.hpp"
#include "variants.hpp"

namespace {

// Scratch was planned for a number of threads: a program is run with at most as many as it was recorded with.
struct Program {
    std::vector<Operation> operations;
    int threads;
    int64_t weights;  // of its products

    // Work of less than about 0.3 ms is one thread's: another would save little, and cost much where a barrier waits for
    // a core that somebody else has.
    int threads_for(int64_t rows) const {
        bool is_small = weights < 4'000'000 && weights * rows < 32'000'000;
        return is_small ? 1 : threads;
    }
};

const Kernels* kernels = nullptr;
Team* team = new Team;  // never destroyed: its threads may outlive the interpreter
Program* recording = nullptr;

// Reads a call's arguments in order.
class Reader {
   public:
    Reader(PyObject* const* values_, Py_ssize_t count_) : values(values_), count(count_) {}
    int64_t integer() {
        PyObject* value = take();
        return value ? PyLong_AsLongLong(value) : 0;
    }
    float number() {
        PyObject* value = take();
        return value ? (float)PyFloat_AsDouble(value) : 0;
    }
    template <class T>
    void operator()(T*& pointer) { pointer = (T*)integer(); }
    void operator()(int64_t& value) { value = integer(); }
    void operator()(int32_t& value) { value = (int32_t)integer(); }
    void operator()(float& value) { value = number(); }
    template <class... T>
    bool all(T&... fields) {
        (operator()(fields), ...);
        return done();
    }
    bool done() {
        if (!PyErr_Occurred() && at != count)
            PyErr_Format(PyExc_TypeError, "%zd arguments were given, %zd are taken", count, at);
        return !PyErr_Occurred();
    }

   private:
    PyObject* take() {
        if (at >= count && !PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "too few arguments");
        return at++ < count ? values[at - 1] : nullptr;
    }
    PyObject* const* values;
    Py_ssize_t count, at = 0;
};

PyObject* run_now(const Operation* first, size_t count, int threads, int64_t rows) {
    bool enough;
    Py_BEGIN_ALLOW_THREADS;
    enough = team->run(first, count, threads, rows);
    Py_END_ALLOW_THREADS;
    if (!enough) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyObject* issue(std::initializer_list<Operation> operations, int64_t rows) {
    if (recording) {
        recording->operations.insert(recording->operations.end(), operations);
        Py_RETURN_NONE;
    }
    return run_now(operations.begin(), operations.size(), team->threads, rows);
}

// ---- set-up ----

PyObject* variants(PyObject*, PyObject*) {
    PyObject* names = PyList_New(0);
    for (const Variant& variant : all_variants())
        if (variant.runs_here) {
            PyObject* name = PyUnicode_FromString(variant.kernels->name);
            PyList_Append(names, name);
            Py_DECREF(name);
        }
    return names;
}

PyObject* choose(PyObject*, PyObject* name) {
    const char* wanted = PyUnicode_AsUTF8(name);
    if (!wanted) return nullptr;
    for (const Variant& variant : all_variants())
        if (variant.runs_here && !strcmp(variant.kernels->name, wanted)) {
            kernels = variant.kernels;
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "no kernels %s run on this processor", wanted);
}

PyObject* set_team(PyObject*, PyObject* const* values, Py_ssize_t count) {
    int64_t threads, region, number, members;
    if (!Reader(values, count).all(threads, region, number, members)) return nullptr;
    team->set((int)threads, (Team::Region)region, (Team::Number)number, (Team::Number)members);
    Py_RETURN_NONE;
}

// ---- programs ----

constexpr const char* PROGRAM = "vllm.ops.native.Program";

PyObject* start_recording(PyObject*, PyObject*) {
    if (recording) {
        PyErr_SetString(PyExc_RuntimeError, "a program is being recorded already");
        return nullptr;
    }
    recording = new Program{{}, team->threads, 0};
    Py_RETURN_NONE;
}

PyObject* stop_recording(PyObject*, PyObject*) {
    if (!recording) {
        PyErr_SetString(PyExc_RuntimeError, "no program is being recorded");
        return nullptr;
    }
    Program* program = recording;
    recording = nullptr;
    return PyCapsule_New(program, PROGRAM,
                         [](PyObject* capsule) { delete (Program*)PyCapsule_GetPointer(capsule, PROGRAM); });
}

PyObject* run(PyObject*, PyObject* const* values, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "run takes a program and a number of rows");
    auto* program = (Program*)PyCapsule_GetPointer(values[0], PROGRAM);
    if (!program) return nullptr;
    int64_t rows = PyLong_AsLongLong(values[1]);
    if (PyErr_Occurred()) return nullptr;
    return run_now(program->operations.data(), program->operations.size(), program->threads_for(rows), rows);
}

// ---- operations: (rows, fields of the arguments in order) ----

PyObject* linear(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    LinearArgs& a = op.args.linear;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.x, a.y, a.residual, a.bias, a.groups, a.num_groups, a.width, a.x_stride, a.y_stride,
                  a.residual_stride, a.format, a.x_type, a.y_type, a.activation, a.gated))
        return nullptr;
    if (recording) recording->weights += a.num_groups * 16 * a.width;
    op.phase = kernels->linear_prepare;
    op.shared_per_panel = kernels->linear_shared(a);
    op.own = kernels->linear_own(a);
    Operation second = op;
    second.phase = kernels->linear_multiply;
    return issue({op, second}, rows);
}

PyObject* quantize(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    QuantizeArgs& a = op.args.quantize;
    int64_t rows;
    if (!Reader(values, count).all(rows, a.w, a.row_stride, a.column_stride, a.type, a.width, a.packed, a.scales, a.format))
        return nullptr;
    op.phase = kernels->quantize;
    op.own = kernels->quantize_own(a);
    return issue({op}, rows);
}

PyObject* all_finite(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    CheckArgs& a = op.args.check;
    int32_t found = 0;
    if (!Reader(values, count).all(a.x, a.count, a.type)) return nullptr;
    a.found = &found;
    op.phase = kernels->check_finite;
    PyObject* done = run_now(&op, 1, team->threads, (a.count + kernels->check_run - 1) / kernels->check_run);
    if (!done) return nullptr;
    Py_DECREF(done);
    return PyBool_FromLong(!found);
}

PyObject* attention(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    AttentionArgs& a = op.args.attention;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.q, a.k, a.v, a.out, a.cache, a.plan, a.sinks, a.slopes, a.bias, a.q_stride, a.k_stride,
                  a.v_stride, a.out_stride, a.heads, a.kv_heads, a.width, a.value_width, a.reach, a.window, a.scale,
                  a.softcap, a.type, a.quantized, a.causal))
        return nullptr;
    a.shared_bytes = kernels->attention_shared(a, team->threads);
    op.phase = kernels->attention_write;
    op.shared = a.shared_bytes;
    op.own = kernels->attention_own(a);
    Operation second = op;
    second.phase = kernels->attention_attend;
    return issue({op, second}, rows);
}

PyObject* norm(PyObject* const* values, Py_ssize_t count, Phase phase) {
    Operation op{};
    NormArgs& a = op.args.norm;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.x, a.y, a.residual, a.weight, a.bias, a.x_stride, a.y_stride, a.residual_stride, a.heads,
                  a.width, a.eps, a.offset, a.type))
        return nullptr;
    op.phase = phase;
    return issue({op}, rows);
}

PyObject* rms_norm(PyObject*, PyObject* const* values, Py_ssize_t count) {
    return norm(values, count, kernels->rms_norm);
}

PyObject* layer_norm(PyObject*, PyObject* const* values, Py_ssize_t count) {
    return norm(values, count, kernels->layer_norm);
}

PyObject* rotary(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    RotaryArgs& a = op.args.rotary;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.q, a.k, a.cos_sin, a.positions, a.q_stride, a.k_stride, a.heads, a.kv_heads, a.width,
                  a.rotary_width, a.interleaved, a.type))
        return nullptr;
    op.phase = kernels->rotary;
    return issue({op}, rows);
}

PyObject* pairwise(PyObject* const* values, Py_ssize_t count, Phase phase) {
    Operation op{};
    ElementArgs& a = op.args.element;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.x, a.other, a.y, a.x_stride, a.other_stride, a.y_stride, a.width, a.type))
        return nullptr;
    op.phase = phase;
    return issue({op}, rows);
}

PyObject* add(PyObject*, PyObject* const* values, Py_ssize_t count) {
    return pairwise(values, count, kernels->add_elements);
}

PyObject* multiply(PyObject*, PyObject* const* values, Py_ssize_t count) {
    return pairwise(values, count, kernels->multiply_elements);
}

PyObject* copy(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    ElementArgs& a = op.args.element;
    int64_t rows;
    if (!Reader(values, count).all(rows, a.x, a.y, a.x_stride, a.y_stride, a.width, a.type)) return nullptr;
    op.phase = kernels->copy_elements;
    return issue({op}, rows);
}

PyObject* softcap(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    ElementArgs& a = op.args.element;
    int64_t rows;
    if (!Reader(values, count).all(rows, a.x, a.y, a.x_stride, a.y_stride, a.width, a.scale, a.type)) return nullptr;
    op.phase = kernels->softcap;
    return issue({op}, rows);
}

PyObject* gather(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    ElementArgs& a = op.args.element;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.x, a.y, a.ids, a.id_offset, a.x_stride, a.y_stride, a.width, a.scale, a.type))
        return nullptr;
    op.phase = kernels->gather;
    return issue({op}, rows);
}

PyObject* causal_conv(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    ConvArgs& a = op.args.conv;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.x, a.y, a.weight, a.bias, a.memory, a.plan, a.x_stride, a.y_stride, a.channels, a.kernel,
                  a.activation, a.type, a.y_type))
        return nullptr;
    op.phase = kernels->causal_conv;
    op.own = kernels->conv_own(a);
    return issue({op}, rows);
}

PyObject* selective_scan(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    ScanArgs& a = op.args.scan;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.x, a.dt, a.b, a.c, a.y, a.a, a.dt_bias, a.skip, a.memory, a.plan, a.x_stride, a.dt_stride,
                  a.b_stride, a.c_stride, a.heads, a.width, a.groups, a.states, a.least, a.most, a.per_lane,
                  a.skip_per_lane, a.type, a.dt_type))
        return nullptr;
    op.phase = kernels->scan_prepare;
    op.shared_per_panel = kernels->scan_shared(a);
    op.own = kernels->scan_own(a);
    Operation second = op;
    second.phase = kernels->scan_run;
    return issue({op, second}, rows);
}

PyObject* gated_delta(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    DeltaArgs& a = op.args.delta;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.q, a.k, a.v, a.dt, a.beta, a.a, a.dt_bias, a.y, a.memory, a.plan, a.q_stride, a.k_stride,
                  a.v_stride, a.dt_stride, a.beta_stride, a.key_heads, a.key_width, a.heads, a.width,
                  a.strength, a.per_key))
        return nullptr;
    op.phase = kernels->delta_prepare;
    op.shared_per_panel = kernels->delta_shared(a);
    op.own = kernels->delta_own(a);
    Operation second = op;
    second.phase = kernels->delta_run;
    return issue({op, second}, rows);
}

PyObject* rg_lru(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    LruArgs& a = op.args.lru;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.x, a.open, a.keep, a.y, a.rates, a.memory, a.plan, a.x_stride, a.open_stride, a.keep_stride,
                  a.width, a.type))
        return nullptr;
    op.phase = kernels->rg_lru;
    return issue({op}, rows);
}

PyObject* gate(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Operation op{};
    GateArgs& a = op.args.gate;
    int64_t rows;
    if (!Reader(values, count)
             .all(rows, a.x, a.gate, a.y, a.weight, a.x_stride, a.gate_stride, a.y_stride, a.groups, a.width, a.eps,
                  a.activation, a.norm_first, a.shared_weight, a.x_type, a.type))
        return nullptr;
    op.phase = kernels->gate;
    op.own = kernels->gate_own(a);
    return issue({op}, rows);
}

PyMethodDef methods[] = {
    {"variants", variants, METH_NOARGS, "Names of the kernels that run on this processor, best first."},
    {"choose", choose, METH_O, "Use the kernels of this name."},
    {"set_team", (PyCFunction)(void*)set_team, METH_FASTCALL, "threads, and the addresses of the runtime's functions"},
    {"start_recording", start_recording, METH_NOARGS, "Collect operations instead of running them."},
    {"stop_recording", stop_recording, METH_NOARGS, "Return the program."},
    {"run", (PyCFunction)(void*)run, METH_FASTCALL, "Run a program for a number of rows."},
    {"linear", (PyCFunction)(void*)linear, METH_FASTCALL, "y = activation(x Wᵀ + bias) + residual"},
    {"all_finite", (PyCFunction)(void*)all_finite, METH_FASTCALL, "Whether no value is NaN or infinite; never recorded."},
    {"quantize", (PyCFunction)(void*)quantize, METH_FASTCALL, "Pack rows of a matrix as INT8 or INT4."},
    {"attention", (PyCFunction)(void*)attention, METH_FASTCALL, "Write k and v into the cache, then attend."},
    {"rms_norm", (PyCFunction)(void*)rms_norm, METH_FASTCALL, "y = x / rms(x) · (offset + weight) + residual"},
    {"layer_norm", (PyCFunction)(void*)layer_norm, METH_FASTCALL, "y = (x - mean) / deviation · weight + bias + residual"},
    {"rotary", (PyCFunction)(void*)rotary, METH_FASTCALL, "Turn pairs of elements of q and k, in place."},
    {"add", (PyCFunction)(void*)add, METH_FASTCALL, "y = x + other"},
    {"multiply", (PyCFunction)(void*)multiply, METH_FASTCALL, "y = x · other"},
    {"copy", (PyCFunction)(void*)copy, METH_FASTCALL, "y = x"},
    {"causal_conv", (PyCFunction)(void*)causal_conv, METH_FASTCALL, "Weigh each channel's last elements."},
    {"selective_scan", (PyCFunction)(void*)selective_scan, METH_FASTCALL, "Run a state space over the tokens of each row."},
    {"gated_delta", (PyCFunction)(void*)gated_delta, METH_FASTCALL, "Run a delta net over the tokens of each row."},
    {"rg_lru", (PyCFunction)(void*)rg_lru, METH_FASTCALL, "Run a gated linear recurrence over the tokens of each row."},
    {"gate", (PyCFunction)(void*)gate, METH_FASTCALL, "y = x · activation(gate), normalised"},
    {"softcap", (PyCFunction)(void*)softcap, METH_FASTCALL, "y = scale · tanh(x / scale)"},
    {"gather", (PyCFunction)(void*)gather, METH_FASTCALL, "y[i] = scale · x[ids[i] + id_offset]"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", "Kernels for processors.", -1, methods,
                          nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() {
    for (const Variant& variant : all_variants())
        if (variant.runs_here) {
            kernels = variant.kernels;
            break;
        }
    PyObject* module = PyModule_Create(&definition);
    if (module && PyModule_AddStringConstant(module, "sources", SOURCES_DIGEST)) Py_CLEAR(module);
    return module;
}
