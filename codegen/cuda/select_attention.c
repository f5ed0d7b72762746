// Templates of attention and its gradient. Head dims and flags are baked in; sequences that are
// short at any batch have templates of their own.
#include <string.h>

#include "codegen/cuda/select.h"
#include "compiler/util.h"

#define FIELD(field) (offsetof(AttentionArgs, field) / sizeof(int64_t))

enum { MOST_SHORT = 32, MOST_DIM = 128, MOST_SHARED = 80 << 10 };
enum { LSE = 1, MASK = 5 }; // places in `types`

typedef struct {
    int64_t d, e, length; // length: of the longest side, INT64_MAX where the batch decides
    uint32_t types, grad_types;
    bool grad, mask, causal, rotary;
} Facts;

static int64_t round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

static int64_t most(int64_t x, int64_t y)
{
    return x > y ? x : y;
}

// Sizes are the largest of all segments.
static Facts facts_of(const CudaLaunch *launch)
{
    Facts facts = {.types = (uint32_t)cuda_number(launch, FIELD(types)),
                   .grad = strcmp(launch->symbol, "pv_attention_grad") == 0,
                   .mask = cuda_is_there(launch, FIELD(mask)),
                   .causal = cuda_number(launch, FIELD(causal)) != 0};
    if (facts.grad)
        facts.grad_types =
            (uint32_t)cuda_number(launch, offsetof(AttentionGradArgs, types) / sizeof(int64_t));
    CudaLaunch segment = *launch;
    for (uint32_t i = 0; i < (launch->all ? launch->segments : 1); i++) {
        segment.args = launch->all ? launch->all + i * launch->arg_count : launch->args;
        facts.d = most(facts.d, cuda_number(&segment, FIELD(d)));
        facts.e = most(facts.e, cuda_number(&segment, FIELD(e)));
        bool fixed = cuda_is_number(&segment, FIELD(n)) && cuda_is_number(&segment, FIELD(m));
        int64_t length = most(cuda_number(&segment, FIELD(n)), cuda_number(&segment, FIELD(m)));
        facts.length = most(facts.length, fixed ? length : INT64_MAX);
        facts.rotary |= cuda_is_there(&segment, FIELD(q_rotary.cos)) ||
                        cuda_is_there(&segment, FIELD(k_rotary.cos));
    }
    return facts;
}

// Definitions that all templates have.
static const char *definitions_of(const CudaLaunch *launch, const Facts *facts, int64_t d,
                                  int64_t e)
{
    const char *text =
        arena_printf(launch->arena,
                     "ATT_D=%d ATT_E=%d ATT_MASK=%d ATT_CAUSAL=%d ATT_ROTARY=%d ATT_TYPES=0x%x",
                     (int)d, (int)e, facts->mask, facts->causal, facts->rotary,
                     (unsigned)facts->types);
    if (!facts->grad)
        return text;
    return arena_printf(launch->arena, "%s ATT_GRAD_TYPES=0x%x", text, (unsigned)facts->grad_types);
}

// attention_f32.cu and attention_grad_f32.cu.
static void choose_long(const CudaLaunch *launch, const Facts *facts, CudaChoice *choice)
{
    int64_t d = round_up(facts->d, 16), e = round_up(facts->e, 16);
    bool large = d > 64 || e > 64, grad = facts->grad;
    int64_t own = grad ? d + e + 8 : d + 4, tile = grad || large ? 32 : 64;
    int64_t rows = grad && large ? 32 : 64;
    int64_t floats = rows * own + tile * (d + e + 8) + rows * (tile + 4);
    choice->file = grad ? "attention_grad_f32.cu" : "attention_f32.cu";
    choice->definitions = definitions_of(launch, facts, d, e);
    choice->shape = grad ? "pv_shape_attention_grad" : "pv_shape_attention";
    choice->phases = grad ? 3 : 1;
    for (uint32_t i = 0; i < choice->phases; i++) {
        choice->threads[i] = large ? 256 : 128;
        choice->shared[i] = (uint32_t)floats * 4;
    }
    if (grad)
        choice->shared[0] = choice->threads[0] * 4;
    choice->baked[0] = (int32_t)rows;
}

// attention_short_f32.cu and attention_short_grad_f32.cu.
static void choose_short(const CudaLaunch *launch, const Facts *facts, CudaChoice *choice)
{
    int64_t d = round_up(facts->d, 4), e = round_up(facts->e, 4), width = d > e ? d : e;
    int64_t lanes = 8, warps = 4, stride = width / 4 % 2 ? width : width + 4;
    while (lanes < facts->length)
        lanes *= 2;
    int64_t floats = 3 * lanes * stride;
    if (facts->grad)
        floats = 4 * lanes * stride + 2 * lanes * (lanes + 1) + (lanes < 32 ? lanes : 0);
    while (warps > 1 && warps * (32 / lanes) * floats * 4 > MOST_SHARED)
        warps /= 2;
    choice->file = facts->grad ? "attention_short_grad_f32.cu" : "attention_short_f32.cu";
    choice->definitions = arena_printf(launch->arena, "%s ATT_LANES=%d ATT_WARPS=%d",
                                       definitions_of(launch, facts, d, e), (int)lanes, (int)warps);
    choice->shape = "pv_shape_attention_short";
    choice->threads[0] = (uint32_t)warps * 32;
    choice->shared[0] = (uint32_t)(warps * (32 / lanes) * floats * 4);
    choice->baked[0] = (int32_t)(warps * (32 / lanes));
}

// attention_mma.cu and attention_mma_grad.cu: all of q, k, v, o and their gradients
// are bf16, or f16.
static bool is_half(const Facts *facts)
{
    uint32_t tensors = 0xfffffu & ~(0xfu << 4 * LSE), half = facts->types & 0xf;
    return half != PV_STORE_REAL && (facts->types & tensors) == 0x11101 * half &&
           (!facts->grad || facts->grad_types == 0x1111 * half);
}

static void choose_mma(const CudaLaunch *launch, const Facts *facts, CudaChoice *choice)
{
    int64_t d = round_up(facts->d, 16), e = round_up(facts->e, 16);
    bool large = d > 64 || e > 64;
    uint32_t mask = facts->mask ? 1 + (facts->types >> 4 * MASK & 15) : 0;
    choice->definitions =
        arena_printf(launch->arena,
                     "ATT_D=%d ATT_E=%d ATT_MASK=%u ATT_CAUSAL=%d ATT_ROTARY=%d ATT_HALF=%d",
                     (int)d, (int)e, mask, facts->causal, facts->rotary, (int)facts->types & 15);
    choice->file = facts->grad ? "attention_mma_grad.cu" : "attention_mma.cu";
    choice->shape = facts->grad ? "pv_shape_attention_grad" : "pv_shape_attention";
    choice->phases = !facts->grad ? 1 : large ? 4 : 3;
    // as the templates' enums
    int64_t d_row = d * 2 + 16, e_row = e * 2 + 16, both = d_row + e_row; // bytes
    int64_t own = facts->grad && large ? 64 : 128;
    for (uint32_t i = 0; i < choice->phases; i++)
        choice->threads[i] = (uint32_t)own;
    choice->baked[0] = (int32_t)own;
    if (!facts->grad) {
        choice->shared[0] =
            (uint32_t)(own * most(d_row, e_row) + 2 * (large ? 32 : 64) * both + 64);
        return;
    }
    choice->shared[0] = (uint32_t)own * 4;
    choice->shared[1] =
        (uint32_t)(own * (large ? d_row : both) + 2 * (32 * both + 2 * 32 * 4) + 128);
    choice->shared[2] = choice->shared[3] =
        (uint32_t)(own * both + (large ? 1 : 2) * (64 * both + 2 * 64 * 4) + 128 + 2 * own * 4);
}

bool cuda_select_attention(const CudaLaunch *launch, CudaChoice *choice)
{
    Facts facts = facts_of(launch);
    if (facts.d > MOST_DIM || facts.e > MOST_DIM)
        return false;
    bool is_short = facts.length <= MOST_SHORT;
    int64_t to = is_short ? 4 : 16;
    choice->name = arena_printf(
        launch->arena, "attention%s%s_%dx%d%s%s%s", is_short ? "_short" : "",
        facts.grad ? "_grad" : "", (int)round_up(facts.d, to), (int)round_up(facts.e, to),
        facts.mask ? "_mask" : "", facts.causal ? "_causal" : "", facts.rotary ? "_rotary" : "");
    if (is_short)
        choose_short(launch, &facts, choice);
    else if (is_half(&facts))
        choose_mma(launch, &facts, choice);
    else
        choose_long(launch, &facts, choice);
    return true;
}
