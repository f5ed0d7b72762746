// Templates of attention and its gradient. Head dims and flags are baked in; sequences that are
// short at any batch have templates of their own.
#include <string.h>

#include "codegen/cuda/select.h"
#include "compiler/util.h"

#define FIELD(field) (offsetof(AttentionArgs, field) / sizeof(int64_t))

enum { MOST_SHORT = 32, MOST_DIM = 128, MOST_SHARED = 104 << 10 };

typedef struct {
    int64_t d, e, length; // length: of the longer side, INT64_MAX where the batch decides
    bool mask, causal;
} Facts;

static int64_t round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

static Facts facts_of(const CudaLaunch *launch)
{
    Facts facts = {.d = cuda_number(launch, FIELD(d)),
                   .e = cuda_number(launch, FIELD(e)),
                   .length = INT64_MAX,
                   .mask = cuda_is_there(launch, FIELD(mask)),
                   .causal = cuda_number(launch, FIELD(causal)) != 0};
    if (cuda_is_number(launch, FIELD(n)) && cuda_is_number(launch, FIELD(m))) {
        int64_t n = cuda_number(launch, FIELD(n)), m = cuda_number(launch, FIELD(m));
        facts.length = n > m ? n : m;
    }
    return facts;
}

// attention_f32.cu and attention_grad_f32.cu.
static void choose_long(const CudaLaunch *launch, const Facts *facts, bool grad, CudaChoice *choice)
{
    int64_t d = round_up(facts->d, 16), e = round_up(facts->e, 16);
    bool large = d > 64 || e > 64;
    int64_t own = grad ? d + e + 8 : d + 4, tile = grad || large ? 32 : 64;
    int64_t floats = 64 * own + tile * (d + e + 8) + 64 * (tile + 16);
    choice->file = grad ? "attention_grad_f32.cu" : "attention_f32.cu";
    choice->definitions = arena_printf(launch->arena, "ATT_D=%d ATT_E=%d ATT_MASK=%d ATT_CAUSAL=%d",
                                       (int)d, (int)e, facts->mask, facts->causal);
    choice->shape = grad ? "pv_shape_attention_grad" : "pv_shape_attention";
    choice->phases = grad ? 3 : 1;
    for (uint32_t i = 0; i < choice->phases; i++) {
        choice->threads[i] = large ? 256 : 128;
        choice->shared[i] = (uint32_t)floats * 4;
    }
    if (grad)
        choice->shared[0] = choice->threads[0] * 4;
}

// attention_short_f32.cu and attention_short_grad_f32.cu.
static void choose_short(const CudaLaunch *launch, const Facts *facts, bool grad,
                         CudaChoice *choice)
{
    int64_t d = round_up(facts->d, 4), e = round_up(facts->e, 4), width = d > e ? d : e;
    int64_t lanes = 8, warps = 4, stride = width / 4 % 2 ? width : width + 4;
    while (lanes < facts->length)
        lanes *= 2;
    int64_t floats = 3 * lanes * stride;
    if (grad)
        floats = 4 * lanes * stride + 2 * lanes * (lanes + 1);
    while (warps > 1 && warps * (32 / lanes) * floats * 4 > MOST_SHARED)
        warps /= 2;
    choice->file = grad ? "attention_short_grad_f32.cu" : "attention_short_f32.cu";
    choice->definitions = arena_printf(
        launch->arena, "ATT_D=%d ATT_E=%d ATT_LANES=%d ATT_WARPS=%d ATT_MASK=%d ATT_CAUSAL=%d",
        (int)d, (int)e, (int)lanes, (int)warps, facts->mask, facts->causal);
    choice->shape = "pv_shape_attention_short";
    choice->threads[0] = (uint32_t)warps * 32;
    choice->shared[0] = (uint32_t)(warps * (32 / lanes) * floats * 4);
    choice->baked[0] = (int32_t)(warps * (32 / lanes));
}

bool cuda_select_attention(const CudaLaunch *launch, CudaChoice *choice)
{
    Facts facts = facts_of(launch);
    bool grad = strcmp(launch->symbol, "pv_attention_grad") == 0;
    if (facts.d > MOST_DIM || facts.e > MOST_DIM)
        return false;
    bool is_short = facts.length <= MOST_SHORT;
    choice->name = arena_printf(launch->arena, "attention%s%s_%dx%d%s%s", is_short ? "_short" : "",
                                grad ? "_grad" : "", (int)facts.d, (int)facts.e,
                                facts.mask ? "_mask" : "", facts.causal ? "_causal" : "");
    if (is_short)
        choose_short(launch, &facts, grad, choice);
    else
        choose_long(launch, &facts, grad, choice);
    return true;
}
