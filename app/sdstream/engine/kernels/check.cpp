// The check, which compares every operation with ggml's own kernels. The cases include odd shapes,
// unaligned tails, NaN and infinities. The result must also have the same bytes for any number of
// threads. A worker runs the short list when it starts, and tests run the long list. The check does
// not depend on how the kernels work.
#include <math.h>
#include <stdio.h>
#include <functional>
#include <string>
#include "dispatch.h"
#include "ggml-cpu.h"

namespace sdk {
namespace {

typedef std::function<ggml_tensor *(ggml_context *)> Make;

struct Case {
    std::string name;
    Make make;
    double tolerance;          // maximum root mean square error, relative to that of the values
    bool special = false;      // some values are NaN or infinite
    bool spreads = false;      // more results than in ggml may be NaN in that case
    Make reference = nullptr;  // other operations to compare with, if ggml's operation is not exact
};

// --- values -------------------------------------------------------------------------------------

uint32_t seed;
bool with_special;

float uniform() {
    seed = seed*1664525u + 1013904223u;
    return (float) (seed >> 8)/(float) (1 << 24)*2 - 1;
}

void fill(ggml_tensor * t, float scale) {
    const int64_t n = elements(t);
    std::vector<float> values(n);
    for (float & x : values) x = scale*(uniform() + uniform() + uniform());
    if (t->type == GGML_TYPE_F32) {
        if (with_special && n > 40) {
            values[n/3] = NAN;
            values[n/2] = INFINITY;
            values[n - 2] = -INFINITY;
        }
        memcpy(t->data, values.data(), n*sizeof(float));
    } else {
        ggml_quantize_chunk(t->type, values.data(), t->data, 0, n/t->ne[0], t->ne[0], nullptr);
    }
}

ggml_tensor * tensor(ggml_context * c, ggml_type type, int64_t a, int64_t b = 1, int64_t d = 1, int64_t e = 1, float scale = 1) {
    ggml_tensor * t = ggml_new_tensor_4d(c, type, a, b, d, e);
    fill(t, scale);
    return t;
}

// --- running ------------------------------------------------------------------------------------

std::vector<float> run(const Case & one, const Make & make, int threads, uint32_t number) {
    seed = number;
    with_special = one.special;
    ggml_context * context = ggml_init({ size_t(256) << 20, nullptr, false });
    ggml_tensor * out = make(context);
    ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, out);
    memset(out->data, 0xff, ggml_nbytes(out));     // elements that are not written stay NaN
    ggml_graph_compute_with_ctx(context, graph, threads);
    std::vector<float> result((float *) out->data, (float *) out->data + elements(out));
    ggml_free(context);
    return result;
}

std::string compare(const Case & one, const std::vector<float> & expected, const std::vector<float> & got) {
    double error = 0, size = 0;
    for (size_t i = 0; i < got.size(); i++) {
        const bool finite = std::isfinite(got[i]), wanted = std::isfinite(expected[i]);
        if (finite && wanted) {
            error += ((double) got[i] - expected[i])*((double) got[i] - expected[i]);
            size += (double) expected[i]*expected[i];
        } else if (finite || (wanted && !one.spreads)) {
            return "element " + std::to_string(i) + " is " + std::to_string(got[i]) + " instead of " + std::to_string(expected[i]);
        }
    }
    const double relative = sqrt(error/(size > 0 ? size : 1));
    if (relative <= one.tolerance) return "";
    return "relative error " + std::to_string(relative) + ", at most " + std::to_string(one.tolerance);
}

std::string problem(const Case & one, bool thorough, int threads, uint32_t number) {
    enable(false);
    const std::vector<float> expected = run(one, one.reference ? one.reference : one.make, threads, number);
    enable(true);
    const int64_t before = taken();
    const std::vector<float> got = run(one, one.make, threads, number);
    if (taken() == before) return "the kernels did not take it";
    const std::string difference = compare(one, expected, got);
    if (!difference.empty()) return difference;
    for (int count : thorough ? std::vector<int>{ 1, 2, 3, 5 } : std::vector<int>{ threads == 1 ? 2 : 1 }) {
        const std::vector<float> other = run(one, one.make, count, number);
        if (memcmp(got.data(), other.data(), got.size()*sizeof(float))) return "other bytes with " + std::to_string(count) + " threads";
    }
    return "";
}

// --- cases --------------------------------------------------------------------------------------

struct Cases : std::vector<Case> {
    void add(const std::string & name, double tolerance, Make make, bool special = false, bool spreads = false) {
        push_back({ name, make, tolerance });
        if (special) push_back({ name + " with NaN", make, tolerance, true, spreads });
    }
};

std::string words(std::initializer_list<int64_t> numbers) {
    std::string text;
    for (int64_t n : numbers) text += " " + std::to_string(n);
    return text;
}

// Returns the tolerance for a type of weights. It covers ggml's own error from f16 and from 8-bit
// activations, and the error of bf16, whose significand has 8 bits.
double tolerance_of(ggml_type type) {
    if (ggml_is_quantized(type)) return 0.02;
    return config.products != Products::F32 ? 0.01 : type == GGML_TYPE_F32 ? 1e-5 : type == GGML_TYPE_BF16 ? 0.01 : 2e-3;
}

struct Product { int64_t k, m, n, planes, groups; };

void add_products(Cases & to, bool thorough) {
    std::vector<Product> shapes = { {256,33,7,1,1}, {512,20,13,3,1}, {256,48,130,1,1} };
    std::vector<ggml_type> types = { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K };
    if (thorough) {
        shapes.insert(shapes.end(), { {256,16,16,8,1}, {512,100,77,1,1}, {2304,320,64,1,1}, {768,17,5,3,2}, {1280,96,130,2,1}, {4096,3,4,1,1} });
        types.insert(types.end(), { GGML_TYPE_BF16, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q4_1, GGML_TYPE_Q2_K, GGML_TYPE_Q6_K });
    }
    for (ggml_type type : types)
        for (const Product & s : shapes)
            to.add(std::string("product ") + ggml_type_name(type) + words({ s.k, s.m, s.n, s.planes, s.groups }), tolerance_of(type), [=](ggml_context * c) {
                return ggml_mul_mat(c, tensor(c, type, s.k, s.m, s.planes), tensor(c, GGML_TYPE_F32, s.k, s.n, s.planes*s.groups));
            }, s.k == 256 && (type == GGML_TYPE_F32 || type == GGML_TYPE_F16));
    for (const Product & s : { Product{40,77,61,8,1}, Product{77,40,33,2,1}, Product{18,20,30,1,1}, Product{1200,40,49,1,1} })
        to.add("product of heads" + words({ s.k, s.m, s.n, s.planes }), tolerance_of(GGML_TYPE_F32), [=](ggml_context * c) {
            return ggml_mul_mat(c, tensor(c, GGML_TYPE_F32, s.k, s.m, s.planes), tensor(c, GGML_TYPE_F32, s.k, s.n, s.planes));
        });
    to.add("product of a permuted operand", tolerance_of(GGML_TYPE_F32), [](ggml_context * c) {
        ggml_tensor * x = ggml_permute(c, tensor(c, GGML_TYPE_F32, 48, 5, 19), 0, 2, 1, 3);
        return ggml_mul_mat(c, tensor(c, GGML_TYPE_F32, 48, 21, 5), x);
    });
}

struct Image { int64_t kernel, in, out, width, height, step, pad, gap, batch; };

void add_convolutions(Cases & to, bool thorough) {
    std::vector<Image> shapes = {
        {3,16,33,64,64,1,1,1,1}, {3,3,17,40,24,1,1,1,1}, {3,20,20,33,17,1,1,1,1}, {1,18,20,30,20,1,0,1,1},
        {3,8,9,32,31,2,1,1,2}, {5,6,9,31,31,2,2,1,1}, {3,8,8,20,20,1,2,2,1}, {3,20,13,4,4,1,1,1,1},
    };
    if (thorough) shapes.insert(shapes.end(), {
        {3,64,64,128,128,1,1,1,1}, {3,16,33,64,64,1,1,1,2}, {3,48,36,34,128,1,1,1,1}, {3,128,40,100,66,1,1,1,1},
        {3,4,320,32,32,1,1,1,1}, {3,320,4,32,32,1,1,1,1}, {3,640,96,64,64,1,1,1,1}, {3,48,32,160,26,1,1,1,1},
        {1,63,20,64,64,1,0,1,1}, {2,16,32,64,64,2,0,1,1}, {3,160,64,9,9,1,1,1,1},
    });
    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_F32 })
        for (const Image & s : shapes)
            to.add(std::string("convolution ") + ggml_type_name(type) + words({ s.kernel, s.in, s.out, s.width, s.height, s.step, s.pad, s.gap, s.batch }),
                   config.products != Products::F32 ? 0.01 : 2e-3, [=](ggml_context * c) {
                ggml_tensor * kernel = ggml_new_tensor_4d(c, type, s.kernel, s.kernel, s.in, s.out);
                with_special = false;
                fill(kernel, 0.1f);
                return ggml_conv_2d_direct(c, kernel, tensor(c, GGML_TYPE_F32, s.width, s.height, s.in, s.batch), (int) s.step, (int) s.step, (int) s.pad, (int) s.pad, (int) s.gap, (int) s.gap);
            });
}

struct Inputs { ggml_tensor * q, * k, * v, * mask; };

struct Heads { int64_t width, columns, queries, keys, heads, key_heads; bool masked; };

void add_attention(Cases & to, bool thorough) {
    std::vector<Heads> shapes = { {40,40,29,70,3,3,false}, {64,64,7,77,4,2,true} };
    if (thorough) shapes.insert(shapes.end(), { {64,64,100,256,4,4,false}, {40,40,512,512,8,8,false}, {128,128,77,77,32,8,true},
                                                {160,160,16,256,8,8,true}, {512,512,64,64,1,1,false}, {80,80,33,1,2,2,false} });
    for (const Heads & s : shapes) {
        const float scale = 1/sqrtf((float) s.width);
        const auto inputs = [=](ggml_context * c) {
            Inputs in = { tensor(c, GGML_TYPE_F32, s.width, s.queries, s.heads), tensor(c, GGML_TYPE_F16, s.width, s.keys, s.key_heads),
                          tensor(c, GGML_TYPE_F16, s.columns, s.keys, s.key_heads), nullptr };
            if (s.masked) {
                in.mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, s.keys, GGML_PAD(s.queries, 64));
                for (int64_t i = 0; i < elements(in.mask); i++)
                    ((ggml_fp16_t *) in.mask->data)[i] = ggml_fp32_to_fp16(i % s.keys > i/s.keys + s.keys/2 ? -INFINITY : 0);
            }
            return in;
        };
        to.add("attention" + words({ s.width, s.columns, s.queries, s.keys, s.heads, s.key_heads, s.masked }), config.products != Products::F32 ? 0.01 : 2e-3, [=](ggml_context * c) {
            const Inputs in = inputs(c);
            return ggml_flash_attn_ext(c, in.q, in.k, in.v, in.mask, scale, 0, 0);
        });
        // ggml's fused attention is not exact: it adds the values in f16.
        to.back().reference = [=](ggml_context * c) {
            const Inputs in = inputs(c);
            ggml_tensor * scores = ggml_soft_max_ext(c, ggml_mul_mat(c, in.k, in.q), in.mask, scale, 0);
            ggml_tensor * v = ggml_cont(c, ggml_permute(c, ggml_cast(c, in.v, GGML_TYPE_F32), 1, 0, 2, 3));
            return ggml_cont(c, ggml_permute(c, ggml_mul_mat(c, v, scores), 0, 2, 1, 3));
        };
    }
}

void add_elementwise(Cases & to) {
    const int64_t shapes[][8] = { {64,32,10,2, 1,1,10,1}, {64,32,10,2, 64,1,1,1}, {2,64,20,2, 2,64,20,1}, {33,5,3,2, 33,5,3,2}, {17,3,1,1, 17,1,1,1}, {37,20,5,1, 1,1,1,1} };
    for (const auto & s : shapes)
        for (bool product : { false, true }) {
            const int64_t a = s[0], b = s[1], d = s[2], e = s[3], p = s[4], q = s[5], r = s[6], t = s[7];
            to.add((product ? "multiply" : "add") + words({ a, b, d, e, p, q, r, t }), 1e-6, [=](ggml_context * c) {
                ggml_tensor * x = tensor(c, GGML_TYPE_F32, a, b, d, e), * y = tensor(c, GGML_TYPE_F32, p, q, r, t);
                return product ? ggml_mul(c, x, y) : ggml_add(c, x, y);
            }, true);
        }
    const int axes[][4] = { {1,0,2,3}, {0,2,1,3}, {2,0,1,3}, {1,2,0,3}, {3,2,1,0}, {0,3,2,1} };
    for (const auto & x : axes) {
        const int a = x[0], b = x[1], d = x[2], e = x[3];
        to.add("copy" + words({ a, b, d, e }), 0, [=](ggml_context * c) { return ggml_cont(c, ggml_permute(c, tensor(c, GGML_TYPE_F32, 37, 20, 5, 3), a, b, d, e)); }, true);
    }
    for (int axis = 0; axis < 4; axis++)
        to.add("concat" + words({ axis }), 0, [=](ggml_context * c) {
            int64_t n[4] = { 21, 5, 4, 3 };
            ggml_tensor * a = tensor(c, GGML_TYPE_F32, n[0], n[1], n[2], n[3]);
            n[axis] = 2;
            return ggml_concat(c, a, tensor(c, GGML_TYPE_F32, n[0], n[1], n[2], n[3]), axis);
        }, true);
    for (const int64_t width : { 64, 37 }) {
        to.add("cast" + words({ width }), 0, [=](ggml_context * c) { return ggml_cast(c, ggml_cast(c, ggml_permute(c, tensor(c, GGML_TYPE_F32, width, 20, 5, 3), 0, 2, 1, 3), GGML_TYPE_F16), GGML_TYPE_F32); }, true);
        to.add("pad" + words({ width }), 0, [=](ggml_context * c) { return ggml_pad(c, ggml_permute(c, tensor(c, GGML_TYPE_F32, width, 20, 5, 3), 0, 2, 1, 3), 3, 7, 1, 2); }, true);
    }
    to.add("copy of pairs", 0, [](ggml_context * c) { return ggml_cont(c, ggml_permute(c, tensor(c, GGML_TYPE_F32, 2, 20, 5, 3), 0, 2, 1, 3)); }, true);
    to.add("repeat", 0, [](ggml_context * c) { return ggml_repeat(c, tensor(c, GGML_TYPE_F32, 1, 77, 3), ggml_new_tensor_3d(c, GGML_TYPE_F32, 2, 77, 3)); }, true);
    // ggml reads GELU from a table of f16, and its result for minus infinity is NaN.
    to.add("silu", 1e-5, [](ggml_context * c) { return ggml_silu(c, tensor(c, GGML_TYPE_F32, 77, 9, 2, 1, 5)); });
    to.add("gelu", 2e-3, [](ggml_context * c) { return ggml_gelu(c, tensor(c, GGML_TYPE_F32, 77, 9, 2, 1, 5)); });
}

void add_rows(Cases & to) {
    for (int64_t n : { 5, 77, 300 }) {
        to.add("softmax" + words({ n }), 1e-5, [=](ggml_context * c) { return ggml_soft_max(c, tensor(c, GGML_TYPE_F32, n, 9, 2, 1, 3)); }, true);
        to.add("scaled softmax" + words({ n }), 1e-5, [=](ggml_context * c) { return ggml_soft_max_ext(c, tensor(c, GGML_TYPE_F32, n, 9, 2, 1, 30), nullptr, 0.1f, 0); }, true);
    }
    for (int64_t n : { 3, 77 })
        for (int groups : { 32, 5 })
            to.add("group norm" + words({ n, groups }), 1e-4, [=](ggml_context * c) { return ggml_group_norm(c, tensor(c, GGML_TYPE_F32, n, 7, 64, 2), groups, 1e-6f); }, true);
}

}  // namespace
}  // namespace sdk

// Returns the number of failed cases. `report`, if not null, receives one line for each failed case,
// as far as its size allows. The kernels must be installed; they are enabled afterwards.
extern "C" SDK_EXPORT int sdk_check(int thorough, int threads, char * report, size_t bytes) {
    sdk::Cases cases;
    sdk::add_products(cases, thorough);
    sdk::add_convolutions(cases, thorough);
    sdk::add_attention(cases, thorough);
    sdk::add_elementwise(cases);
    sdk::add_rows(cases);
    int failed = 0;
    std::string text;
    for (size_t i = 0; i < cases.size(); i++) {
        const std::string problem = sdk::problem(cases[i], thorough, threads, (uint32_t) i + 1);
        if (problem.empty()) continue;
        failed++;
        text += cases[i].name + ": " + problem + "\n";
    }
    if (report && bytes) snprintf(report, bytes, "%s", text.c_str());
    return failed;
}
