// Launches of sibling groups, joined: one launch with a segment for each.
//
// The groups of a set (compiler/batch.c), and the terms of each, are lowered one by one. Each gives
// one launch that does its work, the last, and sometimes copies before it. Copies come first, then
// the others; neighbours of one kernel and equal arguments, but for addresses and sizes, become
// segments of one launch. A product that is a convolution of kernel 1 becomes one where it stands
// behind convolutions.
//
// The terms of a group (compiler/sums.c) name one result, and each but the first adds
// what is there. Where such neighbours are segments of one launch, the kernel adds them
// itself: field `sum`.
#include <string.h>

#include "codegen/codegen.h"

typedef struct {
    const Codegen *cg;
    Work *work;
    const PlanLaunch *launches;        // as they were lowered
    const PlanArg *args;               // theirs
    uint32_t base;                     // number of args[0]
    uint32_t least;                    // launches before this one are of other groups
    const PlanArg **own;               // by launch: arguments made anew; NULL: those in `args`
} Old;

static const PlanArg *args_of(const Old *old, const PlanLaunch *launch)
{
    const PlanArg *own = old->own[launch - old->launches];
    return own ? own : old->args + (launch->arg - old->base);
}

static bool is_address(const PlanArg *arg)
{
    return arg->space != PV_VALUE;
}

// Whether a launch stores to a buffer that the other one reads. Neighbours that store to one buffer
// fill different parts of it.
static bool touches(const PlanArg *args, uint32_t count, const PlanArg *others,
                    uint32_t other_count)
{
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; args[i].space == PV_ARENA && args[i].result && k < other_count; k++)
            if (others[k].space == PV_ARENA && !others[k].result &&
                others[k].buffer == args[i].buffer)
                return true;
    return false;
}

// Whether a segment may have an address that another one has not: products and convolutions see
// for each segment whether it normalizes an operand, and makes a table.
static bool is_optional(const Codegen *cg, uint32_t kernel, size_t index)
{
    const char *symbol = cg->kernels[kernel].symbol;
    bool conv = strcmp(symbol, "pv_conv") == 0, gemm = strcmp(symbol, "pv_gemm") == 0;
    size_t norm = conv ? ARG(ConvArgs, norm) : ARG(GemmArgs, norm);
    size_t stats = conv ? ARG(ConvArgs, stats) : ARG(GemmArgs, stats);
    return (conv || gemm) && ((index >= norm && index < norm + sizeof(NormLoad) / 8) ||
                              (index >= stats && index < stats + sizeof(NormStats) / 8));
}

// Arguments of a kernel that adds segments up: the result, the residual, the field `sum`.
typedef struct {
    const char *symbol;
    size_t result, residual, sum;
} Summing;

static const Summing summing[] = {
    {"pv_gemm", ARG(GemmArgs, c), ARG(GemmArgs, residual), ARG(GemmArgs, sum)},
    {"pv_conv_wgrad", ARG(ConvArgs, w), ARG(ConvArgs, residual), ARG(ConvArgs, sum)},
    {"pv_reduce", ARG(ReduceArgs, out), ARG(ReduceArgs, residual), ARG(ReduceArgs, sum)},
};

static bool same_address(const PlanArg *x, const PlanArg *y)
{
    return is_address(x) && x->space == y->space && x->a == y->a && x->c == y->c &&
           x->buffer == y->buffer;
}

static const Summing *summing_kernel(const Codegen *cg, uint32_t kernel)
{
    for (size_t i = 0; i < sizeof summing / sizeof *summing; i++)
        if (strcmp(cg->kernels[kernel].symbol, summing[i].symbol) == 0)
            return &summing[i];
    return NULL;
}

// Whether a segment adds its result to what the segment `before` it left in the same place.
static bool adds_up(const Summing *kernel, const PlanArg *before, const PlanArg *args)
{
    return kernel && same_address(&args[kernel->residual], &before[kernel->result]) &&
           same_address(&args[kernel->residual], &args[kernel->result]);
}

// `to` is being filled with segments; `from` is a launch as it was lowered.
static bool can_join(const Old *old, const PlanLaunch *to, const PlanLaunch *from, bool apart)
{
    const Work *work = old->work;
    const PlanArg *have = &work->args[to->arg], *more = args_of(old, from);
    uint32_t count = from->arg_count;
    if (to->kernel != from->kernel || to->arg_count != to->segments * count ||
        to->segments == most_segments(count))
        return false;
    const Summing *kernel = summing_kernel(old->cg, to->kernel);
    bool sum = adds_up(kernel, have + to->arg_count - count, more);
    for (uint32_t i = 0; i < count; i++)
        if ((is_address(&have[i]) != is_address(&more[i]) &&
             !is_optional(old->cg, to->kernel, i) && !(sum && i == kernel->residual)) ||
            (have[i].store != more[i].store && !(sum && i == kernel->residual)))
            return false;
    return apart || (!touches(have, to->arg_count, more, count) &&
                     !touches(more, count, have, to->arg_count));
}

static bool is_number(const PlanArg *arg, int64_t value)
{
    return arg->space == PV_VALUE && arg->c == 0 && arg->a == value;
}

// As launch_numbers.
static void segment_numbers(const PlanArg *args, size_t count, int64_t *numbers)
{
    for (size_t i = 0; i < count; i++)
        numbers[i] = is_address(&args[i]) ? 1 : args[i].c ? 0 : args[i].a;
}

// A pv_gemm of the form out[b, o, n] = w[o, c] x[b, c, n] in the words of a pv_conv: [0] with
// rows of channels, where A is w and B is x; [1] with channels last, out[b, n, o], where A
// is x and B is w.
static const struct {
    size_t to, from[2];
} as_conv[] = {
    {ARG(ConvArgs, y), {ARG(GemmArgs, c), ARG(GemmArgs, c)}},
    {ARG(ConvArgs, x), {ARG(GemmArgs, b), ARG(GemmArgs, a)}},
    {ARG(ConvArgs, w), {ARG(GemmArgs, a), ARG(GemmArgs, b)}},
    {ARG(ConvArgs, bias), {ARG(GemmArgs, bias), ARG(GemmArgs, bias)}},
    {ARG(ConvArgs, residual), {ARG(GemmArgs, residual), ARG(GemmArgs, residual)}},
    {ARG(ConvArgs, images), {ARG(GemmArgs, batch0), ARG(GemmArgs, batch0)}},
    {ARG(ConvArgs, c_in), {ARG(GemmArgs, k), ARG(GemmArgs, k)}},
    {ARG(ConvArgs, c_out), {ARG(GemmArgs, m), ARG(GemmArgs, n)}},
    {ARG(ConvArgs, x_image), {ARG(GemmArgs, b0), ARG(GemmArgs, a0)}},
    {ARG(ConvArgs, y_image), {ARG(GemmArgs, c0), ARG(GemmArgs, c0)}},
    {ARG(ConvArgs, x_channel), {ARG(GemmArgs, b_k), ARG(GemmArgs, a_k)}},
    {ARG(ConvArgs, x_position), {ARG(GemmArgs, b_n), ARG(GemmArgs, a_m)}},
    {ARG(ConvArgs, in) + 2, {ARG(GemmArgs, n), ARG(GemmArgs, m)}},
    {ARG(ConvArgs, out) + 2, {ARG(GemmArgs, n), ARG(GemmArgs, m)}},
    {ARG(ConvArgs, act), {ARG(GemmArgs, act), ARG(GemmArgs, act)}},
    {ARG(ConvArgs, residual_image), {ARG(GemmArgs, r0), ARG(GemmArgs, r0)}},
    {ARG(ConvArgs, types), {ARG(GemmArgs, types), ARG(GemmArgs, types)}},
};

// Which of these it is, with the bias along the channels; -1: neither.
static int pointwise_form(const PlanArg *gemm)
{
    const PlanArg *k = &gemm[ARG(GemmArgs, k)];
    bool bias = is_address(&gemm[ARG(GemmArgs, bias)]);
    if (!is_number(&gemm[ARG(GemmArgs, sum_batch)], 0) || k->c != 0 ||
        !is_number(&gemm[ARG(GemmArgs, gate)], 0) || !is_number(&gemm[ARG(GemmArgs, batch1)], 1) ||
        !is_number(&gemm[ARG(GemmArgs, a_k)], 1))
        return -1;
    if (is_number(&gemm[ARG(GemmArgs, a0)], 0) && is_number(&gemm[ARG(GemmArgs, b_n)], 1) &&
        is_number(&gemm[ARG(GemmArgs, a_m)], k->a) && gemm[ARG(GemmArgs, n)].c == 0 &&
        (!bias || is_number(&gemm[ARG(GemmArgs, bias_axis)], 1)))
        return 0;
    if (is_number(&gemm[ARG(GemmArgs, b0)], 0) && is_number(&gemm[ARG(GemmArgs, b_k)], 1) &&
        is_number(&gemm[ARG(GemmArgs, b_n)], k->a) && gemm[ARG(GemmArgs, m)].c == 0 &&
        (!bias || is_number(&gemm[ARG(GemmArgs, bias_axis)], 0)))
        return 1;
    return -1;
}

// Whether a product of that form can be a segment of a convolution: all else is alike. Rows of
// channels are in f32, channels come last in mixed precision.
static bool takes_pointwise(const PlanArg *conv, const PlanArg *gemm, int form)
{
    static const size_t same[][2] = {{ARG(ConvArgs, act), ARG(GemmArgs, act)},
                                     {ARG(ConvArgs, types), ARG(GemmArgs, types)}};
    static const size_t optional[][2] = {{ARG(ConvArgs, bias), ARG(GemmArgs, bias)},
                                         {ARG(ConvArgs, residual), ARG(GemmArgs, residual)}};
    bool fits = form >= 0 && is_number(&conv[ARG(ConvArgs, groups)], 1) &&
                gemm[ARG(GemmArgs, k)].a % 8 == 0 &&
                gemm[form == 0 ? ARG(GemmArgs, m) : ARG(GemmArgs, n)].a % 8 == 0 &&
                (form == 0) == is_number(&gemm[ARG(GemmArgs, types)], 0) &&
                (form == 0 || is_number(&conv[ARG(ConvArgs, x_channel)], 1));
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        fits = fits && conv[same[i][0]].a == gemm[same[i][1]].a;
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++)
        fits = fits && is_address(&conv[optional[i][0]]) == is_address(&gemm[optional[i][1]]);
    return fits;
}

// Makes a pv_gemm that is a convolution of kernel 1 a pv_conv, if `like` is one like it.
static void product_as_conv(Lower *lower, Old *old, const PlanLaunch *like, PlanLaunch *launch)
{
    const Kernel *kernels = lower->cg->kernels;
    if (strcmp(kernels[like->kernel].symbol, "pv_conv") != 0 ||
        strcmp(kernels[launch->kernel].symbol, "pv_gemm") != 0)
        return;
    const PlanArg *gemm = args_of(old, launch), *conv = &lower->work->args[like->arg];
    int form = pointwise_form(gemm);
    if (!takes_pointwise(conv, gemm, form))
        return;
    enum { COUNT = sizeof(ConvArgs) / 8 };
    PlanArg *args = arena_alloc(lower->work->arena, COUNT * sizeof *args);
    const ConvArgs plain = {.groups = 1,
                            .y_position = 1,
                            .y_channel = 1,
                            .residual_position = 1,
                            .residual_channel = 1,
                            .w_last = conv[ARG(ConvArgs, w_last)].a,
                            .in = {1, 1, 1},
                            .out = {1, 1, 1},
                            .kernel = {1, 1, 1},
                            .stride = {1, 1, 1}};
    for (size_t i = 0; i < COUNT; i++)
        args[i] = (PlanArg){.space = PV_VALUE, .a = ((const int64_t *)&plain)[i]};
    for (size_t i = 0; i < sizeof as_conv / sizeof *as_conv; i++)
        args[as_conv[i].to] = gemm[as_conv[i].from[form]];
    args[form == 0 ? ARG(ConvArgs, y_channel) : ARG(ConvArgs, y_position)] =
        gemm[ARG(GemmArgs, c_m)];
    args[form == 0 ? ARG(ConvArgs, residual_channel) : ARG(ConvArgs, residual_position)] =
        gemm[ARG(GemmArgs, r_m)];
    for (size_t i = 0; i < sizeof(NormLoad) / 8; i++)
        args[ARG(ConvArgs, norm) + i] = gemm[ARG(GemmArgs, norm) + i];
    for (size_t i = 0; i < sizeof(NormStats) / 8; i++)
        args[ARG(ConvArgs, stats) + i] = gemm[ARG(GemmArgs, stats) + i];
    ConvArgs numbers;
    segment_numbers(args, COUNT, (int64_t *)&numbers);
    need_scratch(lower,
                 pv_conv_scratch(&numbers, real_size(lower)));
    launch->kernel = like->kernel;
    launch->arg_count = COUNT;
    old->own[launch - old->launches] = args;
}

// The launch may overwrite an operand of one segment if no other segment names its buffer.
static void keep_inplace(Lower *lower, PlanLaunch *launch)
{
    Work *work = lower->work;
    uint32_t each = launch->arg_count / launch->segments, left = launch->more_inplace;
    Inplace *pairs[PV_MAX_SEGMENTS + 1];
    uint32_t count = 0;
    for (; left; left = work->inplace[left - 1].next)
        pairs[count++] = &work->inplace[left - 1];
    launch->more_inplace = 0;
    for (uint32_t p = 0; p < count; p++) {
        uint32_t mentions = 0;
        for (uint32_t s = 0; s < launch->segments; s++) {
            bool there = false;
            for (uint32_t i = s * each; i < (s + 1) * each; i++) {
                const PlanArg *arg = &work->args[launch->arg + i];
                there |= arg->space == PV_ARENA && arg->buffer == pairs[p]->in;
            }
            mentions += there;
        }
        if (mentions != 1)
            continue;
        pairs[p]->next = launch->more_inplace;
        launch->more_inplace = (uint32_t)(pairs[p] - work->inplace) + 1;
    }
}

static void add_inplace(Lower *lower, PlanLaunch *to, const PlanLaunch *from)
{
    Work *work = lower->work;
    if (!from->inplace_in)
        return;
    work->inplace = grow_array(work->inplace, &lower->inplace_capacity, work->inplace_count,
                               sizeof *work->inplace);
    work->inplace[work->inplace_count++] =
        (Inplace){from->inplace_out, from->inplace_in, to->more_inplace};
    to->more_inplace = work->inplace_count;
}

static void put_launch(Lower *lower, const Old *old, const PlanLaunch *from, bool apart)
{
    Work *work = lower->work;
    PlanLaunch *to =
        work->launch_count > old->least ? &work->launches[work->launch_count - 1] : NULL;
    if (!to || !can_join(old, to, from, apart) ||
        !cuda_takes_segment(lower->cg, to->kernel, &work->args[to->arg], to->segments,
                            from->arg_count, args_of(old, from))) {
        to = &work->launches[work->launch_count++];
        *to = *from;
        to->arg = work->arg_count;
        to->arg_count = to->segments = 0;
        to->flops_fixed = to->flops_batch = to->bytes_fixed = to->bytes_batch = 0;
        to->inplace_in = 0;
        to->inplace_out = arg_none();
    }
    const PlanArg *args = args_of(old, from);
    for (uint32_t i = 0; i < from->arg_count; i++) {
        work->args = grow_array(work->args, &lower->arg_capacity, work->arg_count,
                                sizeof *work->args);
        work->args[work->arg_count++] = args[i];
    }
    to->arg_count += from->arg_count;
    to->segments += from->segments;
    to->flops_fixed += from->flops_fixed;
    to->flops_batch += from->flops_batch;
    to->bytes_fixed += from->bytes_fixed;
    to->bytes_batch += from->bytes_batch;
    add_inplace(lower, to, from);
}

// Whether the launch can be a segment of the last one; makes a convolution of it for that.
static bool like_last(Lower *lower, Old *old, PlanLaunch *launch)
{
    Work *work = lower->work;
    const PlanLaunch *last = &work->launches[work->launch_count - 1];
    if (last->kernel != launch->kernel)
        product_as_conv(lower, old, last, launch);
    return can_join(old, last, launch, true);
}

// What several groups of a launch read is read once. made_in: the launch of each member, + 1.
static void count_shared(Lower *lower, const uint32_t *groups, uint32_t group_count,
                         const uint32_t *made_in, uint32_t launch)
{
    Work *work = lower->work;
    uint32_t together[PV_MAX_SEGMENTS], count = 0, member = 0;
    for (uint32_t i = 0; i < group_count; i++) {
        if (made_in[member] == launch + 1) {
            double fixed, per_batch;
            together[count++] = groups[i];
            shared_bytes(work, together, count - 1, &fixed, &per_batch);
            work->launches[launch].bytes_fixed -= fixed;
            work->launches[launch].bytes_batch -= per_batch;
        }
        member += 1 + work->groups[groups[i]].term_count;
    }
}

// Segments that add the result of the one before them become parts of its sum.
static void sum_segments(Lower *lower, PlanLaunch *launch)
{
    Work *work = lower->work;
    const Summing *kernel = summing_kernel(lower->cg, launch->kernel);
    uint32_t each = launch->arg_count / launch->segments, head = 0;
    for (uint32_t i = 1; kernel && i < launch->segments; i++) {
        PlanArg *args = &work->args[launch->arg + i * each];
        if (!adds_up(kernel, args - each, args)) {
            head = i;
            continue;
        }
        args[kernel->residual] = arg_none();
        args[kernel->sum].a = -1;
        work->args[launch->arg + head * each + kernel->sum].a++;
        if (strcmp(kernel->symbol, "pv_gemm") == 0) {  // a sum has several blocks of k
            GemmArgs numbers;
            segment_numbers(args, each, (int64_t *)&numbers);
            need_scratch(lower, pv_gemm_scratch(&numbers, (int64_t)element_size(
                                                              lower->cg->module, DT_F32)));
        }
    }
}

void join_segments(Lower *lower, const uint32_t *groups, uint32_t group_count,
                   const uint32_t *first, uint32_t count)
{
    Work *work = lower->work;
    uint32_t begin = first[0], total = work->launch_count - begin, base = work->launches[begin].arg;
    PlanLaunch *launches = arena_alloc(work->arena, (total + 1) * sizeof *launches);
    memcpy(launches, work->launches + begin, total * sizeof *launches);
    uint32_t arg_count = work->arg_count - base;
    PlanArg *args = arena_alloc(work->arena, (arg_count + 1) * sizeof *args);
    memcpy(args, work->args + base, arg_count * sizeof *args);
    Old old = {lower->cg, work, launches, args, base, begin, NULL};
    old.own = arena_alloc(work->arena, (total + 1) * sizeof *old.own);
    work->launch_count = begin;
    work->arg_count = base;
    for (uint32_t round = 1; round < total; round++)   // all but the last of each group
        for (uint32_t i = 0; i < count; i++)
            if (first[i] + round < first[i + 1])
                put_launch(lower, &old, &launches[first[i] + round - 1 - begin], false);
    uint32_t copies = work->launch_count;
    uint32_t made_in[PV_MAX_SEGMENTS] = {0};
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = i; k < count; k++) {         // the first that is left, and those like it
            if (made_in[k] || first[k] == first[k + 1])
                continue;
            PlanLaunch *launch = &launches[first[k + 1] - 1 - begin];
            if (k == i || like_last(lower, &old, launch)) {
                put_launch(lower, &old, launch, work->launch_count > copies);
                made_in[k] = work->launch_count;
            }
        }
    for (uint32_t i = begin; i < work->launch_count; i++) {
        sum_segments(lower, &work->launches[i]);
        keep_inplace(lower, &work->launches[i]);
    }
    for (uint32_t i = copies; i < work->launch_count; i++)
        count_shared(lower, groups, group_count, made_in, i);
}
